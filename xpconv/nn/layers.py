"""Layer objects: a layer's two functions, its options, and the shapes of its parameters and of its output."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields
from math import prod, sqrt
from typing import Any, ClassVar, NamedTuple

from xpconv import layers as F
from xpconv._validation import (
    check_choice,
    check_count,
    check_eps,
    check_flag,
    check_fraction,
    check_nonnegative,
    check_pair,
    check_positive,
    check_probability,
    is_integer,
)
from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.layers._checks import Padding, make_window, window_output
from xpconv.layers.conv_transpose import enlarged_size
from xpconv.layers.pool import fit_to_images
from xpconv.nn._parts import Part, Pass
from xpconv.nn._sync_norm import synced_batchnorm_backward, synced_batchnorm_forward
from xpconv.ops.windows import Window
from xpconv.random import RandomStream

__all__ = [
    "Affine",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dirac",
    "Dropout",
    "Gelu",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "LeakyRelu",
    "MaxPool",
    "Normal",
    "PadChannels",
    "Relu",
    "Scale",
    "Silu",
    "Uniform",
]

Shape = tuple[int, ...]
Size = int | Sequence[int]
Arrays = dict[str, Any]  # arrays by name


class Normal(NamedTuple):
    """Initial values of weights: a normal distribution with standard deviation ``sqrt(2 / fan_in)``.

    The ``weight_scale`` of a model replaces this standard deviation.

    Attributes
    ----------
    fan_in : float
        How many inputs an output depends on.

    References
    ----------
    He et al., "Delving Deep into Rectifiers", 2015.

    Examples
    --------
    >>> Conv(16, bias=False).parameters((3, 8, 8))
    {'W': ((16, 3, 3, 3), Normal(fan_in=27))}
    """

    fan_in: float

    def draw(self, shape: Shape, stream: RandomStream) -> Any:
        """Return the values as a NumPy array of float64."""
        return stream.standard_normal(shape) * sqrt(2 / self.fan_in)


class Uniform(NamedTuple):
    """Initial values of weights: a uniform distribution from ``-1 / sqrt(fan_in)`` to ``1 / sqrt(fan_in)``.

    This is the default of PyTorch's Linear and Conv2d; its standard deviation is ``1 / sqrt(3 * fan_in)``. The
    ``weight_scale`` of a model does not change it.

    Attributes
    ----------
    fan_in : float
        How many inputs an output depends on.

    Examples
    --------
    >>> Conv(16, bias=False, init="uniform").parameters((3, 8, 8))
    {'W': ((16, 3, 3, 3), Uniform(fan_in=27))}
    """

    fan_in: float

    def draw(self, shape: Shape, stream: RandomStream) -> Any:
        """Return the values as a NumPy array of float64."""
        return stream.uniform(-1, 1, shape) / sqrt(self.fan_in)


class Dirac(NamedTuple):
    """Initial values of filters: filter c returns channel c of its input, for each channel; others are `Uniform`.

    The first filters thus pass the image through, and a deep net starts from a shallow one.

    Attributes
    ----------
    fan_in : float
        How many inputs an output depends on.

    References
    ----------
    Zagoruyko and Komodakis, "DiracNets: Training Very Deep Neural Networks Without Skip-Connections", 2017; Jordan,
    "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> Dirac(fan_in=6).draw((3, 2, 1, 3), np.random.default_rng(0))[0, :, 0]
    array([[0., 1., 0.],
           [0., 0., 0.]])
    """

    fan_in: float

    def draw(self, shape: Shape, stream: RandomStream) -> Any:
        """Return the values as a NumPy array of float64."""
        filters = Uniform(self.fan_in).draw(shape, stream)
        count, channels, height, width = shape
        filters[:channels] = 0
        for c in range(min(count, channels)):
            filters[c, c, (height - 1) // 2, (width - 1) // 2] = 1
        return filters


Initial = float | Normal | Uniform | Dirac
Parameters = dict[str, tuple[Shape, Initial]]


@dataclass(frozen=True)
class Layer:
    """Base class of layers: no parameters, no state, and an output in the input's shape, unless a subclass differs.

    A subclass writes `forward` and `backward`. Its options are the fields of a frozen dataclass. Its `repr` has the
    positional options and the keyword options that differ from their defaults. A field that is a
    tuple of layers is a branch: its layers run one after another, from the input of the layer that holds them. The
    parameters and the state of a layer with branches are those of the branches, such as ``body.0.W``.

    Parameters
    ----------
    trainable : bool
        Whether training changes the parameters and the state.
    fixed : str
        Names of parameters that training does not change, joined by ``|``: ``"gamma"``, or ``"W|b"``.

    Attributes
    ----------
    stochastic : bool
        Of the class: whether training passes are random. If so, `forward` gets another seed in each of them.

    Examples
    --------
    >>> class Double(Layer):
    ...     def forward(self, x, p, *, train, seed):
    ...         return 2 * x, None
    ...
    ...     def backward(self, dout, cache, *, need_dx):
    ...         return 2 * dout, {}
    >>> Double().output_shape((3, 8, 8)), Double().parameters((3, 8, 8))
    ((3, 8, 8), {})
    >>> Conv(16, padding="same"), MaxPool()
    (Conv(16, 3, padding='same'), MaxPool(2))
    """

    trainable: bool = field(default=True, kw_only=True)
    fixed: str = field(default="", kw_only=True)
    stochastic: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        setattr(cls, "__repr__", cls.__repr__)  # noqa: B010 - @dataclass writes none into a class that has its own

    def __repr__(self) -> str:
        options = sorted((option for option in fields(self) if option.repr), key=lambda option: bool(option.kw_only))
        shown: list[str] = []
        for position, option in enumerate(options):
            value = repr(getattr(self, option.name))
            by_position = not option.kw_only and len(shown) == position
            if value != _default(option) or (by_position and value != "None"):
                shown.append(value if by_position else f"{option.name}={value}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def branches(self) -> dict[str, tuple["Layer", ...]]:
        """The fields that are tuples of layers, by name.

        Examples
        --------
        >>> from xpconv.nn import Residual
        >>> Residual([Relu()]).branches
        {'body': (Relu(),), 'shortcut': ()}
        """
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {
            name: value
            for name, value in values.items()
            if isinstance(value, tuple) and all(isinstance(layer, Layer) for layer in value)
        }

    def is_trained(self, name: str) -> bool:
        """Return whether training changes the parameter of this name; not if it is fixed or the layer is frozen.

        Examples
        --------
        >>> Affine(10, fixed="W").is_trained("W"), Affine(10, fixed="W").is_trained("b")
        (False, True)
        """
        return self.trainable and name not in self.fixed.split("|")

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one output sample, given that of one input sample."""
        return shape

    def parameters(self, shape: Shape) -> Parameters:
        """Return each parameter's shape and initial value: a number, or `Normal` for values that the model draws.

        Parameters
        ----------
        shape : tuple of int
            The shape of one input sample.
        """
        return self._of_branches("parameters", shape)

    def state(self, shape: Shape) -> dict[str, tuple[Shape, float]]:
        """Return the shape and the initial value of each array that the layer keeps but does not learn."""
        return self._of_branches("state", shape)

    def _of_branches(self, method: str, shape: Shape) -> dict[str, Any]:
        """Return what a method of the layers in the branches returns, by names such as ``body.0.W``."""
        found: dict[str, Any] = {}
        for branch, layers in self.branches.items():
            inner = shape
            for position, layer in enumerate(layers):
                arrays = getattr(layer, method)(inner)
                found |= {f"{branch}.{position}.{name}": value for name, value in arrays.items()}
                inner = layer.output_shape(inner)
        return found

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        """Return the output and the cache.

        Parameters
        ----------
        x : array (N, ...)
        p : dict of str to array
            The parameters and the state, by the names that `parameters` and `state` give them.
        train : bool
            Whether this is a training pass.
        seed : int
            In the training passes of a `stochastic` layer a new number, 0 to 2**32 - 1; else 0.
        """
        raise NotImplementedError

    def outputs(self, x: Array, p: Arrays) -> Iterator[tuple[str, "Layer", Array]]:
        """Yield the path, the layer and its output in evaluation, for layers in the branches and then for this one.

        A path is relative to this layer, such as ``body.0``; that of this layer is empty.
        """
        yield "", self, self.forward(x, p, train=False, seed=0)[0]

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        """Return the gradient of the input, or None unless `need_dx`, and the gradients of the parameters by name."""
        raise NotImplementedError

    def forward_pass(self, x: Array, p: Arrays, *, train: bool, seed: int, part: Part) -> Pass:
        """Run `forward` on one part of a minibatch; layers whose outputs depend on the other parts override this."""
        yield from ()
        return self.forward(x, p, train=train, seed=seed)

    def backward_pass(self, dout: Array, cache: Any, *, need_dx: bool, part: Part) -> Pass:
        """Run `backward` on one part of a minibatch."""
        yield from ()
        return self.backward(dout, cache, need_dx=need_dx)

    def new_state(self, cache: Any) -> Arrays:
        """Return the state after a training pass, by name."""
        return {}


