"""Pictures of filters and of training; written through files, never shown."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, to_host
from xpconv.errors import ArgumentError
from xpconv.files import atomic_path

__all__ = ["save_curves", "save_filters", "visualize_grid"]


def visualize_grid(Xs: Array, ubound: float = 255.0, padding: int = 1) -> np.ndarray:
    """Lay images out as one picture, a square of tiles that is filled row by row.

    Each tile is stretched by itself, ``ubound * (x - min(x)) / (max(x) - min(x))``; a tile of one value is 0.

    Parameters
    ----------
    Xs : Array
        Images (N, H, W, C).
    ubound : float
        The brightest value of each tile.
    padding : int
        Pixels of 0 between tiles.

    Returns
    -------
    numpy.ndarray
        ``(S*H + (S-1)*padding, S*W + (S-1)*padding, C)`` with ``S = ceil(sqrt(N))``.

    Raises
    ------
    ArgumentError
        If `Xs` is not four-dimensional or has no images.

    Examples
    --------
    >>> tiles = np.array([0.0, 1, 2, 3]).reshape(2, 2, 1, 1)  # two images, 2 high and 1 wide
    >>> visualize_grid(tiles)[:, :, 0]
    array([[  0.,   0.,   0.],
           [255.,   0., 255.],
           [  0.,   0.,   0.],
           [  0.,   0.,   0.],
           [  0.,   0.,   0.]])
    """
    Xs = to_host(Xs)
    if Xs.ndim != 4 or Xs.size == 0:
        raise ArgumentError(f"Xs has shape {Xs.shape}; expected images (N, H, W, C), one at least")
    N, H, W, C = Xs.shape
    Xs = Xs.astype(np.float64)
    low, high = Xs.min(axis=(1, 2, 3), keepdims=True), Xs.max(axis=(1, 2, 3), keepdims=True)
    side = math.ceil(math.sqrt(N))
    tiles = np.zeros((side * side, H + padding, W + padding, C))
    tiles[:N, :H, :W] = ubound * (Xs - low) / np.where(high > low, high - low, 1)
    rows = tiles.reshape(side, side, H + padding, W + padding, C).transpose(0, 2, 1, 3, 4)
    grid = rows.reshape(side * (H + padding), side * (W + padding), C)
    return grid[: side * (H + padding) - padding, : side * (W + padding) - padding]


def save_filters(w: Array, path: str | os.PathLike[str], title: str = "first-layer filters") -> None:
    """Draw convolution filters as tiles and write a PNG.

    Filters over three channels are drawn in colour, others as one grey tile for each filter and channel.

    Parameters
    ----------
    w : Array
        Filters (F, C, KH, KW).
    path : str or path
        Where to write.
    title : str
        The line above the picture.

    Raises
    ------
    ArgumentError
        If `w` is not four-dimensional.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_filters(np.random.randn(8, 3, 5, 5), os.path.join(folder, "filters.png"))
    ...     os.listdir(folder)
    ['filters.png']
    """
    w = to_host(w)
    if w.ndim != 4 or w.size == 0:
        raise ArgumentError(f"w has shape {w.shape}; expected filters (F, C, KH, KW), one at least")
    F, C, KH, KW = w.shape
    tiles = w.transpose(0, 2, 3, 1) if C == 3 else np.repeat(w.reshape(F * C, KH, KW, 1), 3, axis=3)
    # A channel at the tile's maximum becomes its opacity: gaps are then unlike dark and bright pixels.
    opaque = np.broadcast_to(tiles.max(axis=(1, 2, 3), keepdims=True), (len(tiles), KH, KW, 1))
    grid = visualize_grid(np.concatenate([tiles, opaque], axis=3)).astype(np.uint8)
    figure = _figure((5, 5))
    axes = figure.subplots()
    axes.imshow(grid, interpolation="nearest")
    axes.set(title=f"{title}: {F} of {C}×{KH}×{KW}", facecolor="steelblue", xticks=[], yticks=[])
    _save(figure, path)


def save_curves(history: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw loss and accuracy of a training run and write a PNG.

    Parameters
    ----------
    history : mapping
        ``loss_history``, one value an iteration, and ``train_acc_history`` and ``val_acc_history``, one value
        an epoch, from epoch 0. Each is an array or a sequence of numbers and may be empty.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If `history` lacks one of the three.

    Examples
    --------
    >>> import os, tempfile
    >>> history = {"loss_history": [2.3, 1.9], "train_acc_history": [0.1, 0.4], "val_acc_history": [0.1, 0.3]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_curves(history, os.path.join(folder, "curves.png"))
    ...     os.listdir(folder)
    ['curves.png']
    """
    wanted = "loss_history", "train_acc_history", "val_acc_history"
    missing = [key for key in wanted if key not in history]
    if missing:
        raise ArgumentError(f"history has no {' and no '.join(missing)}; expected {', '.join(wanted)}")
    losses, train, val = (_numbers(history[key]) for key in wanted)
    figure = _figure((10, 4))
    left, right = figure.subplots(1, 2)

    iterations = np.arange(1, len(losses) + 1)
    left.plot(iterations, losses, color="C0", linewidth=0.6, alpha=0.4, label="each minibatch")
    smooth, offset = _smoothed(losses)
    middle = iterations[offset : offset + len(smooth)]
    left.plot(middle, smooth, color="C0", linewidth=1.8, label="moving average")
    left.set(title="Loss", xlabel="iteration", ylabel="loss")

    marker = "o" if max(len(train), len(val)) <= 30 else ""
    right.plot(range(len(train)), train, color="C0", marker=marker, markersize=4, label="training")
    right.plot(range(len(val)), val, color="C1", marker=marker, markersize=4, label="validation")
    right.set(title="Accuracy", xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def _numbers(values: Array | Sequence[Any]) -> np.ndarray:
    if array_api_compat.is_array_api_obj(values):
        return to_host(values)
    return np.array([float(value) for value in values])


def _smoothed(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the mean over a window of about a thirtieth of the run, and the index of the first middle."""
    half = len(values) // 60
    width = 2 * half + 1
    return (np.convolve(values, np.full(width, 1 / width), "valid"), half) if len(values) else (values, 0)


def _figure(size: tuple[float, float]) -> Any:
    """Return a figure of its own: pyplot would keep it, and choose a window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
