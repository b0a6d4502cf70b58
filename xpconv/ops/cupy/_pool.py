"""Max pooling on CuPy."""

from math import prod

import cupy

from xpconv.ops.cupy._launch import Array, Shape, launch
from xpconv.ops.cupy._windows import windows_and_grids
from xpconv.ops.dispatch import accelerate
from xpconv.ops.windows import Window


@accelerate("cupy")
def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """Let each thread search one or more windows of a row."""
    output, windows, (grid, wide), _ = windows_and_grids(x.shape, window, x.dtype)
    shape, index = (*x.shape[:2], *output), "uint8" if prod(window.kernel_size) <= 256 else "int64"
    out, argmax = cupy.empty(shape, x.dtype), cupy.empty(shape, index)
    launch("max_pool", x.dtype, grid, cupy.ascontiguousarray(x), out, argmax, windows, index=index, wide=wide)
    return out, argmax


@accelerate("cupy")
def max_pool_backward(dout: Array, argmax: Array, shape: Shape, window: Window) -> Array:
    """Let each thread add up the gradients of the windows whose maximum is one of its pixels."""
    _, windows, _, (grid, wide) = windows_and_grids(shape, window, dout.dtype)
    dx = cupy.empty(shape, dout.dtype)
    dout, argmax = cupy.ascontiguousarray(dout), cupy.ascontiguousarray(argmax)
    launch("max_pool_backward", dout.dtype, grid, dout, argmax, dx, windows, index=argmax.dtype.name, wide=wide)
    return dx
