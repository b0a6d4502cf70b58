"""`xpconv check`: correct layers pass, and each common mistake is reported with its cause."""

import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.layer_table import ROWS
from xpconv.cli import _app
from xpconv.cli._check import check_file, parse_shapes
from xpconv.errors import ArgumentError
from xpconv.testing import _layer_check, check_layer
from xpconv.testing._causes import explain


@pytest.fixture(autouse=True)
def _numpy_alone(request, monkeypatch):
    """Leave other libraries to the tests that are about them: importing torch is slow."""
    if "libraries" not in request.node.name:
        monkeypatch.setattr(_layer_check, "LIBRARIES", ())


def finding(report, name):
    (found,) = [finding for finding in report.findings if finding.check == name]
    return found.status, found.text


# ---- correct layers


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.kinks and not row.case.startswith("probabilities")], ids=str
)
def test_every_layer_of_xpconv_passes(row):
    def forward(**inputs):
        return row.forward(**inputs, **row.options)

    def backward(dout, cache):
        return row.backward(dout, cache)

    report = check_layer(forward, backward, row.draw())
    assert report.ok, str(report)


def test_layer_of_xpconv_agrees_on_all_libraries():
    row = next(row for row in ROWS if str(row) == "affine-images")
    report = check_layer(row.forward, row.backward, row.draw(), "affine")
    assert report.ok, str(report)
    assert finding(report, "array_api_strict")[0] == "ok"
    assert finding(report, "torch")[0] in ("ok", "note")


def test_report_is_readable_text():
    report = check_layer(lambda x: (2 * x, None), lambda dout, cache: 2 * dout, {"x": np.ones((2, 3))}, "double")
    assert report.ok
    lines = str(report).splitlines()
    assert lines[0] == "double"
    assert " ".join(lines[1].split()) == "ok runs out has shape (2, 3); backward gives gradients of x"
    assert lines[-1] == "verdict: double is right"
    assert max(map(len, lines)) <= 80


# ---- mistakes: the change of the affine layer's code, the check that fails, and its message

AFFINE = """
    import numpy as np

    def affine_forward(x, w, b):
        return x.reshape(len(x), -1) @ w + b, (x, w)

    def affine_backward(dout, cache):
        x, w = cache
        dx = (dout @ w.T).reshape(x.shape)
        dw = x.reshape(len(x), -1).T @ dout
        db = dout.sum(axis=0)
        return dx, dw, db
"""
SHAPES = {"x": (5, 3, 2), "w": (6, 4), "b": (4,)}

