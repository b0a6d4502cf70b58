"""Each layer on each backend against its loop version, and bad inputs.

The layers are the rows of `tests.layer_table`.
"""

import re
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_array, contiguous, find_backend
from tests.layer_table import ELEMENTWISE, ONE_OF_EACH, ROWS, as_tuple, each
from xpconv import layers
from xpconv.backend._blocks import free_blocks
from xpconv.errors import ArgumentError, ArgumentTypeError, DeviceMismatchError
from xpconv.layers import reference
from xpconv.layers._checks import make_window, window_output
from xpconv.testing import check_gradient

DTYPES = ["float64", "float32"]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)


def move(backend, inputs, place=contiguous):
    return {name: each(lambda a: place(backend, a), value) for name, value in inputs.items()}


def rows(*names, among=ROWS):
    return pytest.mark.parametrize("row", [row for row in among if row.layer in names], ids=str)


def rows_but(*names, among=ONE_OF_EACH):
    return pytest.mark.parametrize("row", [row for row in among if row.layer not in names], ids=str)


def arrays(inputs):
    """Return all arrays of the inputs as one list."""
    return [a for value in inputs.values() if value is not None for a in as_tuple(value)]


def same_bits(a, b):
    return all(np.asarray(p).tobytes() == np.asarray(q).tobytes() for p, q in zip(a, b, strict=True))


# ---- values, dtype and device


