"""The nets that ``xpconv train`` offers, by name."""

import inspect
from collections.abc import Callable
from typing import Any

from xpconv.errors import ArgumentError, printable
from xpconv.nn import (
    Affine,
    BatchNorm,
    ConvNet,
    Dropout,
    GroupNorm,
    Layer,
    Relu,
    ResNet,
    ResNet9,
    Sequential,
    ThreeLayerConvNet,
)

__all__ = ["CONVNET_LAYERS", "NETS", "NORMS", "build_net", "parse_layers"]

NORMS = {"batch": "batchnorm", "group": "groupnorm", "none": None}
"""The norms that nets offer, and their names in `xpconv.nn`."""

CONVNET_LAYERS = "32,pool,64,64,pool,128,128,pool,256"
"""The stages of a convnet if no option says otherwise."""

_Shape = tuple[int, int, int]


def _three_layer(shape: _Shape, classes: int, **options: Any) -> Sequential:
    if min(shape[1:]) < 16:
        sizes: dict[str, Any] = {"num_filters": 64, "filter_size": 3, "hidden_dim": 128, "weight_scale": None}
    else:  # the hidden layer has thousands of inputs and learns faster from small weights
        sizes = {"num_filters": 32, "filter_size": 5, "hidden_dim": 100, "weight_scale": 1e-2}
    return ThreeLayerConvNet(input_dim=shape, num_classes=classes, **sizes, **options)


def _fully_connected(
    shape: _Shape, classes: int, *, norm: str = "batch", dropout: float = 0.0, **options: Any
) -> Sequential:
    # The input stays an image, so that its channels can be normalised and image files predicted.
    norms: dict[str, list[Layer]] = {"batch": [BatchNorm()], "group": [GroupNorm(groups=4)], "none": []}
    dropouts = [Dropout(1 - dropout)] if dropout else []
    hidden = [[Affine(units), *norms[norm], Relu(), *dropouts] for units in (100, 100)]
    return Sequential([*hidden, Affine(classes)], input_shape=shape, name="FullyConnectedNet", **options)


def _conv_net(
    shape: _Shape,
    classes: int,
    *,
    layers: str = CONVNET_LAYERS,
    norm: str = "batch",
    dropout: float = 0.0,
    **options: Any,
) -> Sequential:
    return ConvNet(
        parse_layers(layers),
        input_dim=shape,
        num_classes=classes,
        normalization=NORMS[norm],
        keep_prob=1 - dropout,
        **options,
    )


def _residual(kind: Callable[..., Sequential], default_width: int) -> Callable[..., Sequential]:
    def build(
        shape: _Shape,
        classes: int,
        *,
        width: int = default_width,
        norm: str = "batch",
        dropout: float = 0.0,
        **options: Any,
    ) -> Sequential:
        return kind(
            width=width,
            input_dim=shape,
            num_classes=classes,
            normalization=NORMS[norm],
            keep_prob=1 - dropout,
            **options,
        )

    return build


def _resnet(depth: int) -> Callable[..., Sequential]:
    return _residual(lambda **options: ResNet(depth, **options), 16)


NETS: dict[str, Callable[..., Sequential]] = {
    "three-layer": _three_layer,
    "fc": _fully_connected,
    "convnet": _conv_net,
    "resnet9": _residual(ResNet9, 64),
    **{f"resnet{depth}": _resnet(depth) for depth in (20, 32, 44, 56)},
}
"""For each name the function ``(image shape, number of classes, **options)`` that builds the net."""


def build_net(model: str, shape: _Shape, classes: int, choices: dict[str, Any], **options: Any) -> Sequential:
    """Return a net with those of the `choices` of layers, norm, dropout and width that are not None.

    Raises
    ------
    ArgumentError
        If the net does not offer one of them, or is too deep for images of this size.
    """
    chosen = {name: value for name, value in choices.items() if value is not None}
    offered = inspect.signature(NETS[model]).parameters
    if refused := [name for name in chosen if name not in offered]:
        able = [other for other, build in NETS.items() if refused[0] in inspect.signature(build).parameters]
        raise ArgumentError(
            f"{refused[0]} is {printable(chosen[refused[0]])}, which the model {model} does not offer: leave it "
            f"out, or take {' or '.join(able)}"
        )
    needed = _pixels_needed(model, chosen)
    if min(shape[1:]) < needed:
        raise ArgumentError(
            f"the images have {shape[1]}x{shape[2]} pixels; expected {needed}x{needed} or more, which the pooling of "
            f"{model} needs: take a larger image_size, or the model fc"
        )
    return NETS[model](shape, classes, **chosen, **options)


def _pixels_needed(model: str, choices: dict[str, Any]) -> int:
    """Return the least height and width of images that a net's poolings leave something of."""
    poolings = {"three-layer": 2, "convnet": choices.get("layers", CONVNET_LAYERS).count("pool"), "resnet9": 3}
    return int(2 ** poolings.get(model, 0))


def parse_layers(text: str) -> list[int | str]:
    """Return the stages of a ConvNet in a text: numbers of filters and "pool".

    Examples
    --------
    >>> parse_layers("32,32,pool,64")
    [32, 32, 'pool', 64]
    """
    words = [word.strip() for word in text.split(",")] if isinstance(text, str) else []
    if not words or not all(word == "pool" or (word.isdecimal() and 0 < int(word) < 2**31) for word in words):
        raise ArgumentError(
            f"layers is {printable(repr(text), 60)}; expected numbers of filters and pool, as in 32,32,pool,64"
        )
    if words == ["pool"] * len(words):
        raise ArgumentError(f"layers is {printable(repr(text), 60)}; expected at least one number of filters")
    return [word if word == "pool" else int(word) for word in words]