MISTAKES = {
    "mean over the batch": (
        "T @ dout",
        "T @ dout / len(x)",
        "gradient of w",
        r"18|24 of 24 elements are wrong\. Likely it is 0\.2 times what it should be, off by the "
        r"batch size \(5\): a sum instead of a mean, or a mean instead of a sum",
    ),
    "sum for mean": ("dout.sum(axis=0)", "5 * dout.sum(axis=0)", "gradient of b", r"it is 5 times .* the batch size"),
    "sign": ("T @ dout", "T @ -dout", "gradient of w", "the sign is wrong"),
    "sign and batch": ("T @ dout", "T @ -dout / 5", "gradient of w", "the batch size.*and the sign is wrong"),
    "factor": ("T @ dout", "T @ dout / 2.5", "gradient of w", r"0\.4 times .*: a constant factor is missing"),
    "never computed": ("T @ dout", "T @ dout * 0", "gradient of w", "never computed: it is 0 everywhere"),
    "dout forgotten": ("T @ dout", "T @ np.ones_like(dout)", "gradient of w", "dout is forgotten: by the chain rule"),
    "one sample forgotten": (
        "return dx",
        "dx[2] = 0; return dx",
        "gradient of x",
        r"\[2, \d, \d\], .* 6 of 30 elements are wrong\. The wrong ones are all 0: .*"
        r"They are all at 2 on axis 0",
    ),
    "flat": (
        ".reshape(x.shape)",
        "",
        "gradient of x",
        r"a float64 array of shape \(5, 6\), but x has shape \(5, 3, 2\)\. Likely it only needs to be reshaped",
    ),
    "not summed": (
        "dout.sum(axis=0)",
        "dout",
        "gradient of b",
        r"\(5, 4\), but b has shape \(4,\)\. .*sum over the "
        "batch is missing",
    ),
    "transposed": (
        "= x.reshape(len(x), -1).T @ dout",
        "= dout.T @ x.reshape(len(x), -1)",
        "gradient of w",
        "Likely it is transposed",
    ),
    "not an array": ("return dx, dw, db", "return dx, dw, list(db)", "gradient of b", "it is a list, but b has shape"),
    "one too few": (
        "return dx, dw, db",
        "return dx, dw",
        "backward",
        r"it returns 2 gradients for 3 arrays: x, w, b\. Return one for each",
    ),
    "no cache": ("+ b, (x, w)", "+ b", "forward", r"it returns a float64 array of shape \(5, 4\); expected a pair"),
    "error": (
        "dx = (",
        "dx = undefined + (",
        "backward",
        r"it raises NameError: name 'undefined' is not defined \(line 9: dx = undefined",
    ),
    "not finite": ("T @ dout", "T @ dout * np.inf", "gradient of w", r"it is -?inf at \[0, 0\]"),
    "overflow": ("@ w + b,", "@ w + b + np.inf,", "forward", r"out is inf at \[0, 0\]"),
    "writes into x": (
        "    return x.re",
        "    x *= 2\n        return x.re",
        "inputs untouched",
        "forward writes into x: work on a copy",
    ),
    "writes into dout": ("x, w = cache", "x, w = cache; dout[0] = 1", "inputs untouched", "backward writes into dout"),
    "writes into w": ("dw =", "w += 1; dw =", "inputs untouched", "backward writes into w"),
    "gradient is the weight's memory": (
        "return dx, dw,",
        "w[...] = dw; return dx, w,",
        "cache",
        "backward gives other gradients when it is called again with the same cache",
    ),
    "global cache": ("+ b, (x, w)", "+ b, SHARED.update(x=x, w=w)", "cache", "spoilt by the next call of forward"),
    "float64": ("+ b,", "+ b + np.zeros(4),", "float32", r"for float32 inputs out is float64.*dtype=x\.dtype"),
    "float64 gradient": ("db = dout", "db = np.ones(1) * dout", "float32", "the gradient of b is float64"),
    "casts to float32": (
        "+ b,",
        "+ b.astype(np.float32) * np.float32(1)).astype(np.float32),",
        "forward",
        "out is a float32 array of shape .* for float64 inputs",
    ),
    "random": ("+ b,", "+ b + np.random.rand(4),", "forward", "another output each time for the same inputs"),
}


def written(tmp_path, code):
    path = tmp_path / "my_layer.py"
    path.write_text(textwrap.dedent(code))
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_with_its_cause(name, tmp_path):
    old, new, where, text = MISTAKES[name]
    assert AFFINE.count(old) == 1
    code = AFFINE.replace(old, new)
    if "SHARED" in code:
        code = code.replace("x, w = cache", 'x, w = SHARED["x"], SHARED["w"]') + "\n    SHARED = {}\n"
    if name == "casts to float32":
        code = code.replace("return x.reshape", "return (x.reshape")
    (report,) = check_file(written(tmp_path, code), shapes=SHAPES)
    assert where in report.failed, str(report)
    status, message = finding(report, where)
    assert status == "FAIL"
    assert re.search(text, message), message
    assert "\nverdict: affine has problems: " in str(report)


def test_correct_layer_passes_all_checks(tmp_path):
    (report,) = check_file(written(tmp_path, AFFINE), shapes=SHAPES)
    assert [f.status for f in report.findings] == ["ok"] * 7, str(report)


@pytest.mark.parametrize("seed", [0, 1, 231])
def test_square_weights_hide_no_transposition(seed):
    """If dout had the values of x, its product with x would be symmetric."""
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.standard_normal((5, 3)), "w": rng.standard_normal((3, 3))}
    report = check_layer(
        lambda x, w: (x @ w, (x, w)), lambda dout, cache: (dout @ cache[1].T, (cache[0].T @ dout).T), inputs
    )
    assert "Likely it is transposed" in finding(report, "gradient of w")[1]


def pool_forward(x):
    """Maxima of 2 by 2 windows one pixel apart."""
    windows = np.stack([x[:, :, i : i + 3, j : j + 3] for i in (0, 1) for j in (0, 1)])
    return windows.max(axis=0), (x, windows.argmax(axis=0))


def test_assigning_where_windows_overlap_is_recognised():
    def backward(dout, cache):
        x, winner = cache
        dx = np.zeros_like(x)
        for n, c, i, j in np.ndindex(*dout.shape):
            di, dj = divmod(winner[n, c, i, j], 2)
            dx[n, c, i + di, j + dj] = dout[n, c, i, j]
        return dx

    report = check_layer(pool_forward, backward, {"x": np.random.default_rng(0).standard_normal((2, 2, 4, 4))})
    assert "have to be added (+=), not assigned" in finding(report, "gradient of x")[1]