@dataclass(frozen=True)
class Affine(Layer):
    """`units` outputs, each a weighted sum of all inputs: parameters W (D, units) and b (units,).

    With ``init="uniform"`` the weights start as `Uniform` says, otherwise as `Normal` says.

    Examples
    --------
    >>> Affine(10).output_shape((3, 8, 8)), Affine(10).parameters((3, 8, 8))["W"]
    ((10,), ((192, 10), Normal(fan_in=192)))
    """

    units: int
    _: KW_ONLY
    bias: bool = True
    init: str = "normal"

    def __post_init__(self) -> None:
        _store(self, units=check_count("units", self.units))
        check_flag("bias", self.bias)
        check_choice("init", self.init, ("normal", "uniform"))

    def output_shape(self, shape: Shape) -> Shape:
        return (self.units,)

    def parameters(self, shape: Shape) -> Parameters:
        return _weights((prod(shape), self.units), prod(shape), self.units, self.bias, self.init)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.affine_forward(x, p["W"], p.get("b"))

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        return _dx_and_gradients(self, F.affine_backward, dout, cache, need_dx)


@dataclass(frozen=True)
class Conv(Layer):
    """`filters` filters: parameters W (filters, C / groups, KH, KW) and b (filters,).

    With ``padding="same"`` the output has the image's size divided by the stride, rounded up. The filters start as
    `Normal` says, or with ``init="uniform"`` or ``"dirac"`` as `Uniform` or `Dirac` says.

    Examples
    --------
    >>> (
    ...     Conv(16, padding="same").output_shape((3, 8, 8)),
    ...     Conv(16, 5, stride=2).output_shape((3, 8, 8)),
    ... )
    ((16, 8, 8), (16, 2, 2))
    >>> Conv(16, bias=False).parameters((3, 8, 8))
    {'W': ((16, 3, 3, 3), Normal(fan_in=27))}
    """

    filters: int
    kernel_size: Size = 3
    _: KW_ONLY
    stride: Size = 1
    padding: Padding = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True
    algorithm: str = "auto"
    init: str = "normal"

    def __post_init__(self) -> None:
        _store(
            self,
            filters=check_count("filters", self.filters),
            kernel_size=_check_size("kernel_size", self.kernel_size, 1),
            stride=_check_size("stride", self.stride, 1),
            padding=_check_padding(self.padding),
            dilation=_check_size("dilation", self.dilation, 1),
            groups=check_count("groups", self.groups),
        )
        if self.filters % self.groups:
            raise ArgumentError(f"groups is {self.groups}; expected a divisor of the {self.filters} filters")
        check_flag("bias", self.bias)
        check_choice("algorithm", self.algorithm, ("auto", "im2col"))
        check_choice("init", self.init, INITIAL)
        if self.init == "dirac" and self.groups > 1:
            raise ArgumentError(f"init is 'dirac', with groups {self.groups}; expected 1: take init='uniform'")

    @property
    def window(self) -> Window:
        """The window with the padding of each side, also for "same".

        Examples
        --------
        >>> Conv(16, (5, 3), padding="same").window.padding
        ((2, 2), (1, 1))
        """
        return make_window(self.kernel_size, self.stride, self.padding, self.dilation)

    def output_shape(self, shape: Shape) -> Shape:
        return (self.filters, *window_output(shape, self.window))

    def parameters(self, shape: Shape) -> Parameters:
        if shape[0] % self.groups:
            raise ArgumentError(f"groups is {self.groups}; expected a divisor of the {shape[0]} channels of the input")
        window = shape[0] // self.groups, *self.window.kernel_size
        return _weights((self.filters, *window), prod(window), self.filters, self.bias, self.init)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.conv_forward(
            x,
            p["W"],
            p.get("b"),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            algorithm=self.algorithm,
        )

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        return _dx_and_gradients(self, F.conv_backward, dout, cache, need_dx)


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """A transposed convolution, which enlarges images: parameters W (C, filters / groups, KH, KW) and b (filters,).

    Examples
    --------
    >>> ConvTranspose(16, 2, stride=2).output_shape((3, 8, 8))
    (16, 16, 16)
    >>> ConvTranspose(16, 4, stride=2, padding=1, bias=False).parameters((3, 8, 8))
    {'W': ((3, 16, 4, 4), Normal(fan_in=12.0))}
    """

    filters: int
    kernel_size: Size = 3
    _: KW_ONLY
    stride: Size = 1
    padding: Padding = 0
    output_padding: Size = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        _store(
            self,
            filters=check_count("filters", self.filters),
            kernel_size=_check_size("kernel_size", self.kernel_size, 1),
            stride=_check_size("stride", self.stride, 1),
            padding=_check_padding(self.padding),
            output_padding=_check_size("output_padding", self.output_padding, 0),
            dilation=_check_size("dilation", self.dilation, 1),
            groups=check_count("groups", self.groups),
        )
        if self.filters % self.groups:
            raise ArgumentError(f"groups is {self.groups}; expected a divisor of the {self.filters} filters")
        check_flag("bias", self.bias)

    @property
    def window(self) -> Window:
        """The window on the output, with the padding of each side."""
        return make_window(self.kernel_size, self.stride, self.padding, self.dilation)

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise ArgumentError(f"samples have shape {shape}; expected images (C, H, W), as before any Affine layer")
        return (self.filters, *enlarged_size(shape[1:], self.window, self.output_padding))

    def parameters(self, shape: Shape) -> Parameters:
        """Return each parameter's shape and initial value; a pixel is in ``prod(kernel_size / stride)`` windows."""
        channels, kernel_size = shape[0], self.window.kernel_size
        if channels % self.groups:
            raise ArgumentError(f"groups is {self.groups}; expected a divisor of the {channels} channels of the input")
        fan_in = channels // self.groups * prod(kernel_size) / prod(self.window.stride)
        return _weights((channels, self.filters // self.groups, *kernel_size), fan_in, self.filters, self.bias)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.conv_transpose_forward(
            x,
            p["W"],
            p.get("b"),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        return _dx_and_gradients(self, F.conv_transpose_backward, dout, cache, need_dx)


@dataclass(frozen=True)
class _WithoutParameters(Layer):
    """A layer without parameters, whose backward function is `_backward`."""

    _backward: ClassVar[Callable[..., Any]]

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        return self._backward(dout, cache), {}


@dataclass(frozen=True)
class Relu(_WithoutParameters):
    """``max(x, 0)``.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = Relu().forward(np.asarray([-1.0, 2.0]), {}, train=True, seed=0)
    >>> out
    array([0., 2.])
    """

    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.relu_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.relu_forward(x)


@dataclass(frozen=True)
class LeakyRelu(_WithoutParameters):
    """``x`` where it is positive and ``negative_slope * x`` elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> LeakyRelu(0.1).forward(np.asarray([-1.0, 2.0]), {}, train=True, seed=0)[0]
    array([-0.1,  2. ])
    """

    negative_slope: float = 0.01
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.leaky_relu_backward)

    def __post_init__(self) -> None:
        _store(self, negative_slope=check_nonnegative("negative_slope", self.negative_slope))

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.leaky_relu_forward(x, negative_slope=self.negative_slope)


@dataclass(frozen=True)
class Scale(_WithoutParameters):
    """``factor * x``; before the last layer it makes the initial scores smaller.

    Examples
    --------
    >>> import numpy as np
    >>> Scale(0.5).forward(np.asarray([-1.0, 2.0]), {}, train=True, seed=0)[0]
    array([-0.5,  1. ])
    """

    factor: float
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.scale_backward)

    def __post_init__(self) -> None:
        _store(self, factor=check_positive("factor", self.factor))

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.scale_forward(x, factor=self.factor)


