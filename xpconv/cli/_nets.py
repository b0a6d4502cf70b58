"""The nets that ``xpconv train`` offers, by name."""

from collections.abc import Callable
from typing import Any

from xpconv.nn import Affine, BatchNorm, ConvNet, Relu, Sequential, ThreeLayerConvNet

__all__ = ["MIN_IMAGE_SIZE", "NETS"]

MIN_IMAGE_SIZE = 4  # pixels of height and width that two poolings halve


def _three_layer(shape: tuple[int, int, int], classes: int, **options: Any) -> Sequential:
    if min(shape[1:]) < 16:
        sizes: dict[str, Any] = {"num_filters": 64, "filter_size": 3, "hidden_dim": 128, "weight_scale": None}
    else:  # the hidden layer has thousands of inputs and learns faster from small weights
        sizes = {"num_filters": 32, "filter_size": 5, "hidden_dim": 100, "weight_scale": 1e-2}
    return ThreeLayerConvNet(input_dim=shape, num_classes=classes, **sizes, **options)


def _fully_connected(shape: tuple[int, int, int], classes: int, **options: Any) -> Sequential:
    # The input stays an image, so that its channels can be normalised and image files predicted.
    hidden = [layer for units in (100, 100) for layer in (Affine(units), BatchNorm(), Relu())]
    return Sequential([*hidden, Affine(classes)], input_shape=shape, name="FullyConnectedNet", **options)


def _conv_net(shape: tuple[int, int, int], classes: int, **options: Any) -> Sequential:
    return ConvNet([32, "pool", 64, "pool", 128], input_dim=shape, num_classes=classes, **options)


NETS: dict[str, Callable[..., Sequential]] = {
    "three-layer": _three_layer,
    "fc": _fully_connected,
    "convnet": _conv_net,
}
"""For each name the function ``(image shape, number of classes, **options)`` that builds the net."""
