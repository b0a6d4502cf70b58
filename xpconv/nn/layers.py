"""Layer objects: the layers' functions together with what they know of their parameters and shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from xpconv import layers as F
from xpconv._validation import check_count, check_eps, check_flag, check_fraction, check_pair, check_probability
from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.layers._checks import window_output

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
Arrays = dict[str, Any]  # arrays by name


@dataclass(frozen=True)
class Layer:
    """A layer without parameters whose backward pass takes nothing but the cache; others add to it.

    Examples
    --------
    >>> class Double(Layer):
    ...     def forward(self, x, p, *, train, seed):
    ...         return 2 * x, None
    ...     def backward(self, dout, cache, *, need_dx):
    ...         return 2 * dout, {}
    >>> Double().output_shape((3, 8, 8)), Double().parameters((3, 8, 8))
    ((3, 8, 8), {})
    """

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one output sample for one input sample's shape."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        """Return each parameter's shape and initial value; None stands for random numbers."""
        return {}

    def state(self, shape: Shape) -> dict[str, tuple[Shape, float]]:
        """Return the shape and initial value of what the layer remembers but does not learn."""
        return {}

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
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
    """`units` outputs, each a weighted sum of all inputs: parameters W (D, units) and b (units,).

    Examples
    --------
    >>> Affine(10).output_shape((3, 8, 8)), Affine(10).parameters((3, 8, 8))["W"]
    ((10,), ((192, 10), None))
    """

    units: int
    bias: bool = True

    def __post_init__(self) -> None:
        check_count("units", self.units)
        check_flag("bias", self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        return (self.units,)

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return _weights((prod(shape), self.units), self.units, self.bias)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.affine_forward(x, p["W"], p.get("b"))

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dw, db = F.affine_backward(dout, cache, need_dx=need_dx)
        return dx, {"W": dw, "b": db} if self.bias else {"W": dw}


@dataclass(frozen=True)
class Conv(Layer):
    """`filters` filters: parameters W (filters, C, KH, KW) and b (filters,).

    Without `padding` the output keeps the image's size at stride 1, if kernel_size is odd.

    Examples
    --------
    >>> Conv(16).output_shape((3, 8, 8)), Conv(16, kernel_size=5, stride=2, padding=0).output_shape((3, 8, 8))
    ((16, 8, 8), (16, 2, 2))
    >>> Conv(16, bias=False).parameters((3, 8, 8))
    {'W': ((16, 3, 3, 3), None)}
    """

    filters: int
    kernel_size: Size = 3
    stride: Size = 1
    padding: Size | None = None
    bias: bool = True
    algorithm: str = "auto"

    def __post_init__(self) -> None:
        check_count("filters", self.filters)
        _check_window(self.kernel_size, self.stride, self.padding)
        check_flag("bias", self.bias)
        if self.algorithm not in ("auto", "im2col"):
            raise ArgumentError(f"algorithm is {self.algorithm!r}; expected auto or im2col")

    def output_shape(self, shape: Shape) -> Shape:
        return (self.filters, *window_output(shape, self.kernel_size, self.stride, self._padding))

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return _weights((self.filters, shape[0], *_both(self.kernel_size)), self.filters, self.bias)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.conv_forward(
            x, p["W"], p.get("b"), stride=self.stride, padding=self._padding, algorithm=self.algorithm
        )

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dw, db = F.conv_backward(dout, cache, need_dx=need_dx)
        return dx, {"W": dw, "b": db} if self.bias else {"W": dw}

    @property
    def _padding(self) -> Size:
        if self.padding is not None:
            return self.padding
        height, width = _both(self.kernel_size)
        return (height - 1) // 2, (width - 1) // 2


@dataclass(frozen=True)
class _Plain(Layer):
    """A layer without parameters, whose backward function is `_gradient`."""

    _gradient: ClassVar[Callable[..., Any]]

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        return self._gradient(dout, cache), {}


@dataclass(frozen=True)
class Relu(_Plain):
    """``max(x, 0)``.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = Relu().forward(np.asarray([-1.0, 2.0]), {}, train=True, seed=0)
    >>> out
    array([0., 2.])
    """

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.relu_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.relu_forward(x)


@dataclass(frozen=True)
class Dropout(_Plain):
    """Keep each element with probability `keep_prob` in training.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = Dropout(keep_prob=0.5).forward(np.ones((2, 3)), {}, train=False, seed=0)
    >>> float(out.min())
    1.0
    """

    keep_prob: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_prob", check_probability("keep_prob", self.keep_prob))

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.dropout_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.dropout_forward(x, keep_prob=self.keep_prob, seed=seed, train=train)


@dataclass(frozen=True)
class MaxPool(_Plain):
    """The maximum of each window.

    Examples
    --------
    >>> MaxPool().output_shape((16, 8, 8)), MaxPool(3, stride=1).output_shape((16, 8, 8))
    ((16, 4, 4), (16, 6, 6))
    """

    kernel_size: Size = 2
    stride: Size | None = None
    padding: Size = 0
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.max_pool_backward)

    def __post_init__(self) -> None:
        _check_window(self.kernel_size, self.stride, self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        stride = self.kernel_size if self.stride is None else self.stride
        return (shape[0], *window_output(shape, self.kernel_size, stride, self.padding))

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.max_pool_forward(x, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding)


@dataclass(frozen=True)
class AvgPool(MaxPool):
    """The mean of each window.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool(2).forward(np.asarray([[[[1.0, 2.0], [3.0, 4.0]]]]), {}, train=True, seed=0)[0].item()
    2.5
    """

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.avg_pool_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.avg_pool_forward(x, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding)


@dataclass(frozen=True)
class GlobalAvgPool(_Plain):
    """The mean of each channel.

    Examples
    --------
    >>> GlobalAvgPool().output_shape((16, 8, 8))
    (16,)
    """

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.global_avg_pool_backward)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.global_avg_pool_forward(x)