def check_against_loops(row, backend, dtype, place):
    inputs, dout, out, gradients, _ = row.expected(dtype)
    moved, moved_dout = move(backend, inputs, place), place(backend, dout)
    actual, cache = row.forward(**moved, **row.options)
    assert_array(actual, out, backend, dtype)
    for gradient, expected in zip(row.backward(moved_dout, cache), gradients, strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            assert_array(gradient, expected, backend, dtype)
    assert same_bits(map(backend.to_host, arrays({**moved, "dout": moved_dout})), arrays({**inputs, "dout": dout}))


@every_row
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_equals_its_loop_version_on_every_backend(row, backend, dtype):
    check_against_loops(row, backend, dtype, contiguous)


@every_row
def test_layer_takes_any_memory_layout_and_leaves_inputs_untouched(row, backend, layout):
    check_against_loops(row, backend, "float64", layout)


@every_row
def test_portable_operations_give_the_same_layer(row, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", "0")
    for dtype in DTYPES:
        check_against_loops(row, find_backend("numpy"), dtype, contiguous)


@rows_but(among=[row for row in ROWS if not row.kinks])
def test_gradients_pass_the_numerical_check_on_every_backend(row, backend):
    inputs = move(backend, row.draw())
    fixed = {name: inputs.pop(name) for name in list(inputs) if name not in row.differentiable}

    def forward(*values):
        return row.forward(**dict(zip(inputs, values, strict=True)), **fixed, **row.options)

    assert check_gradient(forward, row.backward, inputs) < 1e-6


@every_row
def test_backward_pass_can_be_repeated(row):
    inputs, dout, *_ = row.expected("float64")
    _, cache = row.forward(**inputs, **row.options)
    first = [g for g in row.backward(dout, cache) if g is not None]
    assert same_bits(first, [g for g in row.backward(dout, cache) if g is not None])


@rows("affine", "conv", "conv_transpose")
@pytest.mark.parametrize("skipped", ["dx", "dw", "db", "dx dw", "dw db"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_are_not_needed_are_not_computed(row, backend, dtype, skipped):
    inputs, dout, *_ = row.expected(dtype)
    _, cache = row.forward(**move(backend, inputs), **row.options)
    dout, needed = contiguous(backend, dout), {f"need_{name}": False for name in skipped.split()}
    gradients, expected = (
        dict(zip(("dx", "dw", "db"), row.backward(dout, cache, **o), strict=True)) for o in (needed, {})
    )
    for name, gradient in gradients.items():
        if name in skipped.split() or expected[name] is None:
            assert gradient is None
        else:
            assert_array(gradient, backend.to_host(expected[name]), backend, dtype)


@rows("batchnorm")
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_averages_equal_those_of_the_loop_version(row, backend, dtype):
    inputs, *_, cached = row.expected(dtype)
    _, cache = row.forward(**move(backend, inputs), **row.options)
    assert isinstance(cache.running, layers.RunningStats)
    for actual, expected in zip(cache.running[:2], cached[-1], strict=True):
        assert_array(actual, expected, backend, dtype)
    if not row.options["train"]:
        assert same_bits(map(backend.to_host, cache.running[:2]), inputs["running"])


@rows("batchnorm")
def test_simplified_batchnorm_backward_equals_the_stepwise_one(row, backend):
    inputs, dout, *_ = row.expected("float64")
    _, cache = row.forward(**move(backend, inputs), **row.options)
    moved = contiguous(backend, dout)
    for one, other in zip(
        layers.batchnorm_backward(moved, cache), layers.batchnorm_backward_stepwise(moved, cache), strict=True
    ):
        assert_array(one, backend.to_host(other), backend, "float64", tolerance=1e-12)


@every_row
def test_layers_never_wait_for_the_device(row, monkeypatch):
    backend = find_backend("array_api_strict:device1")
    inputs, dout, *_ = row.expected("float64")
    moved, moved_dout, waits = move(backend, inputs), contiguous(backend, dout), Counter()
    for name in ("__float__", "__bool__", "__int__", "__index__"):
        original = getattr(type(moved_dout), name)

        def counting(array, name=name, original=original):
            waits[name] += 1
            return original(array)

        monkeypatch.setattr(type(moved_dout), name, counting)
    monkeypatch.setattr("xpconv.backend.Backend.to_host", lambda *_: pytest.fail("read back"))
    _, cache = row.forward(**moved, **row.options)
    row.backward(moved_dout, cache)
    assert not waits


def test_table_has_a_row_for_every_public_layer():
    public = {name.removesuffix("_forward") for name in layers.__all__ if name.endswith(("_forward", "_loss"))}
    assert {row.layer for row in ROWS} - {"batchnorm_stepwise"} == public


def test_loop_versions_keep_float32():
    for row in ONE_OF_EACH:
        forward = getattr(reference, f"{row.layer}_forward", None)
        if forward and not row.oracle:
            assert forward(**row.draw("float32"), **row.options)[0].dtype == np.float32, row.layer


# ---- any shape, stride and padding

few_examples = settings(max_examples=40, derandomize=True)
small = st.integers(1, 4)


@st.composite
def geometries(draw, most_padding=lambda k: 3):
    """Draw an image and the pairs kernel_size, stride and padding, such that at least one window fits."""
    kernel_size, stride = (draw(small), draw(small)), (draw(small), draw(small))
    padding = tuple(draw(st.integers(0, most_padding(k))) for k in kernel_size)
    image = tuple(draw(st.integers(max(1, k - 2 * p), 8)) for k, p in zip(kernel_size, padding, strict=True))
    return image, kernel_size, stride, padding


def compare(forward, backward, loop_forward, loop_backward, *inputs, **options):
    backend, rng = find_backend("numpy"), np.random.default_rng(0)
    drawn = [rng.standard_normal(shape) for shape in inputs]
    (out, cache), (expected, cached) = forward(*drawn, **options), loop_forward(*drawn, **options)
    assert_array(out, expected, backend, "float64")
    dout = rng.standard_normal(expected.shape)
    gradients, wanted = backward(dout, cache), loop_backward(dout, cached)
    for gradient, want in zip(as_tuple(gradients), as_tuple(wanted), strict=True):
        assert_array(gradient, want, backend, "float64")


@few_examples
@given(geometry=geometries(), N=small, C=small, F=small)
def test_conv_equals_its_loop_version_for_any_geometry(geometry, N, C, F):
    image, kernel_size, stride, padding = geometry
    compare(
        layers.conv_forward,
        layers.conv_backward,
        reference.conv_forward,
        reference.conv_backward,
        (N, C, *image),
        (F, C, *kernel_size),
        (F,),
        stride=stride,
        padding=padding,
    )


@few_examples
@given(geometry=geometries(most_padding=lambda k: k - 1), N=small, C=small)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pool_equals_its_loop_version_for_any_geometry(kind, geometry, N, C):
    image, kernel_size, stride, padding = geometry
    forward, backward = f"{kind}_pool_forward", f"{kind}_pool_backward"
    compare(
        getattr(layers, forward),
        getattr(layers, backward),
        getattr(reference, forward),
        getattr(reference, backward),
        (N, C, *image),
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
    )


# ---- extreme values


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scores_give_a_finite_loss_and_gradient(backend, dtype):
    x = backend.asarray(np.array([[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30]]), dtype)
    y = backend.asarray(np.array([0, 2]))
    loss, dx = layers.softmax_loss(x, y)
    assert_array(loss, np.log(3) / 2, backend, dtype)
    assert_array(dx, [[0, 0, 0], [1 / 6, 1 / 6, -1 / 3]], backend, dtype)


def test_very_low_score_of_the_correct_class_gives_a_large_finite_loss():
    loss, dx = layers.softmax_loss(np.array([[1e30, 0.0]]), np.array([1]))
    assert loss == 1e30
    assert dx.tolist() == [[1.0, -1.0]]


def test_zero_targets_ignore_scores_of_minus_infinity(backend):
    x = backend.asarray(np.array([[0.0, -np.inf, 0.0]]))
    for y in (np.array([2]), np.array([[0.0, 0.0, 1.0]])):
        loss, dx = layers.softmax_loss(x, backend.asarray(y), class_weights=[1.0, 1.0, 2.0])
        assert_array(loss, np.log(2) * (2 if y.ndim == 2 else 1), backend, "float64")
        assert_array(dx, np.array([[0.5, 0.0, -0.5]]) * (2 if y.ndim == 2 else 1), backend, "float64")


def test_samples_without_weight_give_no_loss_and_no_gradient(backend):
    """PyTorch returns NaN, which would end the training."""
    x, y = backend.asarray(np.array([[0.0, 3.0]])), backend.asarray(np.array([1]))
    loss, dx = layers.softmax_loss(x, y, class_weights=[1.0, 0.0])
    assert_array(loss, 0.0, backend, "float64")
    assert_array(dx, np.zeros((1, 2)), backend, "float64")


@pytest.mark.parametrize("backend_name", ["numpy", "array_api_strict:device1"])
def test_class_weights_may_be_an_array_on_the_device_of_the_scores(backend_name):
    backend, (x, y) = find_backend(backend_name), (np.random.default_rng(0).standard_normal((6, 5)), np.arange(6) % 5)
    weights = np.array([1.0, 2.0, 0.5, 3.0, 0.0])
    loss, dx = layers.softmax_loss(
        backend.asarray(x), backend.asarray(y), class_weights=backend.asarray(weights), label_smoothing=0.1
    )
    expected = reference.softmax_loss(x, y, class_weights=weights, label_smoothing=0.1)
    assert_array(loss, expected[0], backend, "float64")
    assert_array(dx, expected[1], backend, "float64")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_labels_may_have_any_integer_dtype(backend, dtype):
    x, y = np.random.default_rng(0).standard_normal((6, 5)), np.array([0, 4, 2, 2, 1, 3])
    for function, loops in ((layers.softmax_loss, reference.softmax_loss), (layers.svm_loss, reference.svm_loss)):
        loss, dx = function(backend.asarray(x), backend.asarray(y, dtype))
        assert_array(loss, loops(x, y)[0], backend, "float64")
        assert_array(dx, loops(x, y)[1], backend, "float64")


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_labels_may_have_a_dtype_that_cannot_count_the_classes(backend, dtype):
    """In that dtype, class 261 would wrap around to class 5."""
    x, y = np.random.default_rng(0).standard_normal((2, 300)), np.array([5, 99])
    for function, loops in ((layers.softmax_loss, reference.softmax_loss), (layers.svm_loss, reference.svm_loss)):
        loss, dx = function(backend.asarray(x), backend.asarray(y, dtype))
        assert_array(loss, loops(x, y)[0], backend, "float64")
        assert_array(dx, loops(x, y)[1], backend, "float64")


@pytest.mark.parametrize("accelerated", ["1", "0"])
@pytest.mark.parametrize("values", [[np.nan, -1.0, 0.0, 1.0], [-np.inf, -1.0, np.inf], [-np.inf, np.nan, 2.0]], ids=str)
def test_max_pool_gradient_goes_to_a_pixel_even_for_nan_and_infinity(backend, values, accelerated, monkeypatch):
    """NaN counts as the maximum; if all pixels are minus infinity, the first pixel is, not the padding."""
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    rng = np.random.default_rng(0)
    for options in (
        {"kernel_size": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (2, 1)},
        {"kernel_size": 2},
    ):
        x = rng.choice(values, (2, 3, 6, 4))
        (out, cache), (wanted, loop_cache) = (
            pool(a, **options)
            for pool, a in ((layers.max_pool_forward, backend.asarray(x)), (reference.max_pool_forward, x))
        )
        np.testing.assert_array_equal(backend.to_host(out), wanted)
        dout = rng.standard_normal(wanted.shape)
        dx = layers.max_pool_backward(backend.asarray(dout), cache)
        assert_array(dx, reference.max_pool_backward(dout, loop_cache), backend, "float64")
        assert float(np.sum(backend.to_host(dx))) == pytest.approx(np.sum(dout))


@pytest.mark.parametrize("accelerated", ["1", "0"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocked_gradients_are_0_even_if_dout_is_infinite_or_nan(backend, dtype, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    _, cache = layers.relu_forward(backend.asarray(np.array([-1.0, 2.0, -3.0]), dtype))
    dx = layers.relu_backward(backend.asarray(np.array([np.inf, -np.inf, np.nan]), dtype), cache)
    assert backend.to_host(dx).tolist() == [0, -np.inf, 0]
    _, cache = layers.max_pool_forward(backend.asarray(np.arange(4.0).reshape(1, 1, 2, 2), dtype), kernel_size=2)
    dx = layers.max_pool_backward(backend.asarray(np.full((1, 1, 1, 1), np.inf), dtype), cache)
    assert backend.to_host(dx).tolist() == [[[[0, 0], [0, np.inf]]]]


@pytest.mark.parametrize("accelerated", ["1", "0"])
def test_relu_accepts_a_0_dimensional_array(backend, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    out, cache = layers.relu_forward(backend.asarray(np.array(2.0)))
    assert_array(out, 2.0, backend, "float64")
    assert_array(layers.relu_backward(backend.asarray(np.array(3.0)), cache), 3.0, backend, "float64")


def test_sums_over_a_large_batch_keep_their_accuracy_in_float32():
    """NumPy sums rows sequentially, with an error of 1.4e-4 for 100,000 rows."""
    N, D = 100_000, 8
    x, dout = np.random.default_rng(0).standard_normal((N, D), np.float32), np.full((N, D), 0.1, np.float32)
    one, wanted = np.ones(D, np.float32), N * float(np.float32(0.1))
    sums = {
        "batchnorm": layers.batchnorm_backward(dout, layers.batchnorm_forward(x, one, one, train=True)[1])[2],
        "groupnorm": layers.groupnorm_backward(dout, layers.groupnorm_forward(x, one, one, groups=2)[1])[2],
        "layernorm": layers.layernorm_backward(dout, layers.layernorm_forward(x, one, one)[1])[2],
        "affine": layers.affine_backward(dout, layers.affine_forward(x, np.ones((D, D), np.float32), one)[1])[2],
    }
    for name, dbeta in sums.items():
        np.testing.assert_allclose(dbeta, wanted, rtol=2e-5, err_msg=name)


def test_softmax_loss_divides_by_the_number_of_all_samples():
    """So many samples are cut into tiles."""
    x, y = np.random.default_rng(0).standard_normal((50_000, 10)), np.arange(50_000) % 10
    loss, dx = layers.softmax_loss(x, y)
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(50_000), y]).mean(), rtol=1e-12)
    np.testing.assert_allclose(dx, (p - np.eye(10)[y]) / 50_000, rtol=1e-9, atol=1e-16)


def test_stepwise_batchnorm_is_accurate_if_the_cube_of_inv_std_underflows():
    rng = np.random.default_rng(0)
    x, dout, gamma = (1e16 * rng.standard_normal((6, 3))).astype("f"), rng.standard_normal((6, 3), "f"), np.ones(3, "f")
    _, cache = layers.batchnorm_forward(x, gamma, gamma, train=True)
    for stepwise, at_once in zip(
        layers.batchnorm_backward_stepwise(dout, cache), layers.batchnorm_backward(dout, cache), strict=True
    ):
        np.testing.assert_allclose(stepwise, at_once, rtol=1e-3, atol=1e-5 * np.abs(at_once).max())


def test_tied_maxima_give_their_gradient_to_the_first(backend):
    _, cache = layers.max_pool_forward(backend.asarray(np.zeros((1, 1, 2, 4))), kernel_size=2)
    dx = layers.max_pool_backward(backend.asarray(np.array([[[[3.0, 5.0]]]])), cache)
    assert_array(dx, [[[[3, 0, 5, 0], [0, 0, 0, 0]]]], backend, "float64")


def test_padding_never_wins_a_max_pool(backend):
    x = backend.asarray(np.full((1, 1, 2, 2), -1e300))
    out, cache = layers.max_pool_forward(x, kernel_size=2, stride=1, padding=1)
    assert_array(out, np.full((1, 1, 3, 3), -1e300), backend, "float64")
    dx = layers.max_pool_backward(backend.asarray(np.ones((1, 1, 3, 3))), cache)
    assert_array(dx, [[[[4, 2], [2, 1]]]], backend, "float64")


@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 2, 2)])
def test_constant_channels_normalise_to_beta(backend, shape):
    x, gamma, beta = (backend.asarray(np.full(size, 2.0)) for size in (shape, (3,), (3,)))
    out, cache = layers.batchnorm_forward(x, gamma, beta, train=True)
    assert_array(out, np.full(shape, 2.0), backend, "float64")
    assert_array(layers.batchnorm_backward(x, cache)[0], np.zeros(shape), backend, "float64")


@rows("batchnorm", "layernorm", "groupnorm", among=ONE_OF_EACH)
@pytest.mark.parametrize("accelerated", ["1", "0"])
def test_norms_stay_finite_and_right_on_values_whose_squares_overflow(row, backend, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    inputs = row.draw("float32")
    inputs["x"] *= np.float32(1e30)
    out, cache = row.forward(**move(backend, inputs), **row.options)
    expected = getattr(reference, f"{row.layer}_forward")(
        **{name: a.astype("float64") for name, a in inputs.items()},
        **row.options,
        **({"running": None} if row.layer == "batchnorm" else {}),
    )[0]
    assert_array(out, expected, backend, "float32")
    for gradient in row.backward(contiguous(backend, np.ones_like(expected, np.float32)), cache):
        assert np.isfinite(backend.to_host(gradient)).all()
    for a in getattr(cache, "running", ())[:2]:
        assert np.isfinite(backend.to_host(a)).all()


def test_dropout_in_evaluation_returns_copies(backend):
    x = backend.asarray(np.ones((2, 3)))
    out, cache = layers.dropout_forward(x, keep_prob=0.5, seed=3, train=False)
    dx = layers.dropout_backward(x, cache)
    out[...] = 5.0
    dx[...] = 6.0
    assert_array(x, np.ones((2, 3)), backend, "float64", tolerance=0)


def test_dropout_keeps_everything_at_probability_one(backend):
    x = np.random.default_rng(0).standard_normal((4, 5))
    out, _ = layers.dropout_forward(backend.asarray(x), keep_prob=1, seed=3, train=True)
    assert_array(out, x, backend, "float64", tolerance=0)


# ---- threads and memory


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 8}, {"dilation": 2}], ids=str)
def test_conv_gives_the_same_bits_for_any_number_of_threads(options, dtype, monkeypatch):
    rng, channels = np.random.default_rng(0), 8 // options.get("groups", 1)
    x, w, b = (rng.standard_normal(shape).astype(dtype) for shape in ((37, 8, 16, 16), (16, channels, 3, 3), (16,)))
    results = []
    for threads in ("1", "2", "4"):
        monkeypatch.setenv("XPCONV_NUM_THREADS", threads)
        out, cache = layers.conv_forward(x, w, b, padding=1, **options)
        results.append((out, *layers.conv_backward(np.sin(out), cache)))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@few_examples
