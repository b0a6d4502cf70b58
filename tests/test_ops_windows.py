"""Unfolding, folding and pooling compared with loops, on every backend, and average pooling of large batches."""

import numpy as np
import pytest

from tests.helpers import assert_array, columns_by_loops, draw
from xpconv import layers
from xpconv.ops.dispatch import portable
from xpconv.ops.pool import avg_pool, avg_pool_backward, max_pool, max_pool_backward
from xpconv.ops.windows import Window, fold, unfold

WINDOWS = {  # images and windows
    "tiling": ((6, 4), Window((2, 2), (2, 2))),
    "overlapping": ((6, 5), Window((3, 2))),
    "not tiling": ((7, 5), Window((2, 3), (3, 2), ((0, 0), (1, 1)))),
    "padded": ((4, 5), Window((3, 3), (2, 1), ((1, 1), (2, 2)))),
    "padded differently on each side": ((4, 5), Window((3, 3), (2, 1), ((1, 0), (0, 2)))),
    "gaps": ((5, 7), Window((1, 2), (3, 3))),
    "dilated": ((7, 8), Window((2, 3), (1, 2), ((1, 1), (2, 1)), (2, 3))),
    "one window": ((3, 4), Window((3, 4))),
}


every_window = pytest.mark.parametrize(("image", "window"), WINDOWS.values(), ids=WINDOWS)


@every_window
def test_unfold_lays_every_window_out_as_a_column(backend, image, window):
    x = draw(2, 3, *image)
    expected = columns_by_loops(x, window)
    cols = unfold(backend.asarray(x), window)
    assert_array(cols, expected.reshape(3 * np.prod(window.kernel_size), -1), backend, "float64", tolerance=0)


@pytest.mark.parametrize(("shape", "size"), [((1, 2, 3, 4), (1, 1)), ((1, 1, 3, 3), (3, 3)), ((2, 2, 3, 4), (1, 1))])
def test_writing_to_the_columns_leaves_the_image_unchanged(shape, size, backend):
    x = backend.asarray(draw(*shape))
    before = backend.to_host(x).copy()
    cols = unfold(x, Window(size))
    cols += 1
    assert_array(x, before, backend, "float64", tolerance=0)


@every_window
def test_fold_is_the_adjoint_of_unfold(backend, image, window):
    x = draw(2, 3, *image)
    cols = columns_by_loops(x, window).reshape(3 * np.prod(window.kernel_size), -1)
    other = draw(*cols.shape, seed=1)
    back = fold(backend.asarray(other), x.shape, window)
    assert tuple(back.shape) == x.shape
    assert np.sum(backend.to_host(back) * x) == pytest.approx(np.sum(other * cols), rel=1e-12)


@every_window
@pytest.mark.parametrize("tied", [False, True])
def test_max_pool_finds_the_first_maximum_and_its_backward_pass_is_the_adjoint(backend, image, window, tied):
    x = np.sign(draw(2, 3, *image)) if tied else draw(2, 3, *image)
    cols = columns_by_loops(x, window, -np.inf)
    out, argmax = max_pool(backend.asarray(x), window)
    assert_array(out, cols.max(axis=1).swapaxes(0, 1), backend, "float64", tolerance=0)
    assert backend.to_host(argmax).tolist() == cols.argmax(axis=1).swapaxes(0, 1).tolist()
    dout = draw(*out.shape, seed=1)
    back = max_pool_backward(backend.asarray(dout), argmax, x.shape, window)
    assert tuple(back.shape) == x.shape
    assert np.sum(backend.to_host(back) * x) == pytest.approx(np.sum(dout * backend.to_host(out)), rel=1e-12)


def test_indices_in_large_windows_do_not_overflow(backend):
    x = np.zeros((1, 1, 20, 20))
    x[..., 19, 18] = 1.0
    _, argmax = max_pool(backend.asarray(x), Window((20, 20)))
    assert backend.to_host(argmax).tolist() == [[[[19 * 20 + 18]]]]
    for window in ((1, 257), (257, 1)):
        _, argmax = max_pool(backend.asarray(np.arange(257.0).reshape(1, 1, *window)), Window(window))
        assert backend.to_host(argmax).tolist() == [[[[256]]]]


def test_convolution_propagates_nan_pixels(backend):
    x = draw(1, 1, 4, 4)
    x[0, 0, 1, 1] = np.nan
    out, _ = layers.conv_forward(backend.asarray(x), backend.asarray(draw(1, 1, 2, 2)), None)
    assert np.isnan(backend.to_host(out)).tolist() == [[[[True, True, False], [True, True, False], [False] * 3]]]


@pytest.mark.parametrize(
    "window",
    [
        Window((2, 2), (2, 2)),
        Window((3, 2), (2, 2), ((1, 1), (0, 0))),
        Window((2, 3), (2, 3), ((0, 0), (1, 2))),
        Window((1, 1), (2, 2)),
        Window((1, 2), (1, 2)),
        Window((3, 1), (2, 1), ((1, 1), (0, 0))),
        Window((3, 3), (1, 1), ((1, 2), (0, 1))),
    ],
)
def test_average_pools_of_a_batch_have_the_bits_of_each_image_and_the_portable_values(window):
    """NumPy computes the batch in tiles."""
    x = draw(19, 6, 64, 66, seed=0)
    output = window.output_size(x.shape[2:])
    counts = tuple(tuple(1 + k % 2 for k in range(count)) for count in output)
    dout = draw(*x.shape[:2], *output, seed=1)
    out, dx = avg_pool(x, window, counts), avg_pool_backward(dout, x.shape, window, counts)
    np.testing.assert_allclose(out, portable("avg_pool")(x, window, counts), atol=1e-12)
    np.testing.assert_allclose(dx, portable("avg_pool_backward")(dout, x.shape, window, counts), atol=1e-12)
    for k in range(len(x)):
        one = slice(k, k + 1)
        np.testing.assert_array_equal(out[one], avg_pool(x[one], window, counts))
        np.testing.assert_array_equal(dx[one], avg_pool_backward(dout[one], x[one].shape, window, counts))
