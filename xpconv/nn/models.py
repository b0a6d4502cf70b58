"""The networks of the CS231n assignment, deeper ConvNets, and residual nets, each a list of layers."""

from collections.abc import Sequence
from typing import Any, ClassVar

from xpconv._validation import check_count, check_counts, check_pair, check_positive, is_integer
from xpconv.backend import Array
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn.layers import (
    Affine,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Gelu,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool,
    PadChannels,
    Relu,
    Scale,
)
from xpconv.nn.residual import Residual
from xpconv.nn.sequential import Sequential
from xpconv.nn.whitening import whitening_filters

__all__ = ["Airbench", "ConvNet", "FullyConnectedNet", "ResNet", "ResNet9", "ThreeLayerConvNet", "TwoLayerNet"]


class FullyConnectedNet(Sequential):
    """``{affine - [norm] - relu - [dropout]} x L - affine - softmax``, one hidden layer for each of `hidden_dims`.

    Parameters
    ----------
    hidden_dims : sequence of int
        Number of units of each hidden layer.
    input_dim : int
        Number of values of a sample; samples may have any shape.
    num_classes : int
    keep_prob : float
        Probability that dropout keeps a value; 1 adds no dropout layers.
    normalization : {None, "batchnorm", "layernorm"}
    weight_scale : float or None
    **options
        As for `Sequential`: reg, dtype, backend, rng, seed, ...

    Examples
    --------
    >>> net = FullyConnectedNet(
    ...     [20, 30], input_dim=15, num_classes=10, normalization="batchnorm", rng=0
    ... )
    >>> net.params["W2"].shape, net.state["running_mean2"].shape
    ((20, 30), (30,))
    """

    _batch_norm: ClassVar[Layer] = BatchNorm()

    def __init__(
        self,
        hidden_dims: Sequence[int],
        *,
        input_dim: int = 3 * 32 * 32,
        num_classes: int = 10,
        keep_prob: float = 1.0,
        normalization: str | None = None,
        weight_scale: float | None = 1e-2,
        **options: Any,
    ) -> None:
        input_dim = check_count("input_dim", input_dim)
        norms = {None: [], "batchnorm": [self._batch_norm], "layernorm": [LayerNorm()]}
        norm: list[Layer] = list(_choose("normalization", normalization, norms))
        dropout: list[Layer] = [Dropout(keep_prob)] if keep_prob != 1 else []
        layers: list[Layer] = []
        for units in check_counts("hidden_dims", hidden_dims):
            layers += [Affine(units), *norm, Relu(), *dropout]
        options = {"name": "FullyConnectedNet", **options}
        layers.append(Affine(check_count("num_classes", num_classes)))
        super().__init__(layers, input_shape=(input_dim,), weight_scale=weight_scale, **options)