@given(
    geometry=geometries(),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.sampled_from([(1, 4, 1), (3, 4, 2), (2, 3, 3), (2, 32, 1), (5, 4, 4)]),
    filters=small,
)
def test_fast_convolutions_of_groups_and_with_dilation_equal_the_portable_ones(geometry, dilation, sizes, filters):
    (N, C, groups), (image, kernel_size, stride, padding) = sizes, geometry
    image = tuple(size + (k - 1) * (d - 1) for size, k, d in zip(image, kernel_size, dilation, strict=True))
    rng, results = np.random.default_rng(0), []
    x, w = (rng.standard_normal(shape) for shape in ((N, C, *image), (groups * filters, C // groups, *kernel_size)))
    for accelerated in ("1", "0"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XPCONV_ACCELERATE", accelerated)
            out, cache = layers.conv_forward(
                x, w, None, stride=stride, padding=padding, dilation=dilation, groups=groups
            )
            results.append([out, *layers.conv_backward(np.cos(out), cache)[:2]])
    for fast, plain in zip(*results, strict=True):
        assert_array(fast, plain, find_backend("numpy"), "float64")


def test_wide_dilated_convolutions_use_winograd():
    rng, error = np.random.default_rng(0), []
    x, w = (rng.standard_normal(shape) for shape in ((2, 32, 19, 21), (24, 32, 3, 3)))
    expected, _ = layers.conv_forward(x, w, None, padding=3, dilation=(3, 2))
    for algorithm in ("auto", "im2col"):
        out, _ = layers.conv_forward(
            x.astype("float32"), w.astype("float32"), None, padding=3, dilation=(3, 2), algorithm=algorithm
        )
        error.append(np.abs(out - expected).max())
    assert error[1] < error[0] < 1e-3


def test_conv_cache_holds_the_inputs_themselves(backend):
    x, w = backend.asarray(np.ones((2, 3, 5, 5))), backend.asarray(np.ones((4, 3, 3, 3)))
    _, cache = layers.conv_forward(x, w, None, padding=1)
    assert cache.x is x
    assert cache.w is w
    assert not any(hasattr(entry, "shape") for entry in cache[2:])


@pytest.mark.parametrize("spec", ["numpy", "array_api_strict"])
def test_conv_memory_does_not_grow_with_the_batch(spec, monkeypatch):
    monkeypatch.setenv("XPCONV_WORKSPACE", "1MiB")
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    backend = find_backend(spec)
    x, w = backend.asarray(np.ones((64, 4, 16, 16))), backend.asarray(np.ones((4, 4, 5, 5)))
    columns = 64 * 16 * 16 * 100 * 8
    layers.conv_backward(*layers.conv_forward(x, w, None, padding=2))  # warm up: one-time allocations do not count
    free_blocks()

    tracemalloc.start()
    try:
        out, cache = layers.conv_forward(x, w, None, padding=2)
        layers.conv_backward(out, cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * x.size * 8 + columns / 4


# ---- bad input, all layers


@pytest.mark.parametrize(
    ("here", "there"), [("numpy", "array_api_strict"), ("array_api_strict", "array_api_strict:device1")]
)
@rows_but(among=[row for row in ONE_OF_EACH if len(row.inputs) > 1])
def test_inputs_on_two_devices_are_refused(row, here, there):
    here, there, inputs = find_backend(here), find_backend(there), row.draw()
    *_, last = inputs
    moved = {**move(here, inputs), **move(there, {last: inputs[last]})}
    name = "running_mean" if last == "running" else last
    text = (
        rf"x is on {here.library} \(.*\) but {name} is on {there.library} \(.*\): "
        rf"move one of them, as in {name} = xpconv\.backend\.backend_of\(x\)\.asarray\({name}\)"
    )
    with pytest.raises(DeviceMismatchError, match=text):
        row.forward(**moved, **row.options)


@rows_but("avg_pool", "global_avg_pool", "pad_channels", "scale", "softmax_loss", "svm_loss")
def test_gradient_on_another_device_is_refused(row):
    inputs, dout, *_ = row.expected("float64")
    _, cache = row.forward(**move(find_backend("array_api_strict"), inputs), **row.options)
    with pytest.raises(DeviceMismatchError, match=r"dout is on numpy \(cpu\) but \w+ is on array_api_strict"):
        row.backward(dout, cache)


@rows_but("softmax_loss", "svm_loss")
def test_gradient_of_another_shape_is_refused(row):
    inputs, dout, *_ = row.expected("float64")
    _, cache = row.forward(**inputs, **row.options)
    text = f"dout has shape {(*dout.shape, 1)}; expected the shape of the layer's output, {dout.shape}"
    with pytest.raises(ArgumentError, match=re.escape(text)):
        row.backward(dout[..., None], cache)


@rows_but(among=[row for row in ONE_OF_EACH if len(row.differentiable) > 1])
def test_mixed_dtypes_are_refused(row):
    inputs = row.draw()
    *_, last = row.differentiable
    with pytest.raises(
        ArgumentTypeError,
        match=rf"x has dtype float64 but {last} has dtype float32: cast one of them, "
        rf"as in xp.astype\({last}, x.dtype\)",
    ):
        row.forward(**{**inputs, last: inputs[last].astype(np.float32)}, **row.options)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "complex128"])
@rows_but()
def test_arrays_other_than_float32_and_float64_are_refused(row, dtype):
    inputs = row.draw()
    text = rf"x has dtype {dtype}; expected float32 or float64: pass xp.astype\(x, xp.float32\)"
    with pytest.raises(ArgumentTypeError, match=text), np.errstate(invalid="ignore"):
        row.forward(**{**inputs, "x": inputs["x"].astype(dtype)}, **row.options)


@rows_but()
def test_list_instead_of_an_array_is_refused(row):
    inputs = row.draw()
    with pytest.raises(ArgumentTypeError, match=r"x is a list; expected an array: pass get_backend\(\)\.asarray\(x\)"):
        row.forward(**{**inputs, "x": inputs["x"].tolist()}, **row.options)


@rows_but(*ELEMENTWISE)
def test_empty_batch_is_refused(row, backend):
    inputs = row.draw()
    inputs["x"] = inputs["x"][:0]
    if "y" in inputs:
        inputs["y"] = inputs["y"][:0]
    with pytest.raises(ArgumentError, match=r"x has shape \(0, .*; expected \(N, .*\) and none of its sizes 0"):
        row.forward(**move(backend, inputs), **row.options)


@rows(*ELEMENTWISE, among=ONE_OF_EACH)
def test_elementwise_layers_accept_an_empty_batch(row, backend):
    empty = backend.asarray(np.zeros((0, 3), dtype=np.float32))
    out, cache = row.forward(empty, **row.options)
    assert_array(out, np.zeros((0, 3)), backend, "float32")
    assert_array(row.backward(empty, cache)[0], np.zeros((0, 3)), backend, "float32")


# ---- bad input, layer by layer


def zeros(*shape):
    return np.zeros(shape)


images, filters = zeros(2, 3, 5, 5), zeros(4, 3, 3, 3)
scores, y = zeros(3, 4), np.array([0, 1, 2])

BAD_SHAPES = {
    "affine x without features": (
        lambda: layers.affine_forward(zeros(4), zeros(4, 2), None),
        "x has shape (4,); expected (N, D",
    ),
    "affine w for other features": (
        lambda: layers.affine_forward(zeros(4, 2, 3), zeros(5, 2), None),
        "w has shape (5, 2); expected (6, M)",
    ),
    "affine b of another size": (
        lambda: layers.affine_forward(zeros(4, 5), zeros(5, 2), zeros(3)),
        "b has shape (3,); expected (2,)",
    ),
    "conv x without channels": (
        lambda: layers.conv_forward(zeros(5, 5), filters, None),
        "x has shape (5, 5); expected (N, C, H, W)",
    ),
    "conv channels": (
        lambda: layers.conv_forward(images, zeros(4, 2, 3, 3), None),
        "w has shape (4, 2, 3, 3); expected (F, 3, KH, KW)",
    ),
    "conv bias": (lambda: layers.conv_forward(images, filters, zeros(3)), "b has shape (3,); expected (4,)"),
    "conv column bias": (
        lambda: layers.conv_forward(images, filters, zeros(4, 1)),
        "b has shape (4, 1); expected (4,)",
    ),
    "conv without filters": (
        lambda: layers.conv_forward(images, zeros(0, 3, 3, 3), None),
        "w has shape (0, 3, 3, 3); expected (F, 3, KH, KW) and none of its sizes 0",
    ),
    "conv window too high": (
        lambda: layers.conv_forward(images, zeros(4, 3, 8, 3), None, padding=1),
        "the window's height is 8 but the padded image's is 7: take a smaller window",
    ),
    "conv window too wide": (
        lambda: layers.conv_forward(images, zeros(4, 3, 3, 6), None),
        "the window's width is 6 but the padded image's is 5: take a smaller window",
    ),
    "conv stride 0": (lambda: layers.conv_forward(images, filters, None, stride=0), "stride is 0; expected 1 or more"),
    "conv stride too large": (
        lambda: layers.conv_forward(images, filters, None, stride=2**31),
        "stride is 2147483648; expected 2147483647 or less",
    ),
    "conv padding -1": (
        lambda: layers.conv_forward(images, filters, None, padding=(0, -1)),
        "padding is (0, -1); expected 0 or more",
    ),
    "conv padding name": (
        lambda: layers.conv_forward(images, filters, None, padding="valid"),
        "padding is 'valid'; expected 'same' or an int, a pair of ints (height, width) or two pairs of ints",
    ),
    "conv filters without axes": (
        lambda: layers.conv_forward(images, zeros(), None),
        "w has shape (); expected (F, 3, KH, KW)",
    ),
    "conv filters of too few axes": (
        lambda: layers.conv_forward(images, zeros(3), None, groups=2),
        "w has shape (3,); expected (F, C / groups, KH, KW)",
    ),
    "pad_channels to too few": (
        lambda: layers.pad_channels_forward(images, channels=2),
        "channels is 2; expected at least the 3 channels of x",
    ),
    "pad_channels to too many": (
        lambda: layers.pad_channels_forward(images, channels=2**40),
        "channels is 1099511627776; expected less, since an image has at most",
    ),
    "conv groups": (
        lambda: layers.conv_forward(images, filters, None, groups=2),
        "groups is 2; expected a divisor of the 3 channels of x and the 4 filters",
    ),
    "conv dilation 0": (
        lambda: layers.conv_forward(images, filters, None, dilation=(1, 0)),
        "dilation is (1, 0); expected 1 or more",
    ),
    "conv dilated window too wide": (
        lambda: layers.conv_forward(images, filters, None, dilation=(1, 3)),
        "the window's width is 7 but the padded image's is 5: take a smaller window",
    ),
    "conv algorithm": (
        lambda: layers.conv_forward(images, filters, None, algorithm="fft"),
        "algorithm is 'fft'; expected",
    ),
    "max pool rank": (
        lambda: layers.max_pool_forward(zeros(3, 5, 5), kernel_size=2),
        "x has shape (3, 5, 5); expected (N, C, H, W)",
    ),
    "max pool size 0": (lambda: layers.max_pool_forward(images, kernel_size=0), "kernel_size is 0; expected 1 or more"),
    "max pool window": (lambda: layers.max_pool_forward(images, kernel_size=6), "the window's height is 6"),
    "max pool padding": (
        lambda: layers.max_pool_forward(images, kernel_size=2, padding=2),
        "padding is ((2, 2), (2, 2)) with windows of (2, 2) pixels; expected less padding",
    ),
    "avg pool rank": (
        lambda: layers.avg_pool_forward(zeros(5, 5), kernel_size=2),
        "x has shape (5, 5); expected (N, C, H, W)",
    ),
    "avg pool padding": (
        lambda: layers.avg_pool_forward(images, kernel_size=(3, 1), padding=(0, 1)),
        "padding is ((0, 0), (1, 1)) with windows of (3, 1) pixels; expected less padding",
    ),
    "global avg pool rank": (
        lambda: layers.global_avg_pool_forward(zeros(3, 5)),
        "x has shape (3, 5); expected (N, C, H, W)",
    ),
    "batchnorm rank": (
        lambda: layers.batchnorm_forward(zeros(2, 3, 4), zeros(3), zeros(3), train=True),
        "x has shape (2, 3, 4); expected (N, C)",
    ),
    "batchnorm gamma": (
        lambda: layers.batchnorm_forward(images, zeros(4), zeros(3), train=True),
        "gamma has shape (4,); expected (3,)",
    ),
    "batchnorm beta": (
        lambda: layers.batchnorm_forward(images, zeros(3), zeros(1, 3, 1, 1), train=True),
        "beta has shape (1, 3, 1, 1); expected (3,)",
    ),
    "batchnorm negative variance": (
        lambda: layers.batchnorm_forward(images, zeros(3), zeros(3), (zeros(3), zeros(3) - 1e-3), train=False),
        "running_var is -0.001 somewhere; expected variances of 0 or more",
    ),
    "batchnorm eps 0": (
        lambda: layers.batchnorm_forward(images, zeros(3), zeros(3), train=True, eps=0),
        "eps is 0; expected a number from 1e-30 to 1e30",
    ),
    "batchnorm running": (
        lambda: layers.batchnorm_forward(images, zeros(3), zeros(3), (zeros(3), zeros(2)), train=False),
        "running_var has shape (2,); expected (3,)",
    ),
    "layernorm rank": (
        lambda: layers.layernorm_forward(zeros(3), zeros(3), zeros(3)),
        "x has shape (3,); expected (N, D)",
    ),
    "layernorm gamma": (
        lambda: layers.layernorm_forward(zeros(2, 3, 4), zeros(3), zeros(3, 4)),
        "gamma has shape (3,); expected (3, 4)",
    ),
    "layernorm beta": (
        lambda: layers.layernorm_forward(zeros(2, 3), zeros(3), zeros(1)),
        "beta has shape (1,); expected (3,)",
    ),
    "groupnorm rank": (
        lambda: layers.groupnorm_forward(zeros(3), zeros(3), zeros(3), groups=1),
        "x has shape (3,); expected (N, C",
    ),
    "groupnorm gamma": (
        lambda: layers.groupnorm_forward(images, zeros(1, 3), zeros(3), groups=1),
        "gamma has shape (1, 3); expected (3,)",
    ),
    "groups do not divide": (
        lambda: layers.groupnorm_forward(images, zeros(3), zeros(3), groups=2),
        "groups is 2; expected a divisor of the 3 channels of x",
    ),
    "no groups": (
        lambda: layers.groupnorm_forward(images, zeros(3), zeros(3), groups=0),
        "groups is 0; expected an int, 1 or more",
    ),
    "dropout keeps nothing": (
        lambda: layers.dropout_forward(images, keep_prob=0, seed=1, train=True),
        "keep_prob is 0; expected a probability from 2**-32 to 1",
    ),
    "dropout keeps less than a hash can tell": (
        lambda: layers.dropout_forward(images, keep_prob=1e-10, seed=1, train=True),
        "keep_prob is 1e-10; expected a probability from 2**-32 to 1",
    ),
    "dropout keeps too much": (
        lambda: layers.dropout_forward(images, keep_prob=1.5, seed=1, train=True),
        "keep_prob is 1.5; expected a probability from 2**-32 to 1",
    ),
    "dropout seed": (
        lambda: layers.dropout_forward(images, keep_prob=0.5, seed=2**32, train=True),
        "seed is 4294967296; expected an int from 0 to 4294967295",
    ),
    "scores of one sample": (lambda: layers.softmax_loss(zeros(4), y), "x has shape (4,); expected (N, C)"),
    "label count": (
        lambda: layers.softmax_loss(scores, np.array([0, 1])),
        "y has shape (2,); expected integer labels (3,)",
    ),
    "labels one-hot floats": (
        lambda: layers.svm_loss(scores, np.eye(3, 4)),
        "y has shape (3, 4); expected integer labels (3,): if they are one-hot, pass xp.argmax(y, axis=1)",
    ),
    "probabilities of other classes": (
        lambda: layers.softmax_loss(scores, np.eye(3, 5)),
        "y has shape (3, 5); expected the probability of each class, (3, 4), as x has, or integer labels (3,)",
    ),
    "probabilities that do not add up": (
        lambda: layers.softmax_loss(scores, np.eye(3, 4) + 0.25),
        "y has a least value of 0.25, and its rows add up to 1 within 1; expected the probability of each class",
    ),
    "probabilities below 0": (
        lambda: layers.softmax_loss(scores, np.array([[2.0, -1, 0, 0]] * 3)),
        "y has a least value of -1, and its rows add up to 1 within 0; expected the probability",
    ),
    "probabilities NaN": (
        lambda: layers.softmax_loss(scores, np.full((3, 4), np.nan)),
        "y has a least value of nan",
    ),
    "label smoothing": (
        lambda: layers.softmax_loss(scores, y, label_smoothing=1.5),
        "label_smoothing is 1.5; expected a number from 0 to 1",
    ),
    "loss reduction": (
        lambda: layers.softmax_loss(scores, y, reduction="none"),
        "reduction is 'none'; expected mean or sum",
    ),
    "class weight negative": (
        lambda: layers.softmax_loss(scores, y, class_weights=[1, 2, -1, 3]),
        "class_weights is -1; expected a finite number, 0 or more",
    ),
    "class weights NaN": (
        lambda: layers.softmax_loss(scores, y, class_weights=np.array([1, np.nan, 1, 3])),
        "class_weights has a negative, infinite or NaN weight; expected finite weights, 0 or more",
    ),
    "class weights of other classes": (
        lambda: layers.softmax_loss(scores, y, class_weights=[1, 2, 3]),
        "class_weights has shape (3,); expected (4,)",
    ),
    "labels in a column": (
        lambda: layers.softmax_loss(scores, y[:, None]),
        "y has shape (3, 1); expected integer labels (3,): pass y[:, 0]",
    ),
    "conv NHWC": (
        lambda: layers.conv_forward(np.moveaxis(images, 1, -1), filters, None),
        "channels last (NHWC); expected them first, (N, C, H, W): pass xp.moveaxis(x, -1, 1)",
    ),
    "batchnorm NHWC": (
        lambda: layers.batchnorm_forward(np.moveaxis(images, 1, -1), zeros(3), zeros(3), train=True),
        "with its 3 channels last (NHWC); expected them first",
    ),
    "groupnorm NHWC": (
        lambda: layers.groupnorm_forward(np.moveaxis(images, 1, -1), zeros(3), zeros(3), groups=1),
        "with its 3 channels last (NHWC); expected them first",
    ),
    "gamma number": (lambda: layers.batchnorm_forward(images, zeros(), zeros(3), train=True), "gamma has shape ()"),
    "labels one-hot": (
        lambda: layers.svm_loss(scores, np.eye(3, 4, dtype=np.int64)),
        "y has shape (3, 4); expected integer labels (3,): if they are one-hot, pass xp.argmax(y, axis=1)",
    ),
    "label too large": (
        lambda: layers.softmax_loss(scores, np.array([0, 4, 1])),
        "y has labels from 0 to 4; expected 0 to 3, one for each of the 4 columns of x",
    ),
    "label negative": (
        lambda: layers.svm_loss(scores, np.array([-1, 3, 1])),
        "y has labels from -1 to 3; expected 0 to 3",
    ),
}

BAD_TYPES = {
    "conv stride float": (
        lambda: layers.conv_forward(images, filters, None, stride=1.5),
        "stride is 1.5; expected an int or a pair of ints",
    ),
    "conv padding triple": (
        lambda: layers.conv_forward(images, filters, None, padding=(1, 1, 1)),
        "padding is (1, 1, 1); expected 'same' or an int, a pair of ints (height, width) or two pairs",
    ),
    "pool size bool": (
        lambda: layers.max_pool_forward(images, kernel_size=True),
        "kernel_size is True; expected an int or a pair",
    ),
    "batchnorm train": (
        lambda: layers.batchnorm_forward(images, zeros(3), zeros(3), train="test"),
        "train is 'test'; expected True or False",
    ),
    "cache in a tuple": (
        lambda: layers.relu_backward(images, (layers.relu_forward(images)[1], None)),
        "cache is a tuple; expected the ReluCache that the forward pass returned",
    ),
    "groups float": (
        lambda: layers.groupnorm_forward(images, zeros(3), zeros(3), groups=1.0),
        "groups is 1.0; expected an int",
    ),
    "dropout keep_prob": (
        lambda: layers.dropout_forward(images, keep_prob="0.5", seed=1, train=True),
        "keep_prob is '0.5'; expected a probability",
    ),
    "labels float": (
        lambda: layers.softmax_loss(scores, np.array([0.0, 1.0, 2.0])),
        "y has dtype float64; expected integer labels: pass xp.astype(y, xp.int64)",
    ),
    "gradient of another dtype than the derivative": (
        lambda: layers.gelu_backward(scores, layers.gelu_forward(scores.astype("float32"))[1]),
        "dout has dtype float64 but derivative has dtype float32: cast one of them",
    ),
    "probabilities of another dtype": (
        lambda: layers.softmax_loss(scores, np.eye(3, 4, dtype=np.float32)),
        "x has dtype float64 but y has dtype float32: cast one of them",
    ),
    "class weights of another dtype": (
        lambda: layers.softmax_loss(scores, y, class_weights=np.ones(4, np.float32)),
        "x has dtype float64 but class_weights has dtype float32: cast one of them",
    ),
    "class weights balanced": (
        lambda: layers.softmax_loss(scores, y, class_weights="balanced"),
        "class_weights is a str; expected an array",
    ),
    "labels bool": (
        lambda: layers.svm_loss(scores, np.array([True, False, True])),
        "y has dtype bool; expected integer labels",
    ),
    "forward's pair as x": (
        lambda: layers.relu_forward(layers.affine_forward(zeros(2, 3), zeros(3, 4), None)),
        "x is a pair of ndarray and AffineCache; expected an array: a forward pass returns (out, cache)",
    ),
    "loss's pair as dout": (
        lambda: layers.relu_backward(layers.softmax_loss(scores, y), layers.relu_forward(scores)[1]),
        "dout is a pair of float64 and ndarray; expected an array: a forward pass returns (out, cache) and a loss",
    ),
    "labels list": (lambda: layers.softmax_loss(scores, [0, 1, 2]), "y is a list; expected an array"),
    "b number": (lambda: layers.affine_forward(zeros(2, 3), zeros(3, 4), 0.0), "b is a float; expected an array"),
}


@pytest.mark.parametrize(("call", "text"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_bad_value_is_refused_with_what_was_expected(call, text):
    with pytest.raises(ArgumentError, match=re.escape(text)):
        call()


@pytest.mark.parametrize(("call", "text"), BAD_TYPES.values(), ids=BAD_TYPES)
def test_bad_type_is_refused_with_what_was_expected(call, text):
    with pytest.raises(ArgumentTypeError, match=re.escape(text)):
        call()


def test_padded_images_have_no_more_pixels_than_32_bits_count():
    assert window_output((3, 1, 2**31 - 1), make_window(1)) == (1, 2**31 - 1)
    for shape, padding in [((3, 2, 2**30), (0, 0)), ((3, 4, 5), (50_000, 30_000)), ((3, 1, 4), (0, 2**30))]:
        sides = tuple((size, size) for size in padding)
        with pytest.raises(ArgumentError, match=rf"padding is {re.escape(str(sides))}; expected less, since .* pixels"):
            window_output(shape, make_window(1, padding=padding))


def test_low_scores_raise_no_underflow():
    with np.errstate(all="raise"):
        loss, dx = layers.softmax_loss(np.array([[0.0, -1000.0]]), np.array([0]))
    assert float(loss) == 0
    assert dx.tolist() == [[0.0, 0.0]]


def test_layers_contain_no_asserts():
    """python -O removes asserts, so no check may be an assert."""
    sources = [sys.modules[getattr(layers, name).__module__].__file__ for name in layers.__all__]
    for path in sorted(set(sources)):
        with open(path, encoding="utf-8") as file:
            assert not re.search(r"^\s*assert ", file.read(), flags=re.MULTILINE), path