@dataclass(frozen=True)
class Gelu(_WithoutParameters):
    """``x * P(x)`` with the normal distribution function P, exact or with ``approximate="tanh"``.

    Examples
    --------
    >>> import numpy as np
    >>> Gelu().forward(np.asarray([-1.0, 2.0]), {}, train=True, seed=0)[0].round(4)
    array([-0.1587,  1.9545])
    """

    approximate: str = "none"
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.gelu_backward)

    def __post_init__(self) -> None:
        check_choice("approximate", self.approximate, ("none", "tanh"))

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.gelu_forward(x, approximate=self.approximate)


@dataclass(frozen=True)
class Silu(_WithoutParameters):
    """``x / (1 + exp(-x))``, also called swish.

    Examples
    --------
    >>> import numpy as np
    >>> Silu().forward(np.asarray([-1.0, 2.0]), {}, train=True, seed=0)[0].round(4)
    array([-0.2689,  1.7616])
    """

    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.silu_backward)

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.silu_forward(x)


@dataclass(frozen=True)
class Dropout(_WithoutParameters):
    """Keep each element with probability `keep_prob` in training.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = Dropout(keep_prob=0.5).forward(
    ...     np.ones((2, 3)), {}, train=False, seed=0
    ... )
    >>> float(out.min())
    1.0
    """

    keep_prob: float = 0.5
    stochastic: ClassVar[bool] = True
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.dropout_backward)

    def __post_init__(self) -> None:
        _store(self, keep_prob=check_probability("keep_prob", self.keep_prob))

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.dropout_forward(x, keep_prob=self.keep_prob, seed=seed, train=train)

    def forward_pass(self, x: Array, p: Arrays, *, train: bool, seed: int, part: Part) -> Pass:
        yield from ()
        if part.count == 1:
            return self.forward(x, p, train=train, seed=seed)
        first = part.number * prod(x.shape)  # so that the mask does not depend on the number of parts
        return F.dropout_forward(x, keep_prob=self.keep_prob, seed=seed, train=train, first=first)


