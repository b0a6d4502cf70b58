"""The assignment's grids of pictures."""

from math import ceil, sqrt

import numpy as np

from xpconv.backend import Array, to_host
from xpconv.errors import ArgumentError
from xpconv.viz import visualize_grid

__all__ = ["vis_grid", "visualize_grid"]


def vis_grid(Xs: Array) -> Array:
    """Arrange images in a square grid, scaled together to 0..1, with a dark pixel right of and below each.

    Parameters
    ----------
    Xs : array (N, H, W, C)

    Returns
    -------
    array (S * (H + 1), S * (W + 1), C)
        With ``S = ceil(sqrt(N))``, in float64.

    Raises
    ------
    ArgumentError
        If `Xs` is not four-dimensional or is empty.

    Examples
    --------
    >>> vis_grid(np.array([1.0, 2, 3]).reshape(3, 1, 1, 1))[:, :, 0]
    array([[0. , 0. , 0.5, 0. ],
           [0. , 0. , 0. , 0. ],
           [1. , 0. , 0. , 0. ],
           [0. , 0. , 0. , 0. ]])
    """
    Xs = to_host(Xs)
    if Xs.ndim != 4 or Xs.size == 0:
        raise ArgumentError(f"Xs has shape {Xs.shape}; expected images (N, H, W, C), at least one")
    N, H, W, C = Xs.shape
    low, high, side = float(Xs.min()), float(Xs.max()), ceil(sqrt(N))
    tiles = np.zeros((side * side, H + 1, W + 1, C))
    tiles[:N, :H, :W] = (Xs - low) / (high - low or 1.0)
    rows = tiles.reshape(side, side, H + 1, W + 1, C).transpose(0, 2, 1, 3, 4)
    return rows.reshape(side * (H + 1), side * (W + 1), C)
