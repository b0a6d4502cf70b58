"""Max pooling on CuPy."""

from math import prod

import cupy

from xpconv.ops.cupy._launch import Array, Shape, launch
from xpconv.ops.cupy._windows import windows_and_grids
from xpconv.ops.dispatch import accelerate
from xpconv.ops.windows import Window


@accelerate("cupy")
def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """Let each thread search one window."""
    output, windows, grid, _ = windows_and_grids(x.shape, window)
    shape, index = (*x.shape[:2], *output), "uint8" if prod(window.kernel_size) <= 256 else "int64"
    out, argmax = cupy.empty(shape, x.dtype), cupy.empty(shape, index)
    launch("max_pool", x.dtype, grid, cupy.ascontiguousarray(x), out, argmax, windows, index=index)
    return out, argmax


@accelerate("cupy")
def max_pool_backward(dout: Array, argmax: Array, shape: Shape, window: Window) -> Array:
    """Let each thread add up the gradients of the windows whose maximum is its pixel."""
    _, windows, _, grid = windows_and_grids(shape, window)
    dx = cupy.empty(shape, dout.dtype)
    dout, argmax = cupy.ascontiguousarray(dout), cupy.ascontiguousarray(argmax)
    launch("max_pool_backward", dout.dtype, grid, dout, argmax, dx, windows, index=argmax.dtype.name)
    return dx