@dataclass(frozen=True)
class _Pool(_WithoutParameters):
    """A layer that reduces each window of a channel to one value."""

    kernel_size: Size = 2
    stride: Size | None = None
    _: KW_ONLY
    padding: Padding = 0
    ceil_mode: bool = False
    _forward: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        _store(
            self,
            kernel_size=_check_size("kernel_size", self.kernel_size, 1),
            stride=None if self.stride is None else _check_size("stride", self.stride, 1),
            padding=_check_padding(self.padding),
        )
        check_flag("ceil_mode", self.ceil_mode)

    @property
    def window(self) -> Window:
        """The window with the padding of each side, without what `ceil_mode` adds."""
        return make_window(self.kernel_size, self.kernel_size if self.stride is None else self.stride, self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        window = fit_to_images(self.window, shape, self.ceil_mode)
        return (shape[0], *window.output_size((shape[1], shape[2])))

    def _options(self) -> Arrays:
        """Return the options of the pooling functions."""
        names = [option.name for option in fields(self)]
        return {name: getattr(self, name) for name in names if name not in ("trainable", "fixed")}

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        result: tuple[Array, Any] = self._forward(x, **self._options())
        return result


@dataclass(frozen=True)
class MaxPool(_Pool):
    """The maximum of each window; by default windows tile the image.

    Examples
    --------
    >>> MaxPool().output_shape((16, 8, 8)), MaxPool(3, stride=1).output_shape((16, 8, 8))
    ((16, 4, 4), (16, 6, 6))
    """

    dilation: Size = field(default=1, kw_only=True)
    _forward: ClassVar[Callable[..., Any]] = staticmethod(F.max_pool_forward)
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.max_pool_backward)

    def __post_init__(self) -> None:
        super().__post_init__()
        _store(self, dilation=_check_size("dilation", self.dilation, 1))

    @property
    def window(self) -> Window:
        """The window with the padding of each side, without what `ceil_mode` adds."""
        return super().window._replace(dilation=check_pair("dilation", self.dilation, 1))