def test_wrong_edges_point_to_the_padding():
    def backward(dout, cache):
        dx = 3 * dout
        dx[..., 0] = dx[..., -1] = 0
        return dx

    report = check_layer(lambda x: (3 * x, None), backward, {"x": np.ones((2, 2, 4, 5))})
    assert (
        "They are all at 0, 4 on axis 3, the edge of the image: look at the padding"
        in (finding(report, "gradient of x")[1])
    )


def test_gradient_that_should_be_zero_is_recognised():
    def backward(dout, mask):
        return dout

    x = np.random.default_rng(0).standard_normal((4, 6))
    report = check_layer(lambda x: (np.maximum(x, 0), x > 0), backward, {"x": x})
    assert "The wrong ones should be 0" in finding(report, "gradient of x")[1]


def test_input_at_a_kink_fails():
    x = np.zeros((2, 3))
    report = check_layer(lambda x: (np.maximum(x, 0), x > 0), lambda dout, mask: dout * mask, {"x": x})
    assert report.failed == ["gradient of x"]


def test_large_inputs_are_sampled(monkeypatch):
    calls = []

    def forward(x):
        calls.append(1)
        return x**2

    x = np.random.default_rng(0).standard_normal((300, 100))
    text = explain("x", forward, lambda dout: 3 * x * dout, x, np.ones_like(x), {"x": x.shape})
    assert "1000 of 1000 elements are wrong. Likely it is 1.5 times" in text
    assert len(calls) == 2000


def test_sizes_of_axes_explain_factors():
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 7))
    report = check_layer(
        lambda x: (x.mean(axis=(2, 3)), x.shape),
        lambda dout, shape: np.broadcast_to(dout[:, :, None, None], shape).copy(),
        {"x": x},
    )
    assert "it is 35 times what it should be, off by" in finding(report, "gradient of x")[1]
    assert "(35)" in finding(report, "gradient of x")[1]


def test_missing_gradient_is_noted():
    report = check_layer(
        lambda x, w: (x * w, w), lambda dout, w: (dout * w, None), {"x": np.ones((2, 3)), "w": np.ones((2, 3))}
    )
    assert report.ok
    assert finding(report, "gradient of w") == ("note", "not checked: backward gives None")


def test_gradient_that_shares_memory_with_an_input_fails():
    report = check_layer(
        lambda x, w: (x + 0 * w + np.sum(w * w) / 2, (x, w)),
        lambda dout, cache: (dout, cache[1]),
        {"x": np.ones((1, 1)), "w": np.ones((1, 1))},
    )
    assert "the gradient of w shares memory with w" in finding(report, "cache")[1]


# ---- other libraries


def test_libraries_that_the_code_does_not_support_are_a_note():
    report = check_layer(lambda x: (np.tanh(x), np.tanh(x)), lambda dout, y: dout * (1 - y**2), {"x": np.ones((2, 3))})
    assert report.ok, str(report)
    status, text = finding(report, "array_api_strict")
    assert status == "note"
    assert text.startswith("written for NumPy alone: ")


def test_libraries_that_give_other_values_are_a_failure():
    def forward(x):
        return (2 * x, None) if isinstance(x, np.ndarray) else (3 * x, None)

    report = check_layer(forward, lambda dout, cache: 2 * dout, {"x": np.ones((2, 3))})
    assert "array_api_strict" in report.failed
    assert "differs by" in finding(report, "array_api_strict")[1]


def test_libraries_that_are_missing_are_a_note(monkeypatch):
    monkeypatch.setattr(_layer_check, "LIBRARIES", ("cupy:99",))
    report = check_layer(lambda x: (2 * x, None), lambda dout, cache: 2 * dout, {"x": np.ones((2, 3))})
    assert finding(report, "cupy:99")[0] == "note"


# ---- files


def test_layers_of_the_course_are_checked_as_they_are_written(tmp_path):
    """Several layers, dicts of options that forward adds to, names with an ending, and inputs of each its own."""
    path = written(
        tmp_path,
        """
        import numpy as np

        def scale_forward(x, w, scale_param):
            scale_param.setdefault("calls", 0)
            scale_param["calls"] += 1
            return x * w * scale_param["factor"], (x, w, scale_param)

        def scale_backward(dout, cache):
            x, w, scale_param = cache
            factor = scale_param["factor"]
            return dout * w * factor, np.sum(dout * x * factor, axis=0)

        def scale_inputs():
            return {"x": np.linspace(0, 1, 6).reshape(2, 3), "w": np.ones(3), "scale_param": {"factor": 2.0}}

        def relu_forward_naive(x):
            return np.maximum(x, 0), x

        def relu_backward_naive(dout, cache):
            return dout * (cache > 0)

        def inputs():
            return np.linspace(-1, 1, 6).reshape(2, 3),

        def helper_forward(x):
            return x
    """,
    )
    reports = check_file(path)
    assert [(report.layer, report.ok) for report in reports] == [("scale", True), ("relu_naive", True)]
    assert [report.layer for report in check_file(path, "relu_naive")] == ["relu_naive"]


