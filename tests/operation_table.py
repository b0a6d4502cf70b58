"""How to call each operation: arguments made from an image and a window, for every registered operation."""

import numpy as np

from tests.helpers import columns_by_loops, draw
from xpconv.backend import array_namespace
from xpconv.ops.dispatch import accelerated_versions, portable
from xpconv.ops.norm import normalise
from xpconv.ops.pool import max_pool
from xpconv.ops.tiling import sum_of_squares


def arguments_of_unfold(place, x, window):
    return place(x), window


def arguments_of_fold(place, x, window):
    cols = columns_by_loops(x, window)
    return place(cols.reshape(cols.shape[0] * cols.shape[1], -1)), x.shape, window


def window_counts(output):
    """Return counts that differ between windows."""
    rows, columns = (tuple(1 + k % 3 for k in range(count)) for count in output)
    return rows, columns


def arguments_of_avg_pool(place, x, window):
    return place(x), window, window_counts(window.output_size(x.shape[2:]))


def arguments_of_avg_pool_backward(place, x, window):
    output = window.output_size(x.shape[2:])
    return place(draw(*x.shape[:2], *output, seed=1)), x.shape, window, window_counts(output)


def arguments_of_max_pool_backward(place, x, window):
    out, winners = max_pool(place(x), window)
    return place(draw(*out.shape, seed=1)), winners, x.shape, window


