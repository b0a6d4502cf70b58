"""The assignment's nets."""

from xpconv.cs231n.classifiers.cnn import ThreeLayerConvNet
from xpconv.cs231n.classifiers.fc_net import FullyConnectedNet, TwoLayerNet

__all__ = ["FullyConnectedNet", "ThreeLayerConvNet", "TwoLayerNet"]