def test_shapes_given_replace_what_the_file_gives(tmp_path):
    code = AFFINE + "\n    affine_inputs = {'x': np.ones((2, 6)), 'w': np.ones((6, 2)), 'b': np.ones(3)}\n"
    path = written(tmp_path, code)
    (report,) = check_file(path)
    assert report.failed == ["forward"]
    (report,) = check_file(path, shapes={"b": (2,)})
    assert report.ok


def test_file_imports_its_neighbours_and_leaves_no_trace(tmp_path):
    (tmp_path / "beside_my_layer.py").write_text("factor = 3\n")
    path = written(
        tmp_path,
        """
        from dataclasses import dataclass
        from xpconv.layers import relu_backward, relu_forward
        from beside_my_layer import factor

        @dataclass
        class Cache:
            x: "float"

        def times_forward(x): return factor * x, Cache(1.0)
        def times_backward(dout, cache): return factor * dout
    """,
    )
    before = list(sys.path)
    (report,) = check_file(path, shapes={"x": (2, 3)})
    assert (report.layer, report.ok) == ("times", True)
    assert sys.path == before
    (imported,) = check_file(path, "relu", {"x": (2, 3)})
    assert imported.ok


@pytest.mark.parametrize(
    ("code", "layer", "shapes", "message"),
    [
        (
            AFFINE,
            None,
            {},
            r"affine_forward\(x, w, b\) cannot be called with nothing \(missing a required argument: 'x'\): "
            r".*--input x=4,6, or write a function affine_inputs\(\)",
        ),
        (AFFINE, None, SHAPES | {"gamma": (1,)}, "got an unexpected keyword argument 'gamma'"),
        (AFFINE, "conv", SHAPES, "layer is 'conv'; .*has these with a forward and a backward function: affine"),
        ("def f_forward(x): return x, x", None, {}, "has no pair of functions such as .*f_forward has no backward"),
        ("", None, {}, r"has no pair of functions such as affine_forward\(x, w, b\)"),
        ("x = 1 +", None, {}, r"my_layer\.py cannot be run: SyntaxError.*line 1"),
        ("x = 1\nx / 0", None, {}, r"cannot be run: ZeroDivisionError at line 2: division by zero"),
        ("import sys; sys.exit(0)", None, {}, "cannot be run: SystemExit"),
        (
            "def f_forward(n): return n, n\ndef f_backward(d, c): return d\ninputs = {'n': 3}",
            None,
            {},
            r"inputs of f_forward\(n\) hold no array of floats",
        ),
    ],
)
def test_file_that_cannot_be_checked_says_what_is_missing(tmp_path, code, layer, shapes, message):
    with pytest.raises(ArgumentError, match=message):
        check_file(written(tmp_path, code), layer, shapes)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ArgumentError, match=r"inputs are y, but the function is <lambda>\(x\): missing"):
        check_layer(lambda x: (x, x), lambda dout, cache: dout, {"y": np.ones(3)})


def test_file_must_be_an_existing_python_file(tmp_path):
    for name in ("missing.py", "."):
        with pytest.raises(ArgumentError, match=r"there is no file .*; expected a Python file"):
            check_file(tmp_path / name)
    (tmp_path / "layer.txt").touch()
    with pytest.raises(ArgumentError, match=r"layer\.txt is not a Python file; expected .* ends in \.py"):
        check_file(tmp_path / "layer.txt")


@pytest.mark.parametrize("text", ["x", "x=", "=3", "x=3,a", "x=0", "x=-1", "x=3,,4", "x y=3"])
def test_shape_that_cannot_be_read_is_shown(text):
    with pytest.raises(ArgumentError, match="expected an argument's name and its shape, such as x=4,3,8,8"):
        parse_shapes([text])


def test_a_shape_given_twice_is_refused():
    with pytest.raises(ArgumentError, match="input is given twice for x, the second time as 'x=3'; expected one shape"):
        parse_shapes(["x=2", "y=3", "x=3"])


# ---- the command


