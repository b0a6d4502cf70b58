"""Test the CUDA kernels without a GPU: the emulated CuPy in cupy/ runs them on the CPU and checks every memory access.

Each kernel is compared with the portable version in float64, on random shapes and memory layouts, once with the number
of blocks that a GPU gets and also with few blocks, so that each loops several times. `nox -s kernels` puts the emulated
CuPy on the path.
"""

import os
import shutil
from itertools import product, zip_longest
from types import SimpleNamespace

import numpy as np
import pytest

try:
    import cupy
except ImportError:
    cupy = None
if not hasattr(cupy, "emulated"):
    pytest.skip("CuPy is not the emulated one: run nox -s kernels", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("g++ is not installed", allow_module_level=True)

from xpconv.errors import ArgumentError
from xpconv.layers import norm
from xpconv.ops import tiling
from xpconv.ops.cupy import _conv, _elementwise, _finite, _groups, _launch, _loss, _norm, _pool, _windows
from xpconv.ops.dispatch import accelerated_versions
from xpconv.ops.windows import Window

CASES = int(os.environ.get("EMULATED_CASES", "60"))  # per operation and dtype
TOLERANCE = {"float16": 1e-3, "float32": 3e-6, "float64": 1e-13}  # relative to the largest value
VERSIONS = accelerated_versions("cupy")

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_activation = pytest.mark.parametrize("dtype", list(TOLERANCE))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Make portable versions call portable versions only, with the tiles that CuPy arrays get."""
    monkeypatch.setenv("XPCONV_ACCELERATE", "0")
    monkeypatch.setattr(tiling, "library_of", lambda a: type(a).__module__.partition(".")[0])


def cases(monkeypatch, seed, count=CASES):
    """Yield random generators, each time with a different limit on the number of blocks."""
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        limit_blocks(monkeypatch, *[(1056, 65535), (7, 3), (2, 1)][k % 3])
        yield rng


def limit_blocks(monkeypatch, reduction_blocks, max_grid_y):
    for module in (_launch, _loss, _finite, _elementwise):
        monkeypatch.setattr(module, "reduction_blocks", lambda: reduction_blocks)
    monkeypatch.setattr(_launch, "_MAX_GRID_Y", max_grid_y)
    _windows.windows_and_grids.cache_clear()
    _groups._plan_sums.cache_clear()


def any_of(rng, *values):
    return values[rng.integers(len(values))]


def draw(rng, *shape):
    """Return random values: sometimes rounded to integers, sometimes with some NaN and infinite values."""
    kind = rng.integers(6)
    a = rng.standard_normal(shape) if kind > 1 else np.round(rng.standard_normal(shape))
    if kind == 5:
        places = rng.random(shape)
        for k, value in enumerate((np.nan, np.inf, -np.inf)):
            a[(0.05 * k < places) & (places < 0.05 * k + 0.05)] = value
    return a


def place(rng, a, dtype):
    """Return a CuPy array with the values of `a` in a random memory layout."""
    layout = rng.integers(5) if a.ndim else 0
    if layout == 1:
        return cupy.asarray(np.asfortranarray(a, dtype))
    if layout == 2:
        wide = cupy.empty((*a.shape[:-1], 2 * a.shape[-1] + 1), dtype)
        wide[..., 1::2] = a
        return wide[..., 1::2]
    if layout == 3:
        return cupy.asarray(a[::-1], dtype)[::-1]
    return cupy.asarray(np.ascontiguousarray(a), dtype)


def parameter(dtype):
    """Return the dtype of parameters and sums where activations have the given dtype."""
    return "float32" if dtype == "float16" else dtype


def exact(a):
    """Return a NumPy array, with floating-point values converted to float64."""
    a = np.array(a)
    return a.astype(np.float64) if a.dtype.kind == "f" else a


def largest(a):
    return np.max(np.abs(a))


def arrays(result):
    return [a for a in (result if isinstance(result, tuple) else (result,)) if a is not None]


def compare(actual, expected, dtype, tolerance=None, scale=()):
    """Compare all arrays; `scale` is, for each of the first ones, the size of terms that may cancel in its sums."""
    for one, other, terms in zip_longest(arrays(actual), arrays(expected), scale, fillvalue=0.0):
        other = np.asarray(other)
        assert isinstance(one, cupy.ndarray)
        assert one.shape == other.shape
        assert one.dtype in ((dtype, parameter(dtype)) if other.dtype == np.float64 else (other.dtype,))
        finite = np.isfinite(other)
        limit = (TOLERANCE[dtype] if tolerance is None else tolerance) * np.max(np.abs(other[finite]), initial=terms)
        np.testing.assert_allclose(exact(one), other, rtol=0, atol=limit)


def check(name, given, options, dtype, tolerance=None, scale=()):
    portable, fast = VERSIONS[name]
    unpack = [exact(a) if isinstance(a, np.ndarray) else a for a in given]
    before = [np.array(a) for a in given if isinstance(a, np.ndarray)]
    with np.errstate(all="ignore"):
        expected = portable(*unpack, **options)
    actual = fast(*given, **options)
    compare(actual, expected, dtype, tolerance, scale)
    for a, old in zip((a for a in given if isinstance(a, np.ndarray)), before, strict=True):
        assert np.array_equal(a, old, equal_nan=a.dtype.kind == "f")
    return actual, expected


# ---- windows


def geometry(rng, pool=False):
    """Return a shape of images and a window that fits it."""
    N, C = any_of(rng, 1, 2, 3, 5, 17), any_of(rng, 1, 1, 2, 3, 7, 31)
    most = any_of(rng, 4, 9, 23) if N * C < 60 else 9
    dilation = (1, 1) if rng.integers(2) else tuple(int(d) for d in rng.integers(1, 4, 2))
    sides, size, image = [], [], []
    for pixels, d in zip(rng.integers(1, most + 1, 2), dilation, strict=True):
        before, after = (int(p) for p in rng.integers(0, any_of(rng, 1, 2, 5), 2))
        least = max(before, after) + 1 if pool else 1  # Each window of a pool needs a pixel.
        size.append(int(rng.integers(least, max(least, min(pixels + before + after, any_of(rng, 3, 5, 40))) + 1)))
        image.append(max(int(pixels), d, (size[-1] - 1) * d + 1 - before - after))
        sides.append((before, after))
    stride = tuple(int(s) for s in rng.integers(1, any_of(rng, 2, 4, 8), 2))
    return (N, C, *image), Window(tuple(size), stride, tuple(sides), dilation)


def columns(shape, window):
    return shape[1] * np.prod(window.kernel_size), shape[0] * np.prod(window.output_size(shape[2:]))


@every_activation
def test_unfold_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 1):
        shape, window = geometry(rng)
        check("unfold", [place(rng, draw(rng, *shape), dtype), window], {}, dtype, tolerance=0)


@every_activation
def test_fold_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 2):
        shape, window = geometry(rng)
        cols = rng.standard_normal(columns(shape, window))
        check("fold", [place(rng, cols, dtype), shape, window], {}, dtype)


@every_activation
def test_folding_at_stride_1_gives_the_bits_of_the_general_kernel(monkeypatch, dtype):
    for rng in cases(monkeypatch, 21, CASES // 2):
        shape, window = geometry(rng)
        shape, window = (*shape[:3], any_of(rng, 1, 2) * shape[3]), window._replace(stride=(1, 1))
        cols = cupy.asarray(rng.standard_normal(columns(shape, window)), dtype)
        bias = cupy.asarray(rng.standard_normal(shape[1]), parameter(dtype)) if rng.integers(2) else None
        x, expected = cupy.empty(shape, dtype), cupy.empty(shape, dtype)
        _windows.fold_into(x, cols, window, bias)
        _, windows, _, (grid, _) = _windows.windows_and_grids(shape, window, x.dtype)
        _launch.launch("fold", expected.dtype, grid, cols, bias, expected, windows)
        assert x.tobytes() == expected.tobytes()


@every_activation
def test_max_pool_and_its_backward_pass_equal_the_portable_versions(monkeypatch, dtype):
    for rng in cases(monkeypatch, 3):
        shape, window = geometry(rng, pool=True)
        x = draw(rng, *shape)
        (out, places), _ = check("max_pool", [place(rng, x, dtype), window], {}, dtype, tolerance=0)
        dout = place(rng, rng.standard_normal(out.shape), dtype)
        check("max_pool_backward", [dout, place(rng, np.array(places), places.dtype), shape, window], {}, dtype)


@every_activation
def test_average_pools_and_their_gradients_equal_the_portable_versions(monkeypatch, dtype):
    for rng in cases(monkeypatch, 25, CASES // 2):
        shape, window = geometry(rng, pool=True)
        output = window.output_size(shape[2:])
        rows, columns = (int(rng.integers(1, 9)) for _ in output)
        counts = (rows,) * output[0], (columns,) * output[1]
        check("avg_pool", [place(rng, draw(rng, *shape), dtype), window, counts], {}, dtype)
        dout = place(rng, rng.standard_normal((*shape[:2], *output)), dtype)
        check("avg_pool_backward", [dout, shape, window, counts], {}, dtype)


@every_activation
def test_pools_without_overlaps_and_their_gradients_equal_the_portable_versions(monkeypatch, dtype):
    for rng in cases(monkeypatch, 22, CASES // 2):
        rows, columns = any_of(rng, 1, 2, 3), any_of(rng, 1, 2, 3, 4, 8, 16)
        x = place(
            rng, draw(rng, any_of(rng, 1, 3), any_of(rng, 1, 5), 2 * rows, 2 * columns + any_of(rng, 0, 0, 1)), dtype
        )
        size = any_of(rng, (2, 2), (2, 2), (2, 1), (1, 3))
        window = Window(size, size) if size[1] <= x.shape[3] else Window((2, 2), (2, 2))
        (out, places), _ = check("max_pool", [x, window], {}, dtype, tolerance=0)
        dout = place(rng, rng.standard_normal(out.shape), dtype)
        check("max_pool_backward", [dout, place(rng, np.array(places), places.dtype), x.shape, window], {}, dtype)
        counts = tuple((k,) * n for k, n in zip(window.kernel_size, window.output_size(x.shape[2:]), strict=True))
        check("avg_pool", [x, window, counts], {}, dtype)
        check("avg_pool_backward", [dout, x.shape, window, counts], {}, dtype)


@every_activation
@pytest.mark.parametrize(
    ("values", "best", "winner"),
    [
        ([1, np.nan, 2, np.nan], np.nan, 1),
        ([-np.inf, -np.inf, -np.inf, np.nan], np.nan, 3),
        ([-np.inf] * 4, -np.inf, 0),
        ([np.inf, 1, np.inf, 1], np.inf, 0),
        ([0.0, -0.0, 0.0, -1], 0, 0),
        ([np.inf, np.nan, np.inf, 1], np.nan, 1),
    ],
)
def test_max_pool_prefers_nan_and_the_first_of_tied_maxima(dtype, values, best, winner):
    x = cupy.asarray(np.reshape(values, (1, 1, 2, 2)), dtype)
    found, where = _pool.max_pool(x, Window((2, 2), (2, 2)))
    assert np.array_equal(found.ravel(), [best], equal_nan=True)
    assert where.ravel().tolist() == [winner]
    found, where = _pool.max_pool(x, Window((5, 5), padding=((2, 2), (2, 2))))  # now the window begins in the padding
    assert np.array_equal(found[0, 0, 0, 0], best, equal_nan=True)
    assert where[0, 0, 0, 0] == (winner // 2 + 2) * 5 + winner % 2 + 2


@every_activation
@pytest.mark.parametrize("size", [(16, 16), (16, 17), (1, 257), (40, 40)])
def test_indices_in_large_windows_have_a_dtype_that_holds_them(dtype, size):
    rng = np.random.default_rng(size)
    x = place(rng, rng.standard_normal((2, 3, 41, 260)), dtype)
    (out, places), _ = check("max_pool", [x, Window(size, (7, 3))], {}, dtype, tolerance=0)
    assert places.dtype == ("uint8" if size == (16, 16) else "int64")
    check("max_pool_backward", [out, places, x.shape, Window(size, (7, 3))], {}, dtype)


# ---- convolution


@every_activation
def test_convolution_and_its_gradients_equal_the_portable_versions(monkeypatch, dtype):
    for rng in cases(monkeypatch, 4):
        (N, C, *image), window = geometry(rng)
        groups = any_of(rng, 1, 1, C)
        F = groups * any_of(rng, 1, 2, 5)
        shapes = (N, C, *image), (F, C // groups, *window.kernel_size)
        x, w = (
            place(rng, rng.standard_normal(shape), kind)
            for shape, kind in zip(shapes, (dtype, parameter(dtype)), strict=True)
        )
        bias = place(rng, rng.standard_normal(F), parameter(dtype)) if rng.integers(2) else None
        monkeypatch.setenv("XPCONV_WORKSPACE", any_of(rng, "1GiB", "1B", f"{8 * 2 * N * w.size}B"))
        out, _ = check("convolve", [x, w, bias, window, groups, "auto"], {}, dtype, 10 * TOLERANCE[dtype])
        dout = place(rng, rng.standard_normal(out.shape), dtype)
        needed = bool(rng.integers(2)), bool(rng.integers(2))
        result, _ = check(
            "convolve_backward", [dout, x, w, window, groups, "auto", *needed], {}, dtype, 10 * TOLERANCE[dtype]
        )
        assert (result[0] is not None, result[2] is not None) == needed


@every_activation
def test_transposed_convolution_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 16):
        (N, C, *image), window = geometry(rng)
        groups = any_of(rng, 1, 1, C)
        F = groups * any_of(rng, 1, 2, 5)
        shapes = (N, F, *window.output_size(tuple(image))), (F, C // groups, *window.kernel_size)
        x, w = (
            place(rng, rng.standard_normal(shape), kind)
            for shape, kind in zip(shapes, (dtype, parameter(dtype)), strict=True)
        )
        bias = place(rng, rng.standard_normal(C), parameter(dtype)) if rng.integers(2) else None
        monkeypatch.setenv("XPCONV_WORKSPACE", any_of(rng, "1GiB", "1B", f"{8 * 2 * N * w.size}B"))
        check(
            "convolve_transposed", [x, w, bias, tuple(image), window, groups, "auto"], {}, dtype, 10 * TOLERANCE[dtype]
        )


# ---- normalisation


def statistics(rng):
    """Return the shapes of x and gamma, the options for `normalise`, and `param_axes`, as a layer has them."""
    N, C = any_of(rng, (1, 1), (1, 8), (2, 3), (2, 65), (3, 1), (7, 4), (40, 2), (131, 1), (5, 6))
    D = any_of(rng, 1, 1, 5, 49, 256, 300)
    G = any_of(rng, *(g for g in range(1, C + 1) if C % g == 0))
    rest = any_of(rng, (), (D,), (D, 2), (1, D))
    return any_of(
        rng,
        ((N, C, D), (1, C, 1), {"axes": (0, 2), "tile_axis": 1}, (0, 2)),  # batch norm
        ((N, C, *rest), (1, C, *rest), {"axes": tuple(range(1, 2 + len(rest))), "tile_axis": 0}, None),  # layer norm
        ((N, G, C // G, D), (1, G, C // G, 1), {"axes": (2, 3), "tile_axis": 0}, (3,)),  # group norm
        ((N, C, 1, D), (1, C, 1, 1), {"axes": (2, 3), "tile_axis": 0}, (3,)),  # instance norm
        ((N, C, D, 2), (1, C, 1, 1), {"axes": (1, 2, 3), "tile_axis": 0}, any_of(rng, (2, 3), (1, 2, 3))),
    )


@every_activation
def test_normalise_and_its_gradients_equal_the_portable_versions(monkeypatch, dtype):
    for rng in cases(monkeypatch, 5):
        shape, channels, options, param_axes = statistics(rng)
        x = place(rng, any_of(rng, 1, 0.01, 100) * rng.standard_normal(shape) + any_of(rng, 0, 0, 1, -3), dtype)
        gamma, beta = (place(rng, rng.standard_normal(channels), parameter(dtype)) for _ in range(2))
        options["eps"] = any_of(rng, 1e-1, 1e-5)
        _, (_, mean, _, inv_std) = check(
            "normalise",
            [x, gamma, beta],
            options,
            dtype,
            10 * TOLERANCE[dtype],
            [largest(x) / np.sqrt(options["eps"]) * largest(gamma)],
        )
        dout = place(rng, rng.standard_normal(shape), dtype)
        mean, inv_std = (place(rng, a, parameter(dtype)) for a in (mean, inv_std))
        del options["eps"]
        check(
            "normalise_backward",
            [dout, x, mean, inv_std, gamma],
            {"param_axes": param_axes or options["axes"], **options},
            dtype,
            10 * TOLERANCE[dtype],
            [largest(dout) * largest(gamma) * largest(inv_std), largest(dout) * largest((x - mean) * inv_std)],
        )


@every_activation
def test_a_norm_with_relu_has_the_bits_of_both_one_after_the_other(monkeypatch, dtype):
    for rng in cases(monkeypatch, 22, CASES // 2):
        shape, channels, options, param_axes = statistics(rng)
        x = any_of(rng, 1e-7, 1, 100) * draw(rng, *shape) + any_of(rng, 0, 0, 1e3)
        x = place(rng, np.where(rng.random(shape) < 0.1, 0, x), dtype)
        gamma, beta = (place(rng, draw(rng, *channels), parameter(dtype)) for _ in range(2))
        *norm, signs = _norm.normalise_relu(x, gamma, beta, eps=1e-5, **options)
        expected = _norm.normalise(x, gamma, beta, eps=1e-5, **options)
        out, mask = _elementwise.relu(expected[0])
        dout = place(rng, draw(rng, *shape), dtype)
        options["param_axes"] = param_axes or options["axes"]
        statistics_of_x = x, norm[1], norm[3], gamma
        grads = _norm.normalise_relu_backward(dout, signs, *statistics_of_x, **options)
        others = _norm.normalise_backward(_elementwise.relu_backward(dout, mask), *statistics_of_x, **options)
        for one, other in zip((*norm, *grads), (out, *expected[1:], *others), strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert one.tobytes() == other.tobytes()


def normalised(x):
    """Normalise x (N, C, L) over its images and pixels."""
    gamma, beta = (cupy.asarray(np.full((1, x.shape[1], 1), value), x.dtype) for value in (1, 0))
    return _norm.normalise(x, gamma, beta, axes=(0, 2), tile_axis=1, eps=1e-5)


@pytest.mark.parametrize("value", [1e3, 1e5, 1e6])
def test_statistics_far_from_zero_are_accurate(value):
    x = cupy.asarray(value + np.random.default_rng(6).standard_normal((8, 3, 100)), "float32")
    out, _, var, _ = normalised(x)
    mean, expected = (f(exact(x), axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
    np.testing.assert_allclose(var, expected, rtol=1e-5)
    np.testing.assert_allclose(out, (exact(x) - mean) / np.sqrt(expected + 1e-5), rtol=0, atol=1e-5)


def test_gradients_far_from_zero_are_accurate():
    rng = np.random.default_rng(6)
    x = cupy.asarray(1e6 + rng.standard_normal((8, 3, 100)), "float32")
    dout, gamma = cupy.asarray(rng.standard_normal(x.shape), "float32"), cupy.asarray(np.ones((1, 3, 1)), "float32")
    _, mean, _, inv_std = normalised(x)
    options = {"axes": (0, 2), "param_axes": (0, 2), "tile_axis": 1}
    results = _norm.normalise_backward(dout, x, mean, inv_std, gamma, **options)
    xhat = exact(x) - exact(x).mean(axis=(0, 2), keepdims=True)
    xhat /= np.sqrt((xhat * xhat).mean(axis=(0, 2), keepdims=True) + 1e-5)
    product = (exact(dout) * xhat).mean(axis=(0, 2), keepdims=True)
    dx = exact(dout) - exact(dout).mean(axis=(0, 2), keepdims=True) - xhat * product
    np.testing.assert_allclose(results[0], dx * exact(inv_std), rtol=0, atol=1e-4)
    np.testing.assert_allclose(results[1], product * 800, rtol=0, atol=1e-2)


@pytest.mark.parametrize("value", [0.3, 300.1, 900.7, 1100.3, 1e4, 1e5, 1e6])
def test_dgamma_of_nearly_constant_channels_keeps_its_digits(value):
    """The rounding error of the mean, times the sum of dout, must not be part of dgamma."""
    rng = np.random.default_rng(17)
    x = cupy.asarray(value + rng.standard_normal((16, 3, 2000)), "float32")
    dout, gamma = (
        cupy.asarray(10 + rng.standard_normal(x.shape), "float32"),
        cupy.asarray(np.ones((1, 3, 1)), "float32"),
    )
    _, mean, _, inv_std = normalised(x)
    options = {"axes": (0, 2), "param_axes": (0, 2), "tile_axis": 1}
    _, dgamma, _ = _norm.normalise_backward(dout, x, mean, inv_std, gamma, **options)
    centred = exact(x) - exact(x).mean(axis=(0, 2), keepdims=True)
    xhat = centred / np.sqrt((centred * centred).mean(axis=(0, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(dgamma, (exact(dout) * xhat).sum(axis=(0, 2), keepdims=True), rtol=0, atol=0.05)


@pytest.mark.parametrize("outlier", [0.0, 1.0, 1e4, -1e6])
def test_statistics_do_not_depend_on_an_outlier_that_comes_first(outlier):
    """The sums are of differences from a channel's first value."""
    x = np.random.default_rng(18).standard_normal((8, 3, 2000))
    x[0, :, 0] = outlier
    x = cupy.asarray(x, "float32")
    out, mean, var, _ = normalised(x)
    expected = exact(x).mean(axis=(0, 2), keepdims=True), exact(x).var(axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(var, expected[1], rtol=1e-6)
    np.testing.assert_allclose(out, (exact(x) - expected[0]) / np.sqrt(expected[1] + 1e-5), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("place", [0, 77])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_of_a_channel_with_a_nonfinite_value_are_not_finite(place, value):
    x = np.random.default_rng(19).standard_normal((1, 2, 100))
    x[0, 1, place] = value
    out, mean, var, inv_std = normalised(cupy.asarray(x, "float32"))
    for a in (mean, var, inv_std, out[..., 1:]):
        assert np.isfinite(a[0, 0]).all()
    assert not np.isfinite(mean[0, 1]).any()
    assert np.isnan(var[0, 1]).all()
    assert np.isnan(out[0, 1]).all()


@pytest.mark.parametrize("value", [100.3, 12345.678, 1e6 + 0.7])
def test_equal_values_are_normalised_to_zero(value):
    assert max(largest(normalised(cupy.asarray(np.full((1, 1, n), value), "float32"))[0]) for n in (77, 800)) < 1e-3


@pytest.mark.xfail(reason="squares beyond 1e308 overflow", strict=True)
def test_huge_float64_values_are_normalised():
    out, _, var, _ = normalised(cupy.asarray(1e200 * np.random.default_rng(0).standard_normal((4, 1, 50))))
    assert np.std(out) == pytest.approx(1)
    assert np.isfinite(var).all()


def test_a_variance_that_overflows_float32_stays_finite():
    x = cupy.asarray(1e25 * np.random.default_rng(0).standard_normal((4, 1, 300)), "float32")
    out, _, var, _ = normalised(x)
    assert 1e38 < var.item() < np.inf
    assert np.std(exact(out)) == pytest.approx(1, abs=1e-5)


@every_dtype
def test_norm_layers_give_the_same_results_with_the_kernels_as_without(monkeypatch, dtype):
    rng = np.random.default_rng(7)

    def through(name):
        def call(*given, **options):
            arrays = VERSIONS[name][1](*(cupy.asarray(a) for a in given), **options)
            return tuple(np.array(a) for a in arrays)

        return call

    for N, C, groups, image in [
        (6, 4, 2, (5, 3)),
        (1, 1, 1, (1, 1)),
        (3, 6, 6, (4, 4)),
        (2, 6, 1, (1, 1)),
        (5, 7, 1, ()),
    ]:
        x, dout = rng.standard_normal((2, N, C, *image)).astype(dtype)
        full, each = rng.standard_normal((2, C, *image)).astype(dtype), rng.standard_normal((2, C)).astype(dtype)
        results = []
        for names in ((), ("normalise", "normalise_backward")):
            result = []
            calls = [
                (norm.layernorm_forward, norm.layernorm_backward, full, {}),
                (norm.groupnorm_forward, norm.groupnorm_backward, each, {"groups": groups}),
            ]
            calls += [(norm.batchnorm_forward, norm.batchnorm_backward, each, {"train": True})] if N > 1 else []
            with monkeypatch.context() as patch:
                for name in names:
                    patch.setattr(norm, name, through(name))
                for forward, backward, (gamma, beta), options in calls:
                    out, cache = forward(x, gamma, beta, **options, eps=0.1)
                    result += [out, *backward(dout, cache)]
            results.append(result)
        for one, other in zip(*results, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=0, atol=30 * TOLERANCE[dtype] * (1 + np.max(np.abs(other))))


# ---- elementwise operations and losses


@every_activation
def test_relu_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 8, CASES // 4):
        shape = any_of(rng, (), (1,), (3, 5), (2, 3, 4, 5), (257,), (0, 3))
        (_, mask), _ = check("relu", [place(rng, draw(rng, *shape), dtype)], {}, dtype, tolerance=0)
        check("relu_backward", [place(rng, draw(rng, *shape), dtype), mask], {}, dtype, tolerance=0)


@every_activation
@pytest.mark.parametrize("gate", ["normal", "normal-tanh", "logistic"])
def test_gates_equal_the_portable_versions(monkeypatch, dtype, gate):
    sizes = (1, 5, 300) if dtype == "float16" else (1, 5, 1e30)
    for rng in cases(monkeypatch, 8, CASES // 8):
        x = place(rng, any_of(rng, *sizes) * draw(rng, *any_of(rng, (), (1,), (3, 5), (257,), (0, 3))), dtype)
        (out, derivative), _ = check("gated", [x, gate], {}, dtype, scale=[1, 1])
        check("gated_backward", [place(rng, draw(rng, *out.shape), dtype), derivative], {}, dtype)


@every_activation
def test_leaky_relu_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 8, CASES // 4):
        shape = any_of(rng, (), (1,), (3, 5), (2, 3, 4, 5), (257,), (0, 3))
        # The kernels for arrays that are not contiguous compute in float16 itself.
        layout = place if dtype != "float16" else lambda rng, a, dtype: cupy.asarray(np.array(a, order="C"), dtype)
        x, slope = layout(rng, draw(rng, *shape), dtype), any_of(rng, 0.0, 0.25, 2.0)
        tolerance = TOLERANCE[dtype] if dtype == "float16" else 0
        (_, mask), _ = check("leaky_relu", [x, slope], {}, dtype, tolerance)
        check("leaky_relu_backward", [layout(rng, draw(rng, *shape), dtype), mask, slope], {}, dtype, tolerance)


@every_dtype
def test_elementwise_operations_equal_the_portable_versions(monkeypatch, dtype):
    for rng in cases(monkeypatch, 8, CASES // 4):
        shape = any_of(rng, (), (1,), (3, 5), (2, 3, 4, 5), (257,), (0, 3))
        stats = [place(rng, draw(rng, 5), dtype) for _ in range(4)]
        for momentum, num_batches in product((0.0, 0.9, 1.0), (None, 0, 1, 1000)):
            count = None if num_batches is None else place(rng, np.full(1, float(num_batches)), dtype)
            check("update_running_stats", [*stats, momentum, count], {}, dtype)
        given = [place(rng, a, dtype) for a in (*rng.standard_normal((3, *shape)), rng.random(shape))]
        expected = [exact(a) for a in given]
        decay = any_of(rng, 1.0, 0.9)
        for version, them in zip(VERSIONS["adam_step"], (expected, given), strict=True):
            version(*them, 0.9, 0.999, 0.01, 1e-8, decay)
        compare(tuple(given), tuple(expected), dtype)
        rate = any_of(rng, 0.25, cupy.asarray(0.25, dtype))
        nesterov = *(place(rng, a, dtype) for a in rng.standard_normal((3, *shape))), rate, 0.9, any_of(rng, 0.0, 0.1)
        expected_step = *map(exact, nesterov[:3]), 0.25, *nesterov[4:]
        for version, them in zip(VERSIONS["nesterov_step"], (expected_step, nesterov), strict=True):
            version(*them)
        compare(nesterov[:3], expected_step[:3], dtype)
        VERSIONS["move_toward"][0](expected[0], expected[1], 0.25)
        VERSIONS["move_toward"][1](given[0], given[1], rate)
        compare(given[0], expected[0], dtype)


@every_dtype
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "rmsprop", "lion"])
def test_update_rules_equal_the_portable_versions(monkeypatch, dtype, name):
    for rng in cases(monkeypatch, 24, CASES // 6):
        shape, decay = any_of(rng, (), (1,), (3, 5), (257,)), any_of(rng, 0.0, 0.01)
        given = [place(rng, a, dtype) for a in (*rng.standard_normal((2, *shape)), rng.random(shape))]
        expected = [exact(a) for a in given]
        rate = any_of(rng, 0.25, cupy.asarray(0.25, dtype))
        for arrays, step in ((expected, 0.25), (given, rate)):
            numbers = {
                "sgd": (step, decay),
                "momentum": (step, 0.9, decay),
                "nesterov": (step, 0.9, decay),
                "rmsprop": (0.99, step, 1e-3, decay),
                "lion": (0.9, 0.99, step),
            }[name]
            version = VERSIONS[f"{name}_step"][arrays is given]
            version(*arrays[: 2 if name == "sgd" else 3], *numbers)
        compare(tuple(given), tuple(expected), dtype)
        direction = [[a.copy() for a in arrays] for arrays in (expected, given)]
        for arrays, version in zip(direction, VERSIONS["nesterov_direction"], strict=True):
            version(*arrays, 0.9)
        compare(tuple(direction[1]), tuple(direction[0]), dtype)


@every_dtype
def test_flush_denormals_writes_the_bits_of_the_portable_version(monkeypatch, dtype):
    portable, fast = VERSIONS["flush_denormals"]
    for rng in cases(monkeypatch, 15, CASES // 4):
        magnitudes = np.finfo(dtype).smallest_normal * 2.0 ** rng.integers(-10, 30, (7, 9))  # the threshold is 2**16
        values = np.where(rng.random((7, 9)) < 0.2, draw(rng, 7, 9), rng.choice([-1, 1], (7, 9)) * magnitudes)
        a = place(rng, values, dtype)
        expected = np.array(a)
        portable(expected)
        fast(a)
        assert a.tobytes() == expected.tobytes()
        assert not np.array_equal(expected, values.astype(dtype), equal_nan=True)


@every_dtype
def test_softmax_cross_entropy_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 9):
        N, C = any_of(rng, 1, 2, 7, 8, 9, 33, 250), any_of(rng, 1, 2, 10, 31, 32, 33, 100)
        x = any_of(rng, 1, 1, 100, 1e30) * draw(rng, N, C)
        y = place(rng, rng.integers(any_of(rng, 0, -2), C + any_of(rng, 0, 3), N), any_of(rng, "int64", "int32"))
        check("softmax_cross_entropy", [place(rng, x, dtype), y], {}, dtype, scale=[1, 1 / N])


@every_dtype
def test_cross_entropy_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 9):
        N, C = any_of(rng, 1, 2, 7, 8, 9, 33, 250), any_of(rng, 1, 2, 10, 31, 32, 33, 100)
        x = any_of(rng, 1, 1, 100, 1e30) * draw(rng, N, C)
        targets = place(rng, rng.random((N, C)) * (rng.random((N, C)) < 0.5), dtype)
        divisor = cupy.asarray(float(N), dtype)
        check("cross_entropy", [place(rng, x, dtype), targets, divisor], {}, dtype, scale=[C, C / N])


@every_dtype
def test_add_l2_penalty_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 10):
        shapes = [any_of(rng, (1,), (3, 5), (7, 3, 3, 3), (257,), (90, 50)) for _ in range(rng.integers(0, 5))]
        weights, grads = ([place(rng, rng.standard_normal(shape), dtype) for shape in shapes] for _ in range(2))
        loss, reg = cupy.asarray(rng.standard_normal(), dtype), any_of(rng, 0, 0.5, 1)
        expected = [exact(a) for a in grads]
        out = VERSIONS["add_l2_penalty"][0](exact(loss), [exact(W) for W in weights], expected, reg)
        compare(VERSIONS["add_l2_penalty"][1](loss, weights, grads, reg), np.asarray(out), dtype)
        compare(tuple(grads), tuple(expected), dtype)


def test_empty_weights_add_nothing_to_the_penalty():
    weights, grads = ([cupy.asarray(np.ones(size), "float32") for size in (3, 0, 2)] for _ in range(2))
    assert _loss.add_l2_penalty(cupy.asarray(1.0, "float32"), weights, grads, 0.5) == 1 + 0.25 * 5
    assert [grad.tolist() for grad in grads] == [[1.5] * 3, [], [1.5] * 2]


@every_dtype
def test_largest_finite_equals_the_portable_version(monkeypatch, dtype):
    for rng in cases(monkeypatch, 11):
        arrays = []
        for _ in range(any_of(rng, 1, 1, 2, 7, 8, 9, 17)):
            a = any_of(rng, 1, 1e-30, -1) * draw(rng, *any_of(rng, (), (1,), (3, 5), (257,), (40, 3, 3, 3), (1025, 5)))
            if rng.integers(4) == 0:
                a = np.full_like(a, any_of(rng, np.nan, np.inf, -np.inf))
            arrays.append(place(rng, a, dtype))
        check("largest_finite", arrays, {}, dtype, 0)


# ---- shapes that need many blocks, and arithmetic


def test_a_sum_is_shared_by_the_blocks_that_the_current_device_runs_at_once(monkeypatch):
    assert _launch.reduction_blocks() == 8 * 132
    multiprocessors = {1: 20, 2: 78}
    devices = {number: SimpleNamespace(attributes={"MultiProcessorCount": n}) for number, n in multiprocessors.items()}
    monkeypatch.setattr(cupy.cuda, "Device", devices.get)
    for current in (1, 2, 1):
        monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda current=current: current)
        assert _launch.reduction_blocks() == 8 * multiprocessors[current]


@pytest.mark.parametrize(
    ("shape", "axes", "blocks", "threads"),
    [
        ((512, 64, 1024), (2,), (32768, 1), 64),  # 256 loads of 4 values: 4 for each thread
        ((512, 64, 64), (2,), (32768, 1), 32),
        ((512, 8, 8192), (2,), (4096, 1), 256),
        ((512, 64, 1024), (0, 2), (64, 16), 256),  # 16 blocks share a sum
    ],
)
def test_blocks_with_a_sum_of_their_own_are_as_small_as_the_sum(shape, axes, blocks, threads):
    plan = _groups.plan_sums(shape, np.dtype("float32"), axes)
    assert plan.grid == (blocks, (threads,))


@every_dtype
def test_reductions_over_many_blocks_equal_the_portable_versions(dtype):
    rng = np.random.default_rng(12)
    x = cupy.asarray(rng.standard_normal((4, 2, 181, 383)), dtype)
    gamma = cupy.asarray(rng.standard_normal((1, 2, 1)), dtype)
    flat, options = x.reshape(4, 2, -1), {"axes": (0, 2), "tile_axis": 1}
    _, (_, mean, _, inv_std) = check("normalise", [flat, gamma, gamma], {"eps": 1e-5, **options}, dtype, 1e-5)
    mean, inv_std = (cupy.asarray(a, dtype) for a in (mean, inv_std))
    check(
        "normalise_backward", [flat[::-1], flat, mean, inv_std, gamma], {"param_axes": (0, 2), **options}, dtype, 1e-5
    )
    check("largest_finite", [x], {}, dtype, 0)
    check("max_pool", [x, Window((3, 3), (2, 2), ((1, 1), (1, 1)))], {}, dtype, tolerance=0)


@every_dtype
def test_the_width_of_loads_follows_the_shape_and_not_the_address(monkeypatch, dtype):
    """Results of a contiguous array have the same bits if it begins between two multiples of 16 bytes."""
    rng, wide = np.random.default_rng(20), 16 // np.dtype(dtype).itemsize
    used, launch = [], _launch.launch

    def record(*arguments, wide=1, **options):
        used.append((arguments[0], wide))
        launch(*arguments, wide=wide, **options)

    for module in (_conv, _elementwise, _norm, _windows):
        monkeypatch.setattr(module, "launch", record)
    options = {"axes": (0, 2), "tile_axis": 1}
    for image, expected in (((5, 8), wide), ((5, 7), 1)):
        shape, results = (3, 4 if expected > 1 else 3, *image), []
        values = cupy.asarray(rng.standard_normal(shape), dtype)
        gamma = cupy.asarray(np.ones((1, shape[1], 1)), dtype)
        for offset in (0, 1):
            x = cupy.empty(values.size + 4, dtype)[offset : offset + values.size].reshape(shape)
            x[...] = values
            flat = x.reshape(*shape[:2], -1)
            used.clear()
            out, mean, var, inv_std = _norm.normalise(flat, gamma, gamma, eps=0.1, **options)
            grads = _norm.normalise_backward(flat, flat, mean, inv_std, gamma, param_axes=(0, 2), **options)
            positive, mask = _elementwise.relu(x)
            outputs = positive, mask, _elementwise.relu_backward(x, mask), _windows.unfold(x, Window((1, 1)))
            rectified, *_, signs = _norm.normalise_relu(flat, gamma, gamma, eps=0.1, **options)
            grads += _norm.normalise_relu_backward(
                flat, signs, flat, mean, inv_std, gamma, param_axes=(0, 2), **options
            )
            results.append([out, mean, var, rectified, *grads, *_conv.images_to_rows(x), *outputs])
            names = {"sum_moments", "normalise", "gradient_sums", "normalise_backward", "relu", "relu_backward"}
            names |= {"normalise_relu", "relu_gradient_sums", "normalise_relu_backward"}
            assert {name for name, width in used if width == expected} >= {*names, "to_rows", "unfold_at_stride_1"}
        for one, other in zip(*results, strict=True):
            assert one.tobytes() == other.tobytes()


def test_runs_repeat_bit_for_bit_in_any_order_of_warps():
    rng = np.random.default_rng(13)
    x = cupy.asarray(rng.standard_normal((3, 2, 5000)), "float32")
    one, other = (_conv.images_to_rows(x) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_division_by_multiplication_is_exact():
    rng = np.random.default_rng(14)
    powers = np.array([2**k + d for k in range(32) for d in (-1, 0, 1)])
    for d in {*range(1, 2000), *powers, *(2 ** rng.uniform(0, 31, 3000)).astype(int)} - {0} - {2**31 + 1}:
        d = int(d)
        given, m, shift = _launch.divisor(d)
        assert given == d
        assert m < 2**32
        n = np.concatenate([powers, rng.integers(0, 2**31, 100), d * rng.integers(0, 2**31 // d + 1, 100)])
        n = np.concatenate([n, n - 1, n + d - 1, [2**31 - 1]])
        n = n[(n >= 0) & (n < 2**31)].astype(np.uint64)
        upper = (n * np.uint64(m) >> np.uint64(32)) + n
        assert upper.max() < 2**32
        assert np.array_equal(upper >> np.uint64(shift), n // np.uint64(d))


def test_arrays_too_large_for_32_bit_indices_are_refused():
    with pytest.raises(ArgumentError, match="expected fewer than 2"):
        _windows.windows_and_grids((2**15, 1, 2**8, 2**8), Window((1, 1)), np.dtype("float32"))


# ---- the emulated CuPy itself

KERNEL = """
struct Pair { unsigned a, b; };
struct alignas(16) Four { float v[4]; };
extern "C" __global__ void k(const float* x, float* y, Pair pair, double d, long long n) {
    __shared__ float s[64];
    const unsigned t = threadIdx.x;
    %s
}
"""


def run(body, y=64):
    kernel = cupy.RawModule(code=KERNEL % body).get_function("k")
    x, y = cupy.asarray(np.arange(64), "float32"), cupy.empty(y, "float32")
    kernel((2,), (64,), (x, y, np.array([1, 2], np.uint32).view("V8"), 0.5, 3))
    return y


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[t + 1] = 0;", "a write outside all arrays"),
        ("if (x[64]) y[0] = 0;", "a read outside all arrays"),
        ("((float*)x)[0] = 0;", "a write to a constant array"),
        ("if (t == 0) *(Four*)(y + 64) = Four();", "a write outside all arrays"),
        ("if (t == 0) *(Four*)(y + 1) = Four();", "undefined behaviour"),  # not aligned
        ("if (t == 0) *(Four*)y = Four(); else if (t == 3) y[t] = 0;", "a race"),
        ("y[0] = t;", "a race"),
        ("y[t] = 0;", "a race"),  # between the two blocks
        ("s[t] = t; s[63 - t] += 1;", "a race"),
        ("s[t] = t; __syncthreads(); if (s[63 - t]) s[t] = 0;", "a race"),
        ("if (t < 32) __syncthreads();", "a barrier or shuffle that not all threads reach"),
        ("if (t == 1) return; __syncthreads();", "a barrier or shuffle that not all threads reach"),
        ("if (t & 1) s[t] = __shfl_xor_sync(0xffffffff, t, 1);", "a barrier or shuffle that not all threads reach"),
        ("s[t / n * 64] = 0;", "a write outside all arrays|undefined behaviour"),
        ("int a = 2147483647; a += int(t); s[t] = a;", "undefined behaviour"),
    ],
)
def test_faults_are_reported(body, message):
    with pytest.raises(RuntimeError, match=f"k: ({message}).*: block"):
        run(body)


def test_threads_exchange_values_through_shared_memory_and_shuffles():
    y = run(
        "s[t] = x[t]; __syncthreads(); float v = s[63 - t];"
        "for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);"
        "y[64 * blockIdx.x + t] = v * pair.b + d * n;",
        128,
    )
    assert y.tolist() == 2 * [*[2 * sum(range(32, 64)) + 1.5] * 32, *[2 * sum(range(32)) + 1.5] * 32]


def test_shared_memory_starts_uninitialised():
    assert np.isnan(run("if (blockIdx.x == 0) y[t] = s[t];")).all()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, np.zeros(64, np.float32)),
        (0, cupy.empty(64, "float64")),
        (1, None),
        (2, np.zeros(1, "V12")),
        (3, 1),
        (3, np.float32(1)),
        (4, 1.0),
        (4, np.int32(1)),
        (0, cupy.empty(128, "float32")[::2]),
    ],
)
def test_kernel_arguments_of_a_wrong_type_are_refused(at, value):
    kernel = cupy.RawModule(code=KERNEL % "y[0] = t;").get_function("k")
    given = [cupy.empty(64, "float32"), cupy.empty(64, "float32"), np.zeros(1, "V8"), 0.5, 3]
    given[at] = value
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        kernel((1,), (1,), tuple(given))
