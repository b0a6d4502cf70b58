"""Elementwise operations on CuPy arrays with any strides."""

import cupy

from xpconv.ops.cupy._launch import Array
from xpconv.ops.dispatch import accelerate
from xpconv.ops.update import flush_threshold

_relu = cupy.ElementwiseKernel(
    "T x", "T out, bool mask", "mask = x > 0; out = mask || x != x ? x : T(0)", "xpconv_relu"
)
_relu_backward = cupy.ElementwiseKernel("T dout, bool mask", "T dx", "dx = mask ? dout : T(0)", "xpconv_relu_backward")
_update_running_average = cupy.ElementwiseKernel(
    "T old, T now, T momentum, T rest", "T out", "out = momentum * old + rest * now", "xpconv_update_running_average"
)
_flush_denormals = cupy.ElementwiseKernel(
    "T a, T threshold", "T out", "out = a < threshold && a > -threshold ? T(0) : a", "xpconv_flush_denormals"
)
_adam_step = cupy.ElementwiseKernel(
    "T dw, T beta1, T rest1, T beta2, T rest2, T step, T epsilon",
    "T w, T m, T v",
    "m = beta1 * m + rest1 * dw; v = beta2 * v + rest2 * dw * dw; w -= step * m / (sqrt(v) + epsilon)",
    "xpconv_adam_step",
)


@accelerate("cupy")
def relu(x: Array) -> tuple[Array, Array]:
    """Write both results in one kernel."""
    out, mask = _relu(x)
    return out, mask


@accelerate("cupy")
def relu_backward(dout: Array, mask: Array) -> Array:
    """Use one kernel."""
    return _relu_backward(dout, mask)


@accelerate("cupy")
def update_running_average(old: Array, new: Array, momentum: float) -> Array:
    """Use one kernel for the two products and their sum."""
    return _update_running_average(old, new, momentum, 1 - momentum)


@accelerate("cupy")
def adam_step(w: Array, dw: Array, m: Array, v: Array, beta1: float, beta2: float, step: float, epsilon: float) -> None:
    """Update all three arrays in one kernel."""
    _adam_step(dw, beta1, 1 - beta1, beta2, 1 - beta2, step, epsilon, w, m, v)


@accelerate("cupy")
def flush_denormals(a: Array) -> None:
    """Use one kernel."""
    _flush_denormals(a, flush_threshold(cupy, a), a)
