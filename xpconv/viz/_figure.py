"""Matplotlib figures: made without pyplot, and written atomically."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import to_host
from xpconv.errors import XpconvError, import_failure
from xpconv.io._atomic import atomic_path

__all__ = ["as_host_array", "import_figure", "new_figure", "set_title", "write_figure"]


def as_host_array(values: Any) -> np.ndarray:
    """Return an array, or a sequence of numbers on any device, as a NumPy array."""
    if array_api_compat.is_array_api_obj(values):
        return to_host(values)
    return np.array([float(value) for value in values])


def import_figure() -> tuple[Any, Any]:
    """Return matplotlib's Figure and the canvas that needs no window system, whatever ``MPLBACKEND`` says.

    Raises
    ------
    XpconvError
        If matplotlib cannot be imported.
    """
    try:
        with _without_broken_backend():
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
    except Exception as error:  # an incompatible library may raise anything
        raise XpconvError(import_failure("drawing needs matplotlib", error)) from error
    return Figure, FigureCanvasAgg


@contextmanager
def _without_broken_backend() -> Iterator[None]:
    """Hide ``MPLBACKEND`` if importing matplotlib fails because of it, as it does where Jupyter's module is missing."""
    configured = os.environ.get("MPLBACKEND")
    try:
        import matplotlib  # noqa: F401
    except ValueError:
        os.environ.pop("MPLBACKEND", None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # those that were imported before the failure
    try:
        yield
    finally:
        if configured is not None:
            os.environ["MPLBACKEND"] = configured


def new_figure(size: tuple[float, float], layout: str | None = None) -> Any:
    """Return a figure of this width and height in inches; pyplot would keep it alive and choose a window system.

    A layout of "constrained" finds margins in which all text fits, but takes as long as drawing the figure twice more.
    """
    figure_class, canvas_class = import_figure()
    figure = figure_class(figsize=size, layout=layout)
    canvas_class(figure)
    return figure


def set_title(axes: Any, text: str, **options: Any) -> None:
    """Set the title at a fixed height; Matplotlib would measure every tick label to find a free one."""
    axes.set_title(text, y=1.0, **options)


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a PNG completely or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