@dataclass(frozen=True)
class AvgPool(_Pool):
    """The mean of each window; by default windows tile the image.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool(2).forward(
    ...     np.asarray([[[[1.0, 2.0], [3.0, 4.0]]]]), {}, train=True, seed=0
    ... )[0].item()
    2.5
    """

    count_include_pad: bool = field(default=True, kw_only=True)
    _forward: ClassVar[Callable[..., Any]] = staticmethod(F.avg_pool_forward)
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.avg_pool_backward)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("count_include_pad", self.count_include_pad)


@dataclass(frozen=True)
class GlobalAvgPool(_WithoutParameters):
    """The mean of each channel.

    Examples
    --------
    >>> GlobalAvgPool().output_shape((16, 8, 8))
    (16,)
    """

    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.global_avg_pool_backward)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.global_avg_pool_forward(x)


@dataclass(frozen=True)
class GlobalMaxPool(_WithoutParameters):
    """The maximum of each channel.

    Examples
    --------
    >>> GlobalMaxPool().output_shape((16, 8, 8))
    (16,)
    """

    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.global_max_pool_backward)

    def output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.global_max_pool_forward(x)


@dataclass(frozen=True)
class PadChannels(_WithoutParameters):
    """Append channels of zeros, up to `channels`; a shortcut without parameters needs it.

    Examples
    --------
    >>> PadChannels(32).output_shape((16, 8, 8))
    (32, 8, 8)
    """

    channels: int
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.pad_channels_backward)

    def __post_init__(self) -> None:
        _store(self, channels=check_count("channels", self.channels))

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise ArgumentError(f"samples have shape {shape}; expected images (C, H, W)")
        if shape[0] > self.channels:
            raise ArgumentError(f"channels is {self.channels}; expected at least the {shape[0]} channels of the input")
        return (self.channels, *shape[1:])

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.pad_channels_forward(x, channels=self.channels)


