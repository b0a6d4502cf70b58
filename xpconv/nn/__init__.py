"""Nets: layer objects that know their parameters and shapes, and models that are lists of them."""

from xpconv.nn.layers import (
    Affine,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    GlobalAvgPool,
    GroupNorm,
    Layer,
    LayerNorm,
    MaxPool,
    Relu,
)
from xpconv.nn.models import ConvNet, FullyConnectedNet, ThreeLayerConvNet, TwoLayerNet
from xpconv.nn.preprocessing import Preprocessing
from xpconv.nn.sequential import Sequential

__all__ = [
    "Affine",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvNet",
    "Dropout",
    "FullyConnectedNet",
    "GlobalAvgPool",
    "GroupNorm",
    "Layer",
    "LayerNorm",
    "MaxPool",
    "Preprocessing",
    "Relu",
    "Sequential",
    "ThreeLayerConvNet",
    "TwoLayerNet",
]
