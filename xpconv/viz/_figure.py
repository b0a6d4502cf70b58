"""Figures of Matplotlib, and how they are written."""

import os
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import to_host
from xpconv.io._atomic import atomic_path

__all__ = ["new_figure", "numbers", "write_figure"]


def numbers(values: Any) -> np.ndarray:
    """Return an array, or a sequence of numbers of any device, on the host."""
    if array_api_compat.is_array_api_obj(values):
        return to_host(values)
    return np.array([float(value) for value in values])


def new_figure(size: tuple[float, float]) -> Any:
    """Return a figure of its own: pyplot would keep it, and choose a window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