@dataclass(frozen=True)
class _Norm(Layer):
    """A normalisation: parameters gamma and beta, one for each channel."""

    eps: float = 1e-5
    _gradient: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps))

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return {"gamma": (shape[:1], 1.0), "beta": (shape[:1], 0.0)}

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dgamma, dbeta = self._gradient(dout, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Normalise each channel over the batch; remembers running_mean and running_var (C,).

    Examples
    --------
    >>> BatchNorm().parameters((16, 8, 8)), sorted(BatchNorm().state((16, 8, 8)))
    ({'gamma': ((16,), 1.0), 'beta': ((16,), 0.0)}, ['running_mean', 'running_var'])
    """

    momentum: float = 0.9
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.batchnorm_backward)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "momentum", check_fraction("momentum", self.momentum))

    def state(self, shape: Shape) -> dict[str, tuple[Shape, float]]:
        return {"running_mean": (shape[:1], 0.0), "running_var": (shape[:1], 0.0)}

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        running = F.RunningStats(p["running_mean"], p["running_var"])
        return F.batchnorm_forward(x, p["gamma"], p["beta"], running, train=train, momentum=self.momentum, eps=self.eps)

    def new_state(self, cache: Any) -> Arrays:
        return {"running_mean": cache.running.mean, "running_var": cache.running.var}


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Normalise each sample over its features: gamma and beta in the shape of one sample.

    Examples
    --------
    >>> LayerNorm().parameters((16, 8, 8))["gamma"]
    ((16, 8, 8), 1.0)
    """

    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.layernorm_backward)

    def parameters(self, shape: Shape) -> dict[str, tuple[Shape, float | None]]:
        return {"gamma": (shape, 1.0), "beta": (shape, 0.0)}

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.layernorm_forward(x, p["gamma"], p["beta"], eps=self.eps)


@dataclass(frozen=True)
class GroupNorm(_Norm):
    """Normalise each of `groups` groups of channels of each sample.

    Examples
    --------
    >>> GroupNorm(groups=4).parameters((16, 8, 8))["gamma"]
    ((16,), 1.0)
    """

    groups: int = 1
    _gradient: ClassVar[Callable[..., Any]] = staticmethod(F.groupnorm_backward)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("groups", self.groups)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.groupnorm_forward(x, p["gamma"], p["beta"], groups=self.groups, eps=self.eps)


def _check_window(kernel_size: Size, stride: Size | None, padding: Size | None) -> None:
    check_pair("kernel_size", kernel_size, 1)
    if stride is not None:
        check_pair("stride", stride, 1)
    if padding is not None:
        check_pair("padding", padding, 0)


def _weights(shape: Shape, units: int, bias: bool) -> dict[str, tuple[Shape, float | None]]:
    return {"W": (shape, None), "b": ((units,), 0.0)} if bias else {"W": (shape, None)}


def _both(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
