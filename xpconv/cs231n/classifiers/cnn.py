"""The assignment's ConvNet; all names of `layer_utils` are here too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from xpconv import nn
from xpconv.backend import Backend
from xpconv.cs231n import layer_utils
from xpconv.cs231n.classifiers._net import CourseNet
from xpconv.cs231n.layer_utils import *  # noqa: F403

__all__ = ["ThreeLayerConvNet"]
__all__ += layer_utils.__all__


class ThreeLayerConvNet(CourseNet, nn.ThreeLayerConvNet):
    """``conv - relu - 2x2 max pool - affine - relu - affine - softmax``.

    Parameters
    ----------
    input_dim : (int, int, int)
        Channels, height and width of an image.
    num_filters, filter_size, hidden_dim, num_classes : int
    weight_scale : float
        Standard deviation of the initial weights, drawn from NumPy's global state.
    reg : float
        Weight of ``0.5 * sum(W * W)`` in the loss.
    dtype : numpy.float32 or numpy.float64
    backend : str or Backend
        NumPy by default, whatever ``XP_BACKEND`` says, since notebooks write NumPy arrays into ``params``.

    Examples
    --------
    >>> ThreeLayerConvNet(
    ...     num_filters=3, filter_size=3, input_dim=(3, 16, 16), hidden_dim=7
    ... ).params["W2"].shape
    (192, 7)
    """

    def __init__(
        self,
        input_dim: Sequence[int] = (3, 32, 32),
        num_filters: int = 32,
        filter_size: int = 7,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
        dtype: Any = "float32",
        *,
        backend: str | Backend = "numpy",
    ) -> None:
        super().__init__(
            input_dim=input_dim,
            num_filters=num_filters,
            filter_size=filter_size,
            hidden_dim=hidden_dim,
            num_classes=num_classes,
            weight_scale=weight_scale,
            reg=reg,
            dtype=dtype,
            backend=backend,
        )
        self.layers = tuple(
            replace(layer, algorithm="im2col") if isinstance(layer, nn.Conv) else layer for layer in self.layers
        )
