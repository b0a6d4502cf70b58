"""Operations that the array-API standard lacks: the kernels of the layers.

Each has a portable version, which every array library runs, and may have faster versions for NumPy and CuPy. Operations
do not check their arguments; `xpconv.layers` does.
"""

from xpconv.ops.conv import convolve, convolve_backward, convolve_transposed
from xpconv.ops.elementwise import add, gated, gated_backward, leaky_relu, leaky_relu_backward, relu, relu_backward
from xpconv.ops.finite import largest_finite
from xpconv.ops.loss import add_l2_penalty, cross_entropy, softmax, softmax_cross_entropy
from xpconv.ops.norm import (
    normalise,
    normalise_backward,
    normalise_relu,
    normalise_relu_backward,
    update_running_stats,
)
from xpconv.ops.pool import avg_pool, avg_pool_backward, max_pool, max_pool_backward
from xpconv.ops.random_bits import keep_mask, random_integers
from xpconv.ops.update import (
    adam_numbers,
    adam_step,
    copy_all,
    flush_denormals,
    lion_step,
    momentum_step,
    move_toward,
    nesterov_direction,
    nesterov_step,
    restore_unless,
    rmsprop_step,
    sgd_step,
    sign,
)
from xpconv.ops.windows import fold, unfold

__all__ = [
    "adam_numbers",
    "adam_step",
    "add",
    "add_l2_penalty",
    "avg_pool",
    "avg_pool_backward",
    "convolve",
    "convolve_backward",
    "convolve_transposed",
    "copy_all",
    "cross_entropy",
    "flush_denormals",
    "fold",
    "gated",
    "gated_backward",
    "keep_mask",
    "largest_finite",
    "leaky_relu",
    "leaky_relu_backward",
    "lion_step",
    "max_pool",
    "max_pool_backward",
    "momentum_step",
    "move_toward",
    "nesterov_direction",
    "nesterov_step",
    "normalise",
    "normalise_backward",
    "normalise_relu",
    "normalise_relu_backward",
    "random_integers",
    "relu",
    "relu_backward",
    "restore_unless",
    "rmsprop_step",
    "sgd_step",
    "sign",
    "softmax",
    "softmax_cross_entropy",
    "unfold",
    "update_running_stats",
]