def call(*words):
    return CliRunner().invoke(_app.app, ["check", *map(str, words)])


def options(shapes):
    return [word for name, shape in shapes.items() for word in ("--input", f"{name}={','.join(map(str, shape))}")]


def test_command_exits_with_0_for_a_correct_layer_and_1_for_a_wrong_one(tmp_path):
    correct = call(written(tmp_path, AFFINE), *options(SHAPES))
    assert correct.exit_code == 0, correct.output
    assert correct.stdout.endswith("verdict: affine is right\n")
    wrong = call(written(tmp_path, AFFINE.replace("T @ dout", "T @ dout / len(x)")), *options(SHAPES))
    assert wrong.exit_code == 1
    assert "off by the batch size (5)" in " ".join(wrong.stdout.split())
    assert wrong.stdout.endswith("verdict: affine has problems: gradient of w\n")


def test_command_says_in_one_line_what_is_missing(tmp_path):
    result = call(written(tmp_path, AFFINE))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("xpconv: error: affine_forward(x, w, b) cannot be called with nothing")
    assert result.stderr.count("\n") == 1


def test_help_shows_an_example():
    assert "Example: xpconv check my_layer.py --input x=4,6" in " ".join(call("--help").stdout.split())


def test_layer_of_the_how_to_page_fails_as_the_page_says(tmp_path):
    """The first Python code of the page is the wrong layer, and the page prints the report."""
    page = Path(__file__).parents[1] / "docs" / "howto" / "check_a_layer.md"
    code = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    result = call(written(tmp_path, code), *options({"x": (4, 6), "w": (6, 3), "b": (3,)}))
    assert result.exit_code == 1
    assert "off by the batch size (4)" in " ".join(result.stdout.split())


# ---- further cases


X34 = np.random.default_rng(0).standard_normal((3, 4))


def test_writing_into_labels_is_found():
    def forward(x, y):
        y -= 1
        return x[np.arange(len(y)), y].sum(), (x.shape, y)

    def backward(dout, cache):
        gradient = np.zeros(cache[0], np.asarray(dout).dtype)
        gradient[np.arange(len(cache[1])), cache[1]] = dout
        return gradient

    report = check_layer(forward, backward, {"x": X34, "y": np.array([1, 2, 3])})
    assert "forward writes into y" in " ".join(str(report).split())


def test_unchanged_nan_is_not_reported():
    report = check_layer(
        lambda x, m: (2 * x, None), lambda dout, cache: (2 * dout, None), {"x": X34, "m": np.array([np.nan])}
    )
    assert "inputs untouched" not in report.failed


def test_gradients_in_a_reused_buffer_are_found():
    buffers = {}

    def backward(dout, x):
        buffer = buffers.setdefault((dout.shape, str(dout.dtype)), np.empty(dout.shape, dout.dtype))
        return np.multiply(2 * dout, x, out=buffer)

    report = check_layer(lambda x: (x * x, x), backward, {"x": X34})
    assert "gradients are overwritten by the next call of backward" in " ".join(str(report).split())


def test_a_dict_of_gradients_fails():
    report = check_layer(lambda x: (2 * x, None), lambda dout, cache: {"x": 2 * dout}, {"x": X34})
    assert "it returns a dict; expected the gradients themselves" in " ".join(str(report).split())


def test_a_layer_for_numpy_alone_does_not_fail_on_torch():
    """The default var of torch divides by N - 1."""

    def forward(x):
        std = x.std(axis=0)
        xhat = (x - x.mean(axis=0)) / std
        return xhat, (xhat, std)

    def backward(dout, cache):
        xhat, std = cache
        return (dout - dout.mean(axis=0) - xhat * (dout * xhat).mean(axis=0)) / std

    report = check_layer(forward, backward, {"x": np.random.default_rng(0).standard_normal((5, 4))})
    assert report.ok, str(report)


def test_a_factor_of_nearly_one_is_not_a_wrong_sign():
    report = check_layer(lambda x: (x * x, x), lambda dout, x: 2.0001 * dout * x, {"x": X34})
    assert not report.ok
    assert "sign" not in " ".join(str(report).split())


@pytest.mark.parametrize("inputs", ["None", "3", "np.ones(3)"])
def test_inputs_that_are_not_arguments_are_refused(tmp_path, inputs):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\ndef a_forward(x): return x, None\ndef a_backward(dout, cache): return dout\n"
        f"def a_inputs(): return {inputs}\n"
    )
    result = call(file)
    assert result.exit_code == 1
    assert "expected a dict of all arguments, or a function that returns one" in result.stderr
