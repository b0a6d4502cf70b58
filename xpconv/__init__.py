"""ConvNets with hand-written forward and backward passes, on any array-API library."""

from xpconv.backend import Backend, get_backend, to_host, use_backend
from xpconv.checkpoint import load_model, save_model
from xpconv.models import ConvNet, FullyConnectedNet, ThreeLayerConvNet, TwoLayerNet
from xpconv.sequential import Preprocessing, Sequential
from xpconv.solver import Solver

__all__ = [
    "Backend",
    "ConvNet",
    "FullyConnectedNet",
    "Preprocessing",
    "Sequential",
    "Solver",
    "ThreeLayerConvNet",
    "TwoLayerNet",
    "get_backend",
    "load_model",
    "save_model",
    "to_host",
    "use_backend",
]

__version__ = "0.1.0"
