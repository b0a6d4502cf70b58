"""The assignments' classifiers and nets; `TwoLayerNet` is that of `fc_net`."""

from xpconv.cs231n.classifiers import linear_classifier
from xpconv.cs231n.classifiers.cnn import ThreeLayerConvNet
from xpconv.cs231n.classifiers.fc_net import FullyConnectedNet, TwoLayerNet
from xpconv.cs231n.classifiers.k_nearest_neighbor import KNearestNeighbor
from xpconv.cs231n.classifiers.linear_classifier import *  # noqa: F403

__all__ = ["FullyConnectedNet", "KNearestNeighbor", "ThreeLayerConvNet", "TwoLayerNet"]
__all__ += linear_classifier.__all__