@dataclass(frozen=True)
class _Norm(Layer):
    """A normalisation: parameters gamma and beta, one for each channel."""

    eps: float = field(default=1e-5, kw_only=True)
    _backward: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        _store(self, eps=check_eps(self.eps))

    def parameters(self, shape: Shape) -> Parameters:
        return {"gamma": (shape[:1], 1.0), "beta": (shape[:1], 0.0)}

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        dx, dgamma, dbeta = self._backward(dout, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """Normalise each channel over the batch; the state is running_mean and running_var (C,), and num_batches (1,).

    After t batches, batch i has the weight ``momentum**(t - i) * (1 - momentum) / (1 - momentum**t)`` in the running
    averages. The weights add up to 1, as in Adam, so the averages can be used from the first batch on. Averages that
    start from the first batch would keep it at the weight ``momentum**(t - 1)``, although parameters change fastest
    after it. (The accuracy of a ConvNet after 10 iterations on digits: 0.71; started from the first batch, 0.66.)

    With ``bias_correction=False`` the averages start from zeros, as in CS231n, and the state has no num_batches.

    If it is not `trainable`, it normalises by the running averages in training, too, and keeps them.

    Examples
    --------
    >>> BatchNorm().parameters((16, 8, 8)), sorted(BatchNorm().state((16, 8, 8)))
    ({'gamma': ((16,), 1.0), 'beta': ((16,), 0.0)}, ['num_batches', 'running_mean', 'running_var'])
    """

    momentum: float = field(default=0.9, kw_only=True)
    bias_correction: bool = field(default=True, kw_only=True)
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.batchnorm_backward)

    def __post_init__(self) -> None:
        super().__post_init__()
        _store(self, momentum=check_fraction("momentum", self.momentum))
        check_flag("bias_correction", self.bias_correction)

    def state(self, shape: Shape) -> dict[str, tuple[Shape, float]]:
        if not self.bias_correction:
            return {"running_mean": (shape[:1], 0.0), "running_var": (shape[:1], 0.0)}
        return {"running_mean": (shape[:1], 0.0), "running_var": (shape[:1], 1.0), "num_batches": ((1,), 0.0)}

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.batchnorm_forward(x, p["gamma"], p["beta"], **self._options(p), train=train and self.trainable)

    def forward_pass(self, x: Array, p: Arrays, *, train: bool, seed: int, part: Part) -> Pass:
        if train and self.trainable and part.norm_sync and part.count > 1:
            return (yield from synced_batchnorm_forward(x, p["gamma"], p["beta"], **self._options(p)))
        return self.forward(x, p, train=train, seed=seed)

    def backward_pass(self, dout: Array, cache: Any, *, need_dx: bool, part: Part) -> Pass:
        if cache.train and part.norm_sync and part.count > 1:
            dx, dgamma, dbeta = yield from synced_batchnorm_backward(dout, cache, part.count)
            return dx, {"gamma": dgamma, "beta": dbeta}
        return self.backward(dout, cache, need_dx=need_dx)

    def _options(self, p: Arrays) -> Arrays:
        running = F.RunningStats(p["running_mean"], p["running_var"], p.get("num_batches"))
        return {"running": running, "momentum": self.momentum, "eps": self.eps}

    def new_state(self, cache: Any) -> Arrays:
        names = ("running_mean", "running_var", "num_batches")
        return {name: a for name, a in zip(names, cache.running, strict=True) if a is not None}


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """Normalise each sample over its features: gamma and beta in the shape of one sample.

    Examples
    --------
    >>> LayerNorm().parameters((16, 8, 8))["gamma"]
    ((16, 8, 8), 1.0)
    """

    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.layernorm_backward)

    def parameters(self, shape: Shape) -> Parameters:
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
    _backward: ClassVar[Callable[..., Any]] = staticmethod(F.groupnorm_backward)

    def __post_init__(self) -> None:
        super().__post_init__()
        _store(self, groups=check_count("groups", self.groups))

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        return F.groupnorm_forward(x, p["gamma"], p["beta"], groups=self.groups, eps=self.eps)


