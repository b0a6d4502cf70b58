"""Pictures of convolution filters, and grids of images."""

import math
import os

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, to_host
from xpconv.errors import ArgumentError
from xpconv.viz._figure import new_figure, set_title, write_figure

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
    >>> tiles = np.array([0.0, 1, 2, 3]).reshape(
    ...     2, 2, 1, 1
    ... )  # two images, 2 high and 1 wide
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
    padding = check_count("padding", padding, 0)
    Xs = Xs.astype(np.float64)
    low, high = Xs.min(axis=(1, 2, 3), keepdims=True), Xs.max(axis=(1, 2, 3), keepdims=True)
    return _arrange(ubound * (Xs - low) / np.where(high > low, high - low, 1), padding)


def _arrange(images: np.ndarray, padding: int) -> np.ndarray:
    """Arrange images (N, H, W, C) as the tiles of one square picture, row by row; the gaps are 0."""
    N, H, W, C = images.shape
    side = math.ceil(math.sqrt(N))
    tiles = np.zeros((side * side, H + padding, W + padding, C))
    tiles[:N, :H, :W] = images
    rows = tiles.reshape(side, side, H + padding, W + padding, C).transpose(0, 2, 1, 3, 4)
    grid = rows.reshape(side * (H + padding), side * (W + padding), C)
    return grid[: side * (H + padding) - padding, : side * (W + padding) - padding]


def save_filters(
    w: Array, path: str | os.PathLike[str], title: str = "first-layer filters", *, before: Array | None = None
) -> None:
    """Draw convolution filters as tiles, as a PNG.

    Filters of three channels are drawn in colour, others as one grey tile for each filter and channel. A weight w of a
    tile has the brightness ``1/2 + w / (2 m)``, with m the tile's largest absolute weight: 0 is grey. With `before`, m
    is the largest of both, and a third panel shows the change, ``w - before``, with one scale for all tiles: orange is
    an increase and blue a decrease. Tiles are sorted by their change relative to their norm before, or without `before`
    by their norm; the largest is first.

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
    ...     save_filters(
    ...         np.random.randn(8, 3, 5, 5), os.path.join(folder, "filters.png")
    ...     )
    ...     os.listdir(folder)
    ['filters.png']
    """
    if len(w.shape) != 4 or 0 in w.shape:
        raise ArgumentError(f"w has shape {tuple(w.shape)}; expected filters (F, C, KH, KW), at least one")
    if before is not None and tuple(before.shape) != tuple(w.shape):
        raise ArgumentError(f"before has shape {tuple(before.shape)}; expected that of w, {tuple(w.shape)}")
    F, C, KH, KW = w.shape
    tiles = _tiles(w)
    panels = _sorted_by_norm(tiles) if before is None else _before_after_and_change(_tiles(before), tiles)
    figure = new_figure((5 * len(panels), 5.3))
    figure.suptitle(f"{title}: {F} of {C}×{KH}×{KW}, sorted by {'norm' if before is None else 'change'}")
    margins = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.87, "wspace": 0.03}
    grid = figure.subplots(1, len(panels), squeeze=False, gridspec_kw=margins)[0]
    for axes, (name, colors) in zip(grid, panels.items(), strict=True):
        axes.imshow(_with_thin_gaps(colors), interpolation="nearest")
        set_title(axes, name)
        axes.set(facecolor="steelblue", xticks=[], yticks=[])
    write_figure(figure, path)


INCREASE, DECREASE = (0.84, 0.37, 0.0), (0.0, 0.45, 0.70)
TILE_WIDTH = 24  # gaps are one pixel wide


def _tiles(w: Array) -> np.ndarray:
    """Return filters (F, C, KH, KW) as tiles (N, KH, KW, 3) in colour, or (N, KH, KW, 1)."""
    w = to_host(w).astype(np.float64)
    return w.transpose(0, 2, 3, 1) if w.shape[1] == 3 else w.reshape(-1, *w.shape[2:], 1)


def _sorted_by_norm(tiles: np.ndarray) -> dict[str, np.ndarray]:
    tiles = tiles[np.argsort(-_norms(tiles), kind="stable")]
    return {"": _brightness(tiles, _largest(tiles))}


def _before_after_and_change(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """Return the colours of the three panels by their names."""
    norms = _norms(before)
    order = np.argsort(-_norms(after - before) / np.where(norms > 0, norms, 1), kind="stable")
    before, after = before[order], after[order]
    change, largest = after - before, np.maximum(_largest(before), _largest(after))
    limit = np.abs(change).max()
    relative = f"up to {limit / largest.max():.2g} × the largest weight" if limit > 0 else "none"
    return {
        "before training": _brightness(before, largest),
        "after training": _brightness(after, largest),
        f"change: {relative}": _signed_colors(change / (limit or 1)),
    }


def _norms(tiles: np.ndarray) -> np.ndarray:
    return np.sqrt((tiles**2).sum(axis=(1, 2, 3)))


def _largest(tiles: np.ndarray) -> np.ndarray:
    return np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)


def _brightness(tiles: np.ndarray, largest: np.ndarray) -> np.ndarray:
    return np.broadcast_to(0.5 + tiles / np.where(largest > 0, 2 * largest, 1), (*tiles.shape[:3], 3))


def _signed_colors(change: np.ndarray) -> np.ndarray:
    """Return colours of changes from -1 to 1: one channel from blue over white to orange, three as their brightness."""
    if change.shape[3] == 3:
        return 0.5 + change / 2
    end = np.where(change > 0, np.array(INCREASE), np.array(DECREASE))
    return 1 - np.abs(change) * (1 - end)


def _with_thin_gaps(colors: np.ndarray) -> np.ndarray:
    """Return a grid of tiles as RGBA, each enlarged so that a gap of one pixel is thin; the gaps are transparent."""
    factor = max(TILE_WIDTH // max(colors.shape[1:3]), 1)
    tiles = colors.repeat(factor, axis=1).repeat(factor, axis=2)
    grid = _arrange(np.concatenate([tiles, np.ones((*tiles.shape[:3], 1))], axis=3), 1)
    return (255 * grid).round().astype(np.uint8)
