"""Nets: layer objects that know their parameters and shapes, and models that are lists of them."""

from xpconv.nn import layers
from xpconv.nn.layers import *
from xpconv.nn.models import ConvNet, FullyConnectedNet, ThreeLayerConvNet, TwoLayerNet
from xpconv.nn.preprocessing import Preprocessing
from xpconv.nn.sequential import Sequential

__all__ = ["ConvNet", "FullyConnectedNet", "Preprocessing", "Sequential", "ThreeLayerConvNet", "TwoLayerNet"]
__all__ += layers.__all__
