"""Matplotlib figures: made without pyplot, and written atomically."""

import os
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import to_host
from xpconv.io._atomic import atomic_path

__all__ = ["as_host_array", "new_figure", "write_figure"]


def as_host_array(values: Any) -> np.ndarray:
    """Return an array, or a sequence of numbers on any device, as a NumPy array."""
    if array_api_compat.is_array_api_obj(values):
        return to_host(values)
    return np.array([float(value) for value in values])


def new_figure(size: tuple[float, float]) -> Any:
    """Return a figure of this width and height in inches; pyplot would keep it alive and choose a window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a PNG completely or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
