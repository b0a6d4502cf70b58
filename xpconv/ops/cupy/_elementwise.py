"""Elementwise operations on CuPy arrays with any strides."""

from collections.abc import Sequence
from functools import lru_cache
from math import log, pi, sqrt
from typing import Any

import cupy

from xpconv.ops.cupy._launch import Array, aligned, grid_of, launch, reduction_blocks, width
from xpconv.ops.dispatch import accelerate
from xpconv.ops.elementwise import TANH_GATE
from xpconv.ops.update import flush_threshold

_relu = cupy.ElementwiseKernel(
    "T x", "T out, bool mask", "mask = x > 0; out = mask || x != x ? x : T(0)", "xpconv_relu"
)
_relu_backward = cupy.ElementwiseKernel("T dout, bool mask", "T dx", "dx = mask ? dout : T(0)", "xpconv_relu_backward")
_leaky_relu = cupy.ElementwiseKernel(
    "T x, T slope", "T out, bool mask", "mask = x > 0; out = mask ? x : slope * x", "xpconv_leaky_relu"
)
_leaky_relu_backward = cupy.ElementwiseKernel(
    "T dout, bool mask, T slope", "T dx", "dx = mask ? dout : slope * dout", "xpconv_leaky_relu_backward"
)
_GATES = {
    "normal": ("gated_normal", 1 / sqrt(2), 1 / sqrt(2 * pi)),
    "normal-tanh": ("gated_logistic", TANH_GATE[0], TANH_GATE[0] * TANH_GATE[1]),
    "logistic": ("gated_logistic", 1.0, 0.0),
}
_TAILS = {
    "gated_normal": "const U tail = erfc(a * t) / 2, density = b * exp(-t * t / 2)",
    "gated_logistic": "const U power = exp(-t * (a + b * t * t)), tail = power / (1 + power);"
    "const U density = (a + 3 * b * t * t) * tail / (1 + power)",
}
_GATED = {
    gate: cupy.ElementwiseKernel(
        "T x",
        "T out, T derivative",
        f"typedef decltype(x + 0.0f) U; const U a = {a!r}, b = {b!r};"  # U is float for activations in float16.
        f"const U v = x, t = fmin(abs(v), U(750)); {_TAILS[name]}; const U P = v > 0 ? 1 - tail : tail;"
        "out = v * P; derivative = P + v * density",
        f"xpconv_gated_{gate.replace('-', '_')}",
    )
    for gate, (name, a, b) in _GATES.items()
}
_update_running_stats = cupy.ElementwiseKernel(
    "T mean, T var, T batch_mean, T batch_var, T weight, T rest",
    "T next_mean, T next_var",
    "next_mean = weight * mean + rest * batch_mean; next_var = weight * var + rest * batch_var",
    "xpconv_update_running_stats",
)
_correct_momentum = cupy.ElementwiseKernel(
    "T batches, T momentum, T log_momentum",
    "T next_batches, T weight, T rest",
    "next_batches = batches + 1; "
    "weight = momentum * expm1(batches * log_momentum) / expm1(next_batches * log_momentum); rest = 1 - weight",
    "xpconv_correct_momentum",
)
_flush_denormals = cupy.ElementwiseKernel(
    "T a, T threshold", "T out", "out = a < threshold && a > -threshold ? T(0) : a", "xpconv_flush_denormals"
)
_sign = cupy.ElementwiseKernel("T a", "T out", "out = a != a ? a : T((a > 0) - (a < 0))", "xpconv_sign")
# Numbers are arguments or, in captured steps, on the device; fused multiply-adds might round differently in each.
_ROUNDED_ONCE = {"options": ("--fmad=false",)}
_FLUSH = "{0} = {0} < threshold && {0} > -threshold ? T(0) : {0}"
_PENALISED = "const T g = decay != 0 ? dw + decay * w : dw"
_sgd_step = cupy.ElementwiseKernel(
    "T dw, T rate, T decay", "T w", f"{_PENALISED}; w -= rate * g", "xpconv_sgd_step", **_ROUNDED_ONCE
)
_momentum_step = cupy.ElementwiseKernel(
    "T dw, T momentum, T rate, T decay, T threshold",
    "T w, T velocity",
    f"{_PENALISED}; velocity = momentum * velocity - rate * g; {_FLUSH.format('velocity')}; w += velocity",
    "xpconv_momentum_step",
    **_ROUNDED_ONCE,
)
_nesterov_step = cupy.ElementwiseKernel(
    "T dw, T momentum, T rate, T decay, T threshold",
    "T w, T velocity",
    f"{_PENALISED}; velocity = momentum * velocity + g; {_FLUSH.format('velocity')};"
    "w -= rate * (g + momentum * velocity)",
    "xpconv_nesterov_step",
    **_ROUNDED_ONCE,
)
_nesterov_direction = cupy.ElementwiseKernel(
    "T dw, T momentum, T threshold",
    "T direction, T velocity",
    f"velocity = momentum * velocity + dw; {_FLUSH.format('velocity')}; direction = dw + momentum * velocity",
    "xpconv_nesterov_direction",
    **_ROUNDED_ONCE,
)
_rmsprop_step = cupy.ElementwiseKernel(
    "T dw, T decay_rate, T rest, T rate, T epsilon, T decay, T threshold",
    "T w, T cache",
    f"{_PENALISED}; cache = decay_rate * cache + rest * g * g; {_FLUSH.format('cache')};"
    "w -= rate * g / (sqrt(cache) + epsilon)",
    "xpconv_rmsprop_step",
    **_ROUNDED_ONCE,
)
_lion_step = cupy.ElementwiseKernel(
    "T dw, T beta1, T rest1, T beta2, T rest2, T rate, T threshold",
    "T w, T m",
    "const T c = beta1 * m + rest1 * dw; w -= rate * (c != c ? c : T((c > 0) - (c < 0)));"
    f"m = beta2 * m + rest2 * dw; {_FLUSH.format('m')}",
    "xpconv_lion_step",
    **_ROUNDED_ONCE,
)
_adam_step = cupy.ElementwiseKernel(
    "T dw, T beta1, T rest1, T beta2, T rest2, T step, T epsilon, T decay, T threshold",
    "T w, T m, T v",
    "m = beta1 * m + rest1 * dw; v = beta2 * v + rest2 * dw * dw; w = decay * w - step * m / (sqrt(v) + epsilon);"
    "m = m < threshold && m > -threshold ? T(0) : m; v = v < threshold ? T(0) : v",
    "xpconv_adam_step",
    **_ROUNDED_ONCE,
)
_adam_numbers = cupy.ElementwiseKernel(
    "float64 t, float64 learning_rate, float64 beta1, float64 beta2, float64 epsilon",
    "float64 next_t, T step, T next_epsilon",
    "next_t = t + 1; const double root = sqrt(1 - pow(beta2, next_t));"
    "step = learning_rate * root / (1 - pow(beta1, next_t)); next_epsilon = epsilon * root",
    "xpconv_adam_numbers",
)
_move_toward = cupy.ElementwiseKernel("T target, T rate", "T a", "a += rate * (target - a)", "xpconv_move_toward")


