"""Nets: layer objects that know their parameters and shapes, and models that are lists of them."""

from xpconv.nn import layers
from xpconv.nn.layers import *
from xpconv.nn.models import Airbench, ConvNet, FullyConnectedNet, ResNet, ResNet9, ThreeLayerConvNet, TwoLayerNet
from xpconv.nn.preprocessing import Preprocessing
from xpconv.nn.registry import register_layer
from xpconv.nn.residual import Residual
from xpconv.nn.sequential import Sequential
from xpconv.nn.whitening import whitening_filters

__all__ = [
    "Airbench",
    "ConvNet",
    "FullyConnectedNet",
    "Preprocessing",
    "ResNet",
    "ResNet9",
    "Residual",
    "Sequential",
    "ThreeLayerConvNet",
    "TwoLayerNet",
    "register_layer",
    "whitening_filters",
]
__all__ += layers.__all__
