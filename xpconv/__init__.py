"""ConvNets with hand-written forward and backward passes, on any array-API library."""

from xpconv._version import __version__
from xpconv.backend import Backend, get_backend, set_tf32, to_host, use_backend
from xpconv.io import load_model, save_model
from xpconv.nn import (
    ConvNet,
    FullyConnectedNet,
    Preprocessing,
    ResNet,
    ResNet9,
    Sequential,
    ThreeLayerConvNet,
    TwoLayerNet,
)
from xpconv.training import Solver
from xpconv.training.capture import capture

__all__ = [
    "Backend",
    "ConvNet",
    "FullyConnectedNet",
    "Preprocessing",
    "ResNet",
    "ResNet9",
    "Sequential",
    "Solver",
    "ThreeLayerConvNet",
    "TwoLayerNet",
    "__version__",
    "capture",
    "get_backend",
    "load_model",
    "save_model",
    "set_tf32",
    "to_host",
    "use_backend",
]