class TwoLayerNet(FullyConnectedNet):
    """``affine - relu - affine - softmax``.

    Parameters
    ----------
    input_dim, hidden_dim, num_classes : int
    weight_scale : float or None
    **options
        As for `Sequential`.

    Examples
    --------
    >>> TwoLayerNet(input_dim=5, hidden_dim=50, num_classes=7, rng=0).params["W2"].shape
    (50, 7)
    """

    def __init__(
        self,
        *,
        input_dim: int = 3 * 32 * 32,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float | None = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(
            [check_count("hidden_dim", hidden_dim)],
            input_dim=input_dim,
            num_classes=num_classes,
            weight_scale=weight_scale,
            **{"name": "TwoLayerNet", **options},
        )


class ThreeLayerConvNet(Sequential):
    """``conv - relu - 2x2 max pool - affine - relu - affine - softmax``.

    Parameters
    ----------
    input_dim : (int, int, int)
        Channels, height and width of an image.
    num_filters, filter_size : int
        `filter_size` is odd, so the convolution keeps the image's size.
    hidden_dim, num_classes : int
    weight_scale : float or None
    **options
        As for `Sequential`.

    Examples
    --------
    >>> net = ThreeLayerConvNet(rng=0)
    >>> net.params["W1"].shape, net.params["W2"].shape
    ((32, 3, 7, 7), (8192, 100))
    """

    def __init__(
        self,
        *,
        input_dim: Sequence[int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float | None = 1e-3,
        **options: Any,
    ) -> None:
        check_pair("filter_size", filter_size, 1)
        super().__init__(
            [
                Conv(check_count("num_filters", num_filters), filter_size, padding="same"),
                Relu(),
                MaxPool(2),
                Affine(check_count("hidden_dim", hidden_dim)),
                Relu(),
                Affine(check_count("num_classes", num_classes)),
            ],
            input_shape=_image_shape(input_dim),
            weight_scale=weight_scale,
            **{"name": "ThreeLayerConvNet", **options},
        )


class ConvNet(Sequential):
    """``{conv - [norm] - relu | pool} x L - global average pool - [dropout] - affine - softmax``, with L stages.

    Parameters
    ----------
    stages : sequence of int and "pool"
        A number adds a convolution with that number of filters, a norm and a relu; "pool" adds a 2x2 max pool.
    input_dim : (int, int, int)
        Channels, height and width of an image.
    num_classes : int
    normalization : {"batchnorm", "groupnorm", None}
        Group norm uses the largest number of groups, at most 8, that divides the number of filters.
    filter_size : int
    keep_prob : float
        Probability that dropout keeps a value; 1 adds no dropout layer.
    weight_scale : float or None
    **options
        As for `Sequential`.

    Examples
    --------
    >>> net = ConvNet([16, "pool", 32], input_dim=(1, 8, 8), rng=0)
    >>> sorted(net.params)
    ['W1', 'W2', 'W3', 'b3', 'beta1', 'beta2', 'gamma1', 'gamma2']
    """

    def __init__(
        self,
        stages: Sequence[int | str] = (32, 32, "pool", 64, 64, "pool", 128, 128),
        *,
        input_dim: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        normalization: str | None = "batchnorm",
        filter_size: int = 3,
        keep_prob: float = 1.0,
        weight_scale: float | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(stages, Sequence) or isinstance(stages, str):
            raise ArgumentTypeError(f"stages is {stages!r}; expected a sequence of numbers of filters and 'pool'")
        check_pair("filter_size", filter_size, 1)
        layers: list[Layer] = []
        for position, stage in enumerate(stages):
            if stage == "pool":
                layers.append(MaxPool(2))
            elif is_integer(stage) and stage > 0:
                layers += _conv_norm_relu(stage, normalization, filter_size)
            else:
                raise ArgumentError(f"stages[{position}] is {stage!r}; expected a number of filters or 'pool'")
        dropout = [Dropout(keep_prob)] if keep_prob != 1 else []
        super().__init__(
            [*layers, GlobalAvgPool(), *dropout, Affine(check_count("num_classes", num_classes))],
            input_shape=_image_shape(input_dim),
            weight_scale=weight_scale,
            **{"name": "ConvNet", **options},
        )


class ResNet(Sequential):
    """The residual net for CIFAR-10, of 6n + 2 layers with parameters (He et al., 2016, section 4.2).

    ``conv - [norm] - relu - {block} x 3n - global average pool - [dropout] - affine - softmax``; a block is
    ``relu(conv - [norm] - relu - conv - [norm] + shortcut)``. The first block of the second and of the third n blocks
    halves the image and doubles the channels; its shortcut takes every second pixel and appends channels of zeros.

    Parameters
    ----------
    depth : int
        6n + 2: 20, 32, 44, 56, ...
    width : int
        Filters of the first n blocks; 16 in the paper.
    input_dim : (int, int, int)
        Channels, height and width of an image.
    num_classes : int
    normalization : {"batchnorm", "groupnorm", None}
        As for `ConvNet`.
    keep_prob : float
        Probability that dropout keeps a value; 1 adds no dropout layer.
    **options
        As for `Sequential`.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", 2016.

    Examples
    --------
    >>> net = ResNet(20, rng=0)
    >>> sum(w.size for w in net.params.values())
    269722
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        *,
        input_dim: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        normalization: str | None = "batchnorm",
        keep_prob: float = 1.0,
        **options: Any,
    ) -> None:
        blocks, rest = divmod(check_count("depth", depth, 8) - 2, 6)
        if rest:
            raise ArgumentError(f"depth is {depth}; expected 6 n + 2, such as 20, 32, 44 or 56")
        channels = check_count("width", width)
        layers: list[Layer] = _conv_norm_relu(channels, normalization)
        for stride in [1] * blocks + [2] + [1] * (blocks - 1) + [2] + [1] * (blocks - 1):
            channels *= stride
            body = [*_conv_norm_relu(channels, normalization, stride=stride), *_conv_norm(channels, normalization)]
            shortcut = [AvgPool(1, stride), PadChannels(channels)] if stride > 1 else []
            layers += [Residual(body, shortcut), Relu()]
        dropout = [Dropout(keep_prob)] if keep_prob != 1 else []
        super().__init__(
            [*layers, GlobalAvgPool(), *dropout, Affine(check_count("num_classes", num_classes))],
            input_shape=_image_shape(input_dim),
            **{"name": f"ResNet{depth}", **options},
        )


class ResNet9(Sequential):
    """The fast net for CIFAR-10 with eight convolutions, of which four are in two residual blocks (Page, 2018).

    With w filters, ``cnr(k)`` for ``conv - [norm] - relu`` and ``block(k)`` for ``x + cnr(k) - cnr(k)``:
    ``cnr(w) - cnr(2w) - pool - block(2w) - cnr(4w) - pool - cnr(8w) - pool - block(8w) - global max pool - [dropout] -
    affine - softmax``.

    Parameters
    ----------
    width : int
        Filters of the first convolution; 64 in the original.
    input_dim : (int, int, int)
        Channels, height and width of an image; at least 8 pixels each.
    num_classes : int
    normalization : {"batchnorm", "groupnorm", None}
        As for `ConvNet`.
    keep_prob : float
        Probability that dropout keeps a value; 1 adds no dropout layer.
    **options
        As for `Sequential`.

    References
    ----------
    Page, "How to Train Your ResNet", 2018.

    Examples
    --------
    >>> net = ResNet9(width=16, rng=0)
    >>> net.params["W8"].shape
    (128, 128, 3, 3)
    """

    def __init__(
        self,
        width: int = 64,
        *,
        input_dim: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        normalization: str | None = "batchnorm",
        keep_prob: float = 1.0,
        **options: Any,
    ) -> None:
        width = check_count("width", width)

        def convs(*filters: int) -> list[Layer]:
            return [layer for count in filters for layer in _conv_norm_relu(count, normalization)]

        dropout = [Dropout(keep_prob)] if keep_prob != 1 else []
        super().__init__(
            [
                *convs(width, 2 * width),
                MaxPool(2),
                Residual(convs(2 * width, 2 * width)),
                *convs(4 * width),
                MaxPool(2),
                *convs(8 * width),
                MaxPool(2),
                Residual(convs(8 * width, 8 * width)),
                GlobalMaxPool(),
                *dropout,
                Affine(check_count("num_classes", num_classes)),
            ],
            input_shape=_image_shape(input_dim),
            **{"name": "ResNet9", **options},
        )


class Airbench(Sequential):
    """The net that learns CIFAR-10 in seconds on a GPU (Jordan, 2024); its first filters are computed from images.

    ``conv(2x2) - gelu - {conv - 2x2 max pool - norm - gelu - conv - norm - gelu} x L - 3x3 max pool - scale - affine``,
    with L `widths`. The convolutions of the blocks start as identities (`Dirac`); they and the affine layer have no
    bias. The filters of the first convolution and the gammas of the norms are fixed. Call `whiten` before training.

    Parameters
    ----------
    widths : sequence of int
        Filters of each block.
    input_dim : (int, int, int)
        Channels, height and width of an image; for 3 blocks at least 25 pixels each.
    num_classes : int
    score_scale : float
        Factor of the scores.
    **options
        As for `Sequential`.

    References
    ----------
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.

    Examples
    --------
    >>> import numpy as np
    >>> net = Airbench(rng=0)
    >>> (
    ...     net.params["W1"].shape,
    ...     net.params["W7"].shape,
    ...     sum(w.size for w in net.params.values()),
    ... )
    ((24, 3, 2, 2), (256, 256, 3, 3), 1972792)
    >>> images = np.random.default_rng(0).standard_normal((8, 3, 32, 32))
    >>> net.whiten(images)
    >>> net.features(images, "conv1").std(axis=(0, 2, 3)).round(1)[:4]
    array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        *,
        input_dim: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        score_scale: float = 1 / 9,
        **options: Any,
    ) -> None:
        channels, *_ = _image_shape(input_dim)
        norm = BatchNorm(momentum=0.6, eps=1e-12, fixed="gamma")

        def conv(filters: int) -> Conv:
            return Conv(filters, padding="same", bias=False, init="dirac")

        blocks: list[Layer] = []
        for filters in check_counts("widths", widths):
            blocks += [conv(filters), MaxPool(2), norm, Gelu(), conv(filters), norm, Gelu()]
        super().__init__(
            [
                Conv(8 * channels, 2, fixed="W"),
                Gelu(),
                *blocks,
                MaxPool(3),
                Scale(check_positive("score_scale", score_scale)),
                Affine(check_count("num_classes", num_classes), bias=False, init="uniform"),
            ],
            input_shape=_image_shape(input_dim),
            **{"name": "Airbench", **options},
        )

    def whiten(self, X: Array, eps: float = 5e-4) -> None:
        """Set the filters of the first convolution from images, as `whitening_filters` does.

        Parameters
        ----------
        X : array (N, C, H, W)
            Training images, as for `loss`; 5,000 are enough.
        eps : float
            As for `whitening_filters`.
        """
        with self.backend.current():
            x = self._prepare(X)
            self.params["W1"][...] = self.backend.asarray(whitening_filters(x, 2, eps=eps), self.dtype)


def _image_shape(input_dim: Sequence[int]) -> tuple[int, ...]:
    """Return the channels, height and width of an image as ints."""
    sizes = tuple(check_counts("input_dim", input_dim))
    if len(sizes) != 3:
        raise ArgumentError(f"input_dim is {input_dim!r}; expected channels, height and width, such as (3, 32, 32)")
    return sizes


def _conv_norm(filters: int, normalization: str | None, filter_size: int = 3, stride: int = 1) -> list[Layer]:
    """Return a convolution that pads images to keep their size, and its norm."""
    groups = max(g for g in range(1, 9) if filters % g == 0)
    norms = {None: [], "batchnorm": [BatchNorm()], "groupnorm": [GroupNorm(groups=groups)]}
    norm: list[Layer] = list(_choose("normalization", normalization, norms))
    # A bias before a norm has no effect: the norm subtracts the mean.
    return [Conv(filters, filter_size, stride=stride, padding="same", bias=not norm), *norm]


def _conv_norm_relu(filters: int, normalization: str | None, filter_size: int = 3, stride: int = 1) -> list[Layer]:
    return [*_conv_norm(filters, normalization, filter_size, stride), Relu()]


def _choose(name: str, value: str | None, choices: dict[str | None, Any]) -> Any:
    if not isinstance(value, str | None) or value not in choices:
        raise ArgumentError(f"{name} is {value!r}; expected one of {', '.join(repr(choice) for choice in choices)}")
    return choices[value]
