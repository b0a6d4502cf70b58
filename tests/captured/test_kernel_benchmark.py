"""The benchmark of single operations runs on the emulated CuPy with graphs."""

import pytest

try:
    import cupy
except ImportError:
    cupy = None
if not hasattr(cupy, "emulated_graphs"):
    pytest.skip("CuPy is not the one with emulated graphs: run nox -s kernels", allow_module_level=True)

from benchmarks import kernels


def test_every_operation_is_captured_and_timed(monkeypatch):
    monkeypatch.setattr(kernels, "device_ms", lambda replay: replay() or 1.0)
    rows = kernels.measure((2, 8, 4, 4))
    assert not [row for row in rows if "error" in row]
    names = {"float32": set(), "float16": set()}
    for row in rows:
        assert row["us"] == 50.0  # 1 ms for each replay of 20 calls
        names[row["dtype"]].add(row["name"])
    assert names["float16"] < names["float32"]
    assert {"relu", "batch norm backward", "max pool", "unfold 3x3", "to rows", "adam", "L2 penalty"} < names["float32"]


def test_a_failing_operation_does_not_end_the_run():
    def fail():
        raise ValueError("no such thing")

    assert kernels.time_operation(kernels.Operation("x", 1, fail), "float32", 1.0) == {
        "dtype": "float32",
        "name": "x",
        "error": "ValueError: no such thing",
    }