@accelerate("cupy")
def relu(x: Array) -> tuple[Array, Array]:
    """Write both results in one kernel, with wide loads if the input is contiguous."""
    if not _contiguous(x):
        out, mask = _relu(x)
        return out, mask
    out, mask = cupy.empty(x.shape, x.dtype), cupy.empty(x.shape, bool)
    _launch_on_all("relu", aligned(x), out, mask)
    return out, mask


@accelerate("cupy")
def relu_backward(dout: Array, mask: Array) -> Array:
    """Use one kernel, with wide loads if the inputs are contiguous."""
    if not (_contiguous(dout) and mask.flags.c_contiguous):
        return _relu_backward(dout, mask)
    dx = cupy.empty(dout.shape, dout.dtype)
    _launch_on_all("relu_backward", aligned(dout), aligned(mask), dx)
    return dx


def _contiguous(x: Array) -> bool:
    """Return whether the kernels of kernels.cu can read an array without a copy."""
    return bool(x.flags.c_contiguous) and x.dtype.char in "efd" and 0 < x.size < 2**31


def _launch_on_all(name: str, x: Array, *others: Any) -> None:
    """Launch a kernel for all elements of arrays of one shape, which are followed by numbers."""
    wide = width(x.size, x.dtype)
    grid = grid_of(1, x.size, reduction_blocks(), wide)
    launch(name, x.dtype, grid, x, *others, x.size, wide=wide)


@accelerate("cupy")
def leaky_relu(x: Array, negative_slope: float) -> tuple[Array, Array]:
    """Write both results in one kernel, with wide loads if the input is contiguous."""
    if not _contiguous(x):
        out, mask = _leaky_relu(x, negative_slope)
        return out, mask
    out, mask = cupy.empty(x.shape, x.dtype), cupy.empty(x.shape, bool)
    _launch_on_all("leaky_relu", aligned(x), out, mask, float(negative_slope))
    return out, mask


@accelerate("cupy")
def leaky_relu_backward(dout: Array, mask: Array, negative_slope: float) -> Array:
    """Use one kernel, with wide loads if the inputs are contiguous."""
    if not (_contiguous(dout) and mask.flags.c_contiguous):
        return _leaky_relu_backward(dout, mask, negative_slope)
    dx = cupy.empty(dout.shape, dout.dtype)
    _launch_on_all("leaky_relu_backward", aligned(dout), aligned(mask), dx, float(negative_slope))
    return dx


@accelerate("cupy")
def gated(x: Array, gate: str) -> tuple[Array, Array]:
    """Write both results in one kernel, with wide loads."""
    name, a, b = _GATES[gate]
    if x.size >= 2**31:
        out, derivative = _GATED[gate](x)
        return out, derivative
    out, derivative = (cupy.empty(x.shape, x.dtype) for _ in range(2))
    if x.size:
        _launch_on_all(name, aligned(x), out, derivative, a, b)
    return out, derivative


