"""Each accelerated version of an operation equals the portable version."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import LAYOUTS, assert_array, contiguous, draw, find_backend, read_only
from tests.operation_table import ARGUMENTS, WRITTEN, arrays_in, compared
from xpconv.ops.dispatch import accelerated_versions, portable
from xpconv.ops.numpy import _conv
from xpconv.ops.windows import Window

CASES = int(os.environ.get("PARITY_CASES", "60"))


@settings(max_examples=CASES, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("spec", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_every_accelerated_version_equals_its_portable_version(spec, data):
    backend = find_backend(spec)
    small = st.integers(1, 4)
    size, stride, dilation = (data.draw(st.tuples(most, most)) for most in (small, small, st.integers(1, 2)))
    sides = data.draw(st.tuples(*(st.tuples(*[st.integers(0, k - 1)] * 2) for k in size)))
    window = Window(size, stride, sides, dilation)
    smallest = (max(d * (k - 1) + 1 - sum(p), d) for k, p, d in zip(size, sides, dilation, strict=True))
    image = data.draw(st.tuples(*(st.integers(extent, 12) for extent in smallest)))
    x = draw(data.draw(small), data.draw(small), *image).astype(data.draw(st.sampled_from(["float32", "float64"])))
    if data.draw(st.booleans()):
        x = np.sign(x)  # ties
    layout = data.draw(st.sampled_from(LAYOUTS))
    for name, (plain, accelerated) in compared(backend.library).items():
        assert name in ARGUMENTS, f"say in ARGUMENTS how to call {name}"
        results = []
        place = contiguous if name in WRITTEN and layout is read_only else layout
        for version in (plain, accelerated):
            *given_arguments, last = ARGUMENTS[name](
                lambda a, dtype=x.dtype, place=place: place(backend, a.astype(dtype)), x, window
            )
            options = last if isinstance(last, dict) else {}
            given_arguments += [] if isinstance(last, dict) else [last]
            result = version(*given_arguments, **options)
            results.append([*arrays_in(result), *arrays_in(given_arguments[WRITTEN.get(name, slice(0))])])
        for one, other in zip(*results, strict=True):
            tolerance = 1e-5 if x.dtype == "float32" else 1e-12
            assert_array(other, backend.to_host(one), backend, str(backend.to_host(one).dtype), tolerance=tolerance)


@pytest.mark.parametrize("small_products", [True, False])
@pytest.mark.parametrize("need_dx", [True, False])
@pytest.mark.parametrize(
    ("channels", "filters", "window"),
    [
        (16, 16, Window((3, 3), padding=((1, 1), (1, 1)))),  # dw in several products for each row
        (40, 20, Window((3, 3))),
        (60, 70, Window((3, 3))),  # dw in slices
        (16, 32, Window((3, 3), (2, 2), ((1, 1), (1, 1)))),  # dx in four phases
        (32, 64, Window((3, 3), (2, 2), ((0, 1), (1, 0)))),
        (6, 5, Window((5, 4), (2, 3), ((2, 4), (3, 1)))),
        (3, 4, Window((4, 3), (3, 2), ((3, 0), (2, 0)))),  # pixels that no window meets
        (3, 40, Window((7, 7), (2, 2), ((3, 3), (3, 3)))),  # dx by folding
        (127, 40, Window((1, 1))),
    ],
)
def test_larger_convolutions_equal_the_portable_version(
    monkeypatch, channels, filters, window, need_dx, small_products
):
    monkeypatch.setattr(_conv, "has_small_products", lambda: small_products)
    monkeypatch.setattr(_conv, "_SMALL_PRODUCT", 2e5)
    x, w = draw(16, channels, 26, 25), draw(filters, channels, *window.kernel_size, seed=1)
    dout = draw(16, filters, *window.output_size((26, 25)), seed=2)
    bias = draw(filters, seed=3)
    plain, accelerated = compared("numpy")["convolve"]
    expected = plain(x, w, bias, window, 1, "im2col")
    assert_array(accelerated(x, w, bias, window, 1, "im2col"), expected, find_backend("numpy"), "float64")
    plain, accelerated = compared("numpy")["convolve_backward"]
    arguments = dout, x, w, window, 1, "im2col", need_dx
    for need_db in (True, False):
        results = zip(accelerated(*arguments, need_db), plain(*arguments, need_db), strict=True)
        for name, (result, expected) in zip(("dx", "dw", "db"), results, strict=True):
            if expected is None:
                assert result is None, name
            else:
                assert_array(result, expected, find_backend("numpy"), "float64", tolerance=1e-12)


def test_numpy_has_an_accelerated_version_of_every_operation_but_a_few():
    others = {
        "adam_numbers",
        "copy_all",
        "nesterov_step",
        "restore_unless",
        "sgd_step",
        "momentum_step",
        "nesterov_direction",
        "rmsprop_step",
        "lion_step",
        "add_l2_penalty",
        "cross_entropy",
        "fold",
        "largest_finite",
        "update_running_stats",
    }
    assert set(compared("numpy")) == set(ARGUMENTS) - others


def test_every_operation_may_be_accelerated():
    for name in ARGUMENTS:
        assert callable(portable(name))


def test_other_libraries_have_no_accelerated_versions():
    assert accelerated_versions("array_api_strict") == {}