def filters_for(x, window):
    """Return a number of groups, which is 1, C or C / 2, and filters for them."""
    C = x.shape[1]
    groups = (1, C, C // 2 if C % 2 == 0 else 1)[(window.stride[1] + window.kernel_size[0]) % 3]
    return groups, draw(3 * groups, C // groups, *window.kernel_size, seed=2).astype(x.dtype)


def arguments_of_convolve(place, x, window):
    groups, w = filters_for(x, window)
    return place(x), place(w), place(draw(len(w), seed=3).astype(x.dtype)), window, groups, "im2col"


def arguments_of_convolve_gradients(place, x, window):
    groups, w = filters_for(x, window)
    dout = draw(len(x), len(w), *window.output_size(x.shape[2:]), seed=3).astype(x.dtype)
    return place(dout), place(x), place(w), window, groups, "im2col", True, True


def arguments_of_convolve_transposed(place, x, window):
    groups, w = filters_for(x, window)
    rows = draw(len(x), len(w), *window.output_size(x.shape[2:]), seed=3).astype(x.dtype)
    bias = place(draw(x.shape[1], seed=3).astype(x.dtype))
    return place(rows), place(w), bias, x.shape[2:], window, groups, "auto"


def arguments_of_normalise(place, x, window):
    gamma, beta = draw(2, 1, x.shape[1], 1, 1, seed=2).astype(x.dtype)
    axes, tile_axis = ((0, 2, 3), 1) if window.stride[0] % 2 else ((1, 2, 3), 0)
    return place(x), place(gamma), place(beta), {"axes": axes, "tile_axis": tile_axis, "eps": 1e-2}


def arguments_of_normalise_backward(place, x, window):
    *most, options = arguments_of_normalise(place, x, window)
    _, mean, _, inv_std = normalise(*most, **options)
    param_axes = (0, 2, 3) if options["tile_axis"] == 1 else (2, 3) if window.kernel_size[0] % 2 else (1, 2, 3)
    dout = draw(*x.shape, seed=4).astype(x.dtype)
    return (
        place(dout),
        most[0],
        mean,
        inv_std,
        most[1],
        {"axes": options["axes"], "tile_axis": options["tile_axis"], "param_axes": param_axes},
    )


def arguments_of_softmax(place, x, window):
    scores = x.reshape(x.shape[0], -1)
    return place(scores), place(np.arange(len(scores)) % scores.shape[1], np.int64)


def arguments_of_moments(place, x, window):
    return place(by_channel(x, window)), {}


def arguments_of_apply_moments(place, x, window):
    x = by_channel(x, window)
    gamma, beta = draw(2, 1, x.shape[1], 1, seed=2)
    moments = np.stack([x.mean(axis=(0, 2), dtype="float64"), x.var(axis=(0, 2), dtype="float64")])
    return place(x), place(moments, "float64"), place(gamma), place(beta), 1e-2


def arguments_of_gradient_sums(place, x, window):
    x, moments, gamma, beta, eps = arguments_of_apply_moments(place, x, window)
    _, mean, inv_std = portable("apply_moments")(x, moments, gamma, beta, eps)
    return place(draw(*x.shape, seed=3)), x, mean, inv_std


def arguments_of_input_gradient(place, x, window):
    *arrays, mean, inv_std = arguments_of_gradient_sums(place, x, window)
    C = x.shape[1]
    return *arrays, mean, inv_std, place(draw(1, C, 1, seed=4)), place(draw(2, C, seed=5), "float64")


def by_channel(x, window):
    """Return images (N, C, L) whose means are near zero, or far from it."""
    flat = x.reshape(*x.shape[:2], -1)
    return flat + flat.dtype.type(0 if window.stride[0] % 2 else 30)


def arguments_of_cross_entropy(place, x, window):
    scores = x.reshape(x.shape[0], -1)
    targets = np.maximum(draw(*scores.shape, seed=2), 0)
    return place(scores), place(targets), place(np.asarray(3.0))


def arguments_of_relu(place, x, window):
    return (place(x), {})


def arguments_of_add(place, x, window):
    return x, x


def arguments_of_relu_backward(place, x, window):
    return place(x), place(draw(*x.shape, seed=2) > 0, bool)


def arguments_of_leaky_relu(place, x, window):
    return place(x), window.stride[0] / 4


def arguments_of_leaky_relu_backward(place, x, window):
    return place(x), place(draw(*x.shape, seed=2) > 0, bool), window.stride[0] / 4


def arguments_of_gated(place, x, window):
    return place(4 * x), ("normal", "normal-tanh", "logistic", "normal")[window.stride[0] - 1]


def arguments_of_gated_backward(place, x, window):
    return place(x), place(draw(*x.shape, seed=2))


def arguments_of_update_running_stats(place, x, window):
    arrays = [place(draw(x.shape[1], seed=seed)) for seed in range(4)]
    num_batches = None if window.stride[0] % 2 else place(np.full(1, float(window.stride[1])))
    return *arrays, 0.9, num_batches


def arguments_of_add_l2_penalty(place, x, window):
    weights = [place(draw(*shape, seed=2)) for shape in ((3, 4), x.shape, (x.size,))]
    grads = [place(draw(*W.shape, seed=3)) for W in weights]
    return place(np.asarray(1.5)), weights, grads, 0.1


def arguments_of_largest_finite(place, x, window):
    arrays = [place(np.where(draw(*x.shape, seed=seed) > 2 - window.stride[0] / 2, np.nan, x)) for seed in range(9)]
    return *arrays[: window.stride[1] * 2], place(draw(3)), {}


def arguments_of_adam_step(place, x, window):
    arrays = place(x), place(draw(*x.shape, seed=2)), place(draw(*x.shape, seed=3)), place(x * x)
    return *arrays, 0.9, 0.99, 0.1, 1e-8, 0.95, True


def arguments_of_adam_numbers(place, x, window):
    return place(np.asarray(3.0), "float64"), place(x), 0.1, 0.9, 0.99, 1e-8


def arguments_of_copy_all(place, x, window):
    return place(x), place(draw(*x.shape, seed=2)), {}


def arguments_of_restore_unless(place, x, window):
    condition = place(np.asarray(window.stride[0] > 1), "bool")
    return condition, [place(x), place(x)], [place(draw(*x.shape, seed=k)) for k in (2, 3)]


def arguments_of_sgd_step(place, x, window):
    return place(x), place(draw(*x.shape, seed=2)), 0.1, 0.0 if window.stride[0] % 2 else 0.01


def arguments_of_momentum_step(place, x, window):
    *arrays, rate, decay = arguments_of_sgd_step(place, x, window)
    return *arrays, place(draw(*x.shape, seed=3)), rate, 0.9, decay


def arguments_of_nesterov_direction(place, x, window):
    return place(x), place(draw(*x.shape, seed=2)), place(draw(*x.shape, seed=3)), 0.9


def arguments_of_rmsprop_step(place, x, window):
    *arrays, rate, decay = arguments_of_sgd_step(place, x, window)
    return *arrays, place(draw(*x.shape, seed=3) ** 2), 0.99, rate, 1e-8, decay


def arguments_of_lion_step(place, x, window):
    return *arguments_of_nesterov_direction(place, x, window), 0.99, 0.1


def arguments_of_move_toward(place, x, window):
    return place(x), place(draw(*x.shape, seed=2)), 0.25


def arguments_of_for_each_tile(place, x, window):
    a = place(x)

    def double(tile):
        a[tile, ...] = 2 * a[tile, ...]

    return a, double, len(x), 1 << 21


def arguments_of_sum_over_tiles(place, x, window):
    a = place(x)
    xp = array_namespace(x=a)
    return a, lambda tile: (xp.sum(a[tile, ...], axis=0), None), len(x), 1 << 21


def arguments_of_map_tiles(place, x, window):
    a, gamma = place(np.tile(x, (1, 1, 64, 64))), place(draw(1, x.shape[1], 1, 1))
    return a, gamma, {"function": lambda a, gamma: (a * gamma,), "axis": window.stride[0] % 2}


def arguments_of_matmul(place, x, window):
    rows = x.reshape(len(x), -1)
    return place(rows), place(rows.T)


def arguments_of_for_each_block(place, x, window):
    def step(a, b):
        a -= 2 * b

    return place(x), place(draw(*x.shape, seed=2)), {"update": step}


def arguments_of_sum_in_blocks(place, x, window):
    return place(x), {"term": sum_of_squares}


def arguments_of_sum_of_squares(place, x, window):
    return place(x.reshape(-1) if window.stride[0] % 2 else x), {}


def arguments_of_flush_denormals(place, x, window):
    denormals = np.sign(x) * np.finfo(x.dtype).smallest_normal * 0.5
    return place(np.where(draw(*x.shape, seed=2) > 0, denormals, x)), {}


def arguments_of_sign(place, x, window):
    return place(np.where(draw(*x.shape, seed=3) > 1, 0, x)), {}


ARGUMENTS = {
    "convolve": arguments_of_convolve,
    "convolve_backward": arguments_of_convolve_gradients,
    "convolve_transposed": arguments_of_convolve_transposed,
    "normalise": arguments_of_normalise,
    "normalise_backward": arguments_of_normalise_backward,
    "moments": arguments_of_moments,
    "apply_moments": arguments_of_apply_moments,
    "gradient_sums": arguments_of_gradient_sums,
    "input_gradient": arguments_of_input_gradient,
    "cross_entropy": arguments_of_cross_entropy,
    "softmax_cross_entropy": arguments_of_softmax,
    "add": arguments_of_add,
    "relu": arguments_of_relu,
    "relu_backward": arguments_of_relu_backward,
    "leaky_relu": arguments_of_leaky_relu,
    "leaky_relu_backward": arguments_of_leaky_relu_backward,
    "gated": arguments_of_gated,
    "gated_backward": arguments_of_gated_backward,
    "adam_numbers": arguments_of_adam_numbers,
    "adam_step": arguments_of_adam_step,
    "sgd_step": arguments_of_sgd_step,
    "momentum_step": arguments_of_momentum_step,
    "nesterov_step": arguments_of_momentum_step,
    "nesterov_direction": arguments_of_nesterov_direction,
    "rmsprop_step": arguments_of_rmsprop_step,
    "lion_step": arguments_of_lion_step,
    "copy_all": arguments_of_copy_all,
    "restore_unless": arguments_of_restore_unless,
    "flush_denormals": arguments_of_flush_denormals,
    "sign": arguments_of_sign,
    "move_toward": arguments_of_move_toward,
    "update_running_stats": arguments_of_update_running_stats,
    "add_l2_penalty": arguments_of_add_l2_penalty,
    "largest_finite": arguments_of_largest_finite,
    "unfold": arguments_of_unfold,
    "fold": arguments_of_fold,
    "max_pool": arguments_of_unfold,
    "max_pool_backward": arguments_of_max_pool_backward,
    "avg_pool": arguments_of_avg_pool,
    "avg_pool_backward": arguments_of_avg_pool_backward,
    "for_each_tile": arguments_of_for_each_tile,
    "sum_over_tiles": arguments_of_sum_over_tiles,
    "map_tiles": arguments_of_map_tiles,
    "matmul": arguments_of_matmul,
    "for_each_block": arguments_of_for_each_block,
    "sum_in_blocks": arguments_of_sum_in_blocks,
    "sum_of_squares": arguments_of_sum_of_squares,
    "sum_rows": arguments_of_relu,
}


WRITTEN = {  # arguments that are written to
    "adam_step": slice(0, 4),
    "sgd_step": slice(0, 1),
    "momentum_step": slice(0, 3),
    "nesterov_step": slice(0, 3),
    "nesterov_direction": slice(0, 3),
    "rmsprop_step": slice(0, 3),
    "lion_step": slice(0, 3),
    "restore_unless": slice(1, 2),
    "flush_denormals": slice(0, 1),
    "move_toward": slice(0, 1),
    "add_l2_penalty": slice(2, 3),
    "for_each_tile": slice(0, 1),
    "for_each_block": slice(0, 1),
}


def compared(library):
    """Return both versions of each operation, by name, whose results do not depend on the library."""
    elsewhere = "normalise_relu", "normalise_relu_backward"  # test_norm_relu.py tests these
    return {name: versions for name, versions in accelerated_versions(library).items() if name not in elsewhere}


def arrays_in(result):
    """Return the arrays among nested results."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in arrays_in(part)]
    return [] if result is None else [result]