@accelerate("cupy")
def gated_backward(dout: Array, derivative: Array) -> Array:
    """Use one kernel, with wide loads if the inputs are contiguous."""
    if not (_contiguous(dout) and derivative.flags.c_contiguous):
        return dout * derivative
    dx = cupy.empty(dout.shape, dout.dtype)
    _launch_on_all("gated_backward", aligned(dout), aligned(derivative), dx)
    return dx


@accelerate("cupy")
def update_running_stats(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, momentum: float, num_batches: Array | None = None
) -> tuple[Array, Array, Array | None]:
    """Use one kernel for both averages, and one for the count and its weights."""
    weight, rest = momentum, 1 - momentum
    if num_batches is not None and 0 < momentum < 1:
        num_batches, weight, rest = _correct_momentum(num_batches, momentum, log(momentum))
    elif num_batches is not None:
        num_batches = num_batches + 1
    return *_update_running_stats(mean, var, batch_mean, batch_var, weight, rest), num_batches


@accelerate("cupy")
def sign(a: Array) -> Array:
    """Use one kernel."""
    return _sign(a)


@accelerate("cupy")
def adam_step(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    beta1: float,
    beta2: float,
    step: float,
    epsilon: float,
    decay: float = 1.0,
    flush: bool = False,
) -> None:
    """Update all three arrays in one kernel."""
    threshold = flush_threshold(cupy, m) if flush else 0.0
    _adam_step(dw, beta1, 1 - beta1, beta2, 1 - beta2, step, epsilon, decay, threshold, w, m, v)


@accelerate("cupy")
def sgd_step(w: Array, dw: Array, rate: float | Array, decay: float) -> None:
    """Use one kernel."""
    _sgd_step(dw, rate, decay, w)


@accelerate("cupy")
def momentum_step(w: Array, dw: Array, velocity: Array, rate: float | Array, momentum: float, decay: float) -> None:
    """Update both arrays in one kernel."""
    _momentum_step(dw, momentum, rate, decay, flush_threshold(cupy, w), w, velocity)


@accelerate("cupy")
def nesterov_step(w: Array, dw: Array, velocity: Array, rate: float | Array, momentum: float, decay: float) -> None:
    """Update both arrays in one kernel."""
    _nesterov_step(dw, momentum, rate, decay, flush_threshold(cupy, w), w, velocity)


@accelerate("cupy")
def nesterov_direction(direction: Array, dw: Array, velocity: Array, momentum: float) -> None:
    """Write both arrays in one kernel."""
    _nesterov_direction(dw, momentum, flush_threshold(cupy, dw), direction, velocity)


@accelerate("cupy")
def rmsprop_step(
    w: Array, dw: Array, cache: Array, decay_rate: float, rate: float | Array, epsilon: float, decay: float
) -> None:
    """Update both arrays in one kernel."""
    _rmsprop_step(dw, decay_rate, 1 - decay_rate, rate, epsilon, decay, flush_threshold(cupy, w), w, cache)


@accelerate("cupy")
def lion_step(w: Array, dw: Array, m: Array, beta1: float, beta2: float, rate: float | Array) -> None:
    """Update both arrays in one kernel."""
    _lion_step(dw, beta1, 1 - beta1, beta2, 1 - beta2, rate, flush_threshold(cupy, w), w, m)


@accelerate("cupy")
def adam_numbers(
    t: Array, like: Array, learning_rate: float | Array, beta1: float, beta2: float, epsilon: float
) -> tuple[Array, Array, Array]:
    """Use one kernel."""
    out = cupy.empty((), "float64"), cupy.empty((), like.dtype), cupy.empty((), like.dtype)
    _adam_numbers(t, learning_rate, beta1, beta2, epsilon, *out)
    return out


@accelerate("cupy")
def copy_all(*arrays: Array) -> tuple[Array, ...]:
    """Use one kernel for all arrays."""
    copies = tuple(cupy.empty(a.shape, a.dtype) for a in arrays)
    _for_arrays("copy", len(arrays))(*arrays, *copies)
    return copies


@accelerate("cupy")
def restore_unless(condition: Array, arrays: Sequence[Array], copies: Sequence[Array]) -> None:
    """Use one kernel for all arrays, which writes nothing if the condition is True."""
    _for_arrays("restore", len(arrays))(condition, *copies, *arrays)


@lru_cache
def _for_arrays(name: str, count: int) -> Any:
    """Return a kernel that copies this number of arrays to others, or restores them from copies."""
    inputs, outputs = (", ".join(f"T {letter}{k}" for k in range(count)) for letter in "ab")
    copy = "; ".join(f"b{k} = a{k}" for k in range(count))
    if name == "restore":
        inputs, copy = f"bool condition, {inputs}", f"if (!condition) {{ {copy}; }}"
    return cupy.ElementwiseKernel(inputs, outputs, copy, f"xpconv_{name}_{count}")


@accelerate("cupy")
def move_toward(a: Array, target: Array, rate: float | Array) -> None:
    """Use one kernel."""
    _move_toward(target, rate, a)


@accelerate("cupy")
def flush_denormals(a: Array) -> None:
    """Use one kernel."""
    _flush_denormals(a, flush_threshold(cupy, a), a)
