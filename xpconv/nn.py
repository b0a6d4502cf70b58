"""Layer objects: the layers' functions together with what they know of their parameters and shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from xpconv import layers as F
from xpconv.backend import Array
from xpconv.layers._check import window_output

__all__ = [
    "Affine",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dropout",
    "GlobalAvgPool",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "MaxPool",
    "Relu",
]

Shape = tuple[int, ...]
Size = int | Sequence[int]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Layer:
    """A layer without parameters whose backward pass takes nothing but the cache; others add to it."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one output sample for one input sample's shape."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        """Return each parameter's shape and initial value; None stands for random numbers."""
        return {}

    def state(self, shape: Shape) -> dict[str, tuple[Shape, float]]:
        """Return the shape and initial value of what the layer remembers but does not learn."""
        return {}

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        """Return the output and the cache; `p` holds parameters and state under their own names."""
        raise NotImplementedError

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        """Return the gradient of the input and those of the parameters by name."""
        raise NotImplementedError

    def new_state(self, cache: Any) -> Arrays:
        """Return what the layer remembers after a training pass."""
        return {}


@dataclass(frozen=True)
class Affine(Layer):
    """`units` outputs, each a weighted sum of all inputs: parameters W (D, units) and b (units,)."""

    units: int
    bias: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return _weights((prod(shape), self.units), self.units, self.bias)

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.affine_forward(x, p["W"], p.get("b"))

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dw, db = F.affine_backward(dout, cache, need_dx=need_dx)
        return dx, {"W": dw, "b": db} if self.bias else {"W": dw}


@dataclass(frozen=True)
class Conv(Layer):
    """`filters` filters: parameters W (filters, C, KH, KW) and b (filters,).

    Without `padding` the output keeps the image's size at stride 1, if the window's size is odd.
    """

    filters: int
    size: Size = 3
    stride: Size = 1
    padding: Size | None = None
    bias: bool = True
    algorithm: str = "auto"

    def output_shape(self, shape: Shape) -> Shape:
        return (self.filters, *window_output(shape, self.size, self.stride, self._padding))

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return _weights((self.filters, shape[0], *_both(self.size)), self.filters, self.bias)

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.conv_forward(x, p["W"], p.get("b"), stride=self.stride, padding=self._padding,
                              algorithm=self.algorithm)

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dw, db = F.conv_backward(dout, cache, need_dx=need_dx)
        return dx, {"W": dw, "b": db} if self.bias else {"W": dw}

    @property
    def _padding(self) -> Size:
        if self.padding is not None:
            return self.padding
        height, width = _both(self.size)
        return (height - 1) // 2, (width - 1) // 2


@dataclass(frozen=True)
class _Plain(Layer):
    """A layer without parameters, whose backward function is `_gradient`."""

    _gradient: ClassVar[Callable[..., Any]]

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        return self._gradient(dout, cache), {}


@dataclass(frozen=True)
class Relu(_Plain):
    """``max(x, 0)``."""

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.relu_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.relu_forward(x)


@dataclass(frozen=True)
class Dropout(_Plain):
    """Keep each element with probability `keep` in training."""

    keep: float = 0.5
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.dropout_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.dropout_forward(x, keep=self.keep, mask_key=key, train=train)


@dataclass(frozen=True)
class MaxPool(_Plain):
    """The maximum of each window."""

    size: Size = 2
    stride: Size | None = None
    padding: Size = 0
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.max_pool_backward)

    def output_shape(self, shape: Shape) -> Shape:
        stride = self.size if self.stride is None else self.stride
        return (shape[0], *window_output(shape, self.size, stride, self.padding))

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.max_pool_forward(x, size=self.size, stride=self.stride, padding=self.padding)


@dataclass(frozen=True)
class AvgPool(MaxPool):
    """The mean of each window."""

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.avg_pool_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.avg_pool_forward(x, size=self.size, stride=self.stride, padding=self.padding)


@dataclass(frozen=True)
class GlobalAvgPool(_Plain):
    """The mean of each channel."""

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.global_avg_pool_backward)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.global_avg_pool_forward(x)


@dataclass(frozen=True)
class _Norm(Layer):
    """A normalisation: parameters gamma and beta, one for each channel."""

    eps: float = 1e-5
    _gradient: ClassVar[Callable[..., Any]]

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return {"gamma": (shape[:1], 1.0), "beta": (shape[:1], 0.0)}

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dgamma, dbeta = self._gradient(dout, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Normalise each channel over the batch; remembers running_mean and running_var (C,)."""

    momentum: float = 0.9
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.batchnorm_backward)

    def state(self, shape: Shape) -> dict[str, tuple[Shape, float]]:
        return {"running_mean": (shape[:1], 0.0), "running_var": (shape[:1], 0.0)}

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        running = F.Running(p["running_mean"], p["running_var"])
        return F.batchnorm_forward(x, p["gamma"], p["beta"], running, train=train, momentum=self.momentum, eps=self.eps)

    def new_state(self, cache: Any) -> Arrays:
        return {"running_mean": cache.running.mean, "running_var": cache.running.var}


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Normalise each sample over its features: gamma and beta in the shape of one sample."""

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.layernorm_backward)

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return {"gamma": (shape, 1.0), "beta": (shape, 0.0)}

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.layernorm_forward(x, p["gamma"], p["beta"], eps=self.eps)


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Normalise each of `groups` groups of channels of each sample."""

    groups: int = 1
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.groupnorm_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, key: int) -> tuple[Array, Any]:
        return F.groupnorm_forward(x, p["gamma"], p["beta"], groups=self.groups, eps=self.eps)


def _weights(shape: Shape, units: int, bias: bool) -> dict[str, tuple[Shape, float | None]]:
    return {"W": (shape, None), "b": ((units,), 0.0)} if bias else {"W": (shape, None)}


def _both(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
