"""Pictures of convolution filters, and grids of images."""

import math
import os

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, to_host
from xpconv.errors import ArgumentError
from xpconv.viz._figure import new_figure, write_figure

__all__ = ["save_filters", "visualize_grid"]


def visualize_grid(Xs: Array, ubound: float = 255.0, padding: int = 1) -> np.ndarray:
    """Arrange images as the tiles of one square picture, row by row.

    Each tile is rescaled to ``ubound * (x - min(x)) / (max(x) - min(x))``; a constant tile becomes 0.

    Parameters
    ----------
    Xs : Array
        Images (N, H, W, C).
    ubound : float
        The largest value of each tile.
    padding : int
        Number of pixels between tiles; their value is 0.

    Returns
    -------
    numpy.ndarray
        ``(S*H + (S-1)*padding, S*W + (S-1)*padding, C)`` with ``S = ceil(sqrt(N))``.

    Raises
    ------
    ArgumentError
        If `Xs` does not have four axes or is empty, or `padding` is negative.

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
        raise ArgumentError(f"Xs has shape {Xs.shape}; expected images (N, H, W, C), at least one")
    N, H, W, C = Xs.shape
    padding = check_count("padding", padding, 0)
    Xs = Xs.astype(np.float64)
    low, high = Xs.min(axis=(1, 2, 3), keepdims=True), Xs.max(axis=(1, 2, 3), keepdims=True)
    side = math.ceil(math.sqrt(N))
    tiles = np.zeros((side * side, H + padding, W + padding, C))
    tiles[:N, :H, :W] = ubound * (Xs - low) / np.where(high > low, high - low, 1)
    rows = tiles.reshape(side, side, H + padding, W + padding, C).transpose(0, 2, 1, 3, 4)
    grid = rows.reshape(side * (H + padding), side * (W + padding), C)
    return grid[: side * (H + padding) - padding, : side * (W + padding) - padding]


def save_filters(
    w: Array, path: str | os.PathLike[str], title: str = "first-layer filters", *, before: Array | None = None
) -> None:
    """Draw convolution filters as tiles, as a PNG.

    Filters of three channels are drawn in colour, others as one grey tile for each filter and channel. Each tile is
    rescaled on its own, so the picture shows the pattern of a filter and not its magnitude.

    Parameters
    ----------
    w : Array
        Filters (F, C, KH, KW).
    path : str or path
        Where to write.
    title : str
        The first words of the title.
    before : Array, optional
        The same filters before training, drawn beside them.

    Raises
    ------
    ArgumentError
        If `w` does not have four axes, or `before` has another shape.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_filters(np.random.randn(8, 3, 5, 5), os.path.join(folder, "filters.png"))
    ...     os.listdir(folder)
    ['filters.png']
    """
    pictures = {"": to_host(w)}
    if before is not None:
        pictures = {"before training": to_host(before), "after training": pictures[""]}
    if len(w.shape) != 4 or 0 in w.shape:
        raise ArgumentError(f"w has shape {tuple(w.shape)}; expected filters (F, C, KH, KW), at least one")
    if before is not None and tuple(before.shape) != tuple(w.shape):
        raise ArgumentError(f"before has shape {tuple(before.shape)}; expected that of w, {tuple(w.shape)}")
    F, C, KH, KW = w.shape
    figure = new_figure((5 * len(pictures), 5.3))
    figure.suptitle(f"{title}: {F} of {C}×{KH}×{KW}")
    for axes, (name, filters) in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures.items(), strict=True
    ):
        axes.imshow(_filter_grid(filters), interpolation="nearest")
        axes.set(title=name, facecolor="steelblue", xticks=[], yticks=[])
    write_figure(figure, path)


def _filter_grid(w: np.ndarray) -> np.ndarray:
    """Return a grid of filters (F, C, KH, KW) as RGBA; the gaps between tiles are transparent."""
    F, C, KH, KW = w.shape
    tiles = w.transpose(0, 2, 3, 1) if C == 3 else np.repeat(w.reshape(F * C, KH, KW, 1), 3, axis=3)
    # An alpha channel that equals the tile's maximum is rescaled to 255, and is 0 in the gaps.
    alpha = np.broadcast_to(tiles.max(axis=(1, 2, 3), keepdims=True), (len(tiles), KH, KW, 1))
    return visualize_grid(np.concatenate([tiles, alpha], axis=3)).astype(np.uint8)