def _default(option: Field[Any]) -> str | None:
    """Return the `repr` of an option's default; arrays have no single truth value, but their texts compare."""
    if option.default_factory is not MISSING:
        return repr(option.default_factory())
    return None if option.default is MISSING else repr(option.default)


def _store(layer: Layer, **options: Any) -> None:
    """Replace options by the plain Python values that their checks returned, which JSON can hold."""
    for name, value in options.items():
        object.__setattr__(layer, name, value)


def _check_size(name: str, size: Size, minimum: int) -> Size:
    """Return an int or a pair of ints as what it is, in Python's integers."""
    pair = check_pair(name, size, minimum)
    return pair if isinstance(size, Sequence) else pair[0]


def _check_padding(padding: Padding) -> Padding:
    """Return the padding in Python's integers."""
    (top, bottom), (left, right) = make_window(1, padding=padding).padding
    if isinstance(padding, str):
        return padding
    if not isinstance(padding, Sequence):
        return top
    return (top, left) if is_integer(padding[0]) else ((top, bottom), (left, right))


INITIAL: dict[str, Callable[[float], Initial]] = {"normal": Normal, "uniform": Uniform, "dirac": Dirac}


def _weights(shape: Shape, fan_in: float, units: int, bias: bool, init: str = "normal") -> Parameters:
    weights: Parameters = {"W": (shape, INITIAL[init](fan_in))}
    return {**weights, "b": ((units,), 0.0)} if bias else weights


def _dx_and_gradients(
    layer: Layer, backward: Callable[..., Any], dout: Array, cache: Any, need_dx: bool
) -> tuple[Array | None, Arrays]:
    """Return the gradient of the input and those of the trained ones among W and b."""
    needed = {"need_dx": need_dx, "need_dw": layer.is_trained("W"), "need_db": layer.is_trained("b")}
    dx, dw, db = backward(dout, cache, **needed)
    return dx, {name: gradient for name, gradient in (("W", dw), ("b", db)) if gradient is not None}
