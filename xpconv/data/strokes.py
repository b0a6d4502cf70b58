"""Pictures of drawn or printed characters, brought to the form of the handwritten digits."""

from typing import NamedTuple

import numpy as np

from xpconv._validation import check_count
from xpconv.errors import ArgumentError

__all__ = ["Strokes", "frame_strokes"]

INK = 0.3
"""Mean of the framed pixels, from 0 to 1, up to which strokes are thickened; 0.31 in the digits of scikit-learn."""

WIDEST = 0.625
"""Largest width of framed strokes as a fraction of their height; 0.6 on average in the digits of scikit-learn."""

FAINTEST = 0.2
"""Ink, as a fraction of the darkest, below which a pixel is paper."""

LEAST_CONTRAST = 16
"""Grey levels between paper and ink, below which a picture is blank."""

SLANT = 0.04
"""Columns by which strokes move to the right in each row downwards, on average in the digits of scikit-learn."""

FINE_ROWS = 64
"""Rows, at least, of the picture in which strokes are made upright and thickened."""

BASE = 0.06
"""Part of the height that is cut off at the bottom: with its base, a printed 1 looks like the 2 of the digits."""

PLAIN = 0.65
"""Least fraction of border pixels without ink for a background that is called plain."""


class Strokes(NamedTuple):
    """Strokes that `frame_strokes` has framed.

    Attributes
    ----------
    pixels : numpy.ndarray (H, W) of uint8
        Light strokes on 0.
    inverted : bool
        Whether the picture had dark strokes on a light background.
    plain : bool
        Whether most of the picture's border is background.

    Examples
    --------
    >>> Strokes(np.zeros((8, 8), np.uint8), inverted=False, plain=True).pixels.max()
    np.uint8(0)
    """

    pixels: np.ndarray
    inverted: bool
    plain: bool


def frame_strokes(picture: np.ndarray, height: int, width: int) -> Strokes:
    """Return the strokes of a picture as light strokes of usual thickness that fill the height, in the middle.

    The median of the picture's border is taken as the background. Strokes are cropped, made upright, made narrower if
    they are wider than 5/8 of their height, thickened if they are thin, and averaged to the new size. If the picture is
    blank, all pixels of the result are 0.

    Parameters
    ----------
    picture : numpy.ndarray (rows, columns) of uint8
        A grey picture of one character, of any size.
    height, width : int
        Of the result.

    Raises
    ------
    ArgumentError
        If `picture` is not a grey picture with at least one pixel, or a size is below 1.
    ArgumentTypeError
        If a size is not an integer.

    Notes
    -----
    The digits of scikit-learn were made so: scanned, cropped, scaled to 32 by 32 pixels and averaged to 8 by 8.

    Examples
    --------
    >>> picture = np.full((60, 60), 255, np.uint8)  # white paper
    >>> picture[20:40, 30:34] = 0
    >>> strokes = frame_strokes(picture, 4, 4)
    >>> (strokes.pixels > 200) * 1
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 1, 1, 0]])
    >>> strokes.inverted, strokes.plain
    (True, True)
    """
    height, width = check_count("height", height), check_count("width", width)
    if picture.ndim != 2 or picture.dtype != np.uint8 or picture.size == 0:
        raise ArgumentError(
            f"picture has shape {picture.shape} and dtype {picture.dtype}; expected a grey picture (rows, columns) of "
            "uint8: convert it first"
        )
    ink, inverted = _ink(picture)
    plain = bool(np.mean(_border(ink) == 0) >= PLAIN)
    if not ink.any():
        return Strokes(np.zeros((height, width), np.uint8), inverted, plain)
    fineness = -(-FINE_ROWS // height)
    rows, columns = fineness * height, fineness * width
    thin = _upright(_fitted(_cropped(ink), rows, 4 * rows))
    thin = _cropped(thin[: -max(round(BASE * len(thin)), 1)])
    thin = _fitted(thin, rows, min(round(WIDEST * rows), columns))
    for radius in range(rows // 4):
        thick = _fitted(_thickened(thin, radius), rows, columns)
        left = (columns - thick.shape[1]) // 2
        canvas = np.pad(thick, ((0, 0), (left, columns - thick.shape[1] - left)))
        pixels = canvas.reshape(height, fineness, width, fineness).mean(axis=(1, 3))
        if pixels.mean() >= INK:
            break
    return Strokes(np.rint(255 * pixels / pixels.max()).astype(np.uint8), inverted, plain)


def _border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])


def _ink(picture: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return how far each pixel is from the background, 0 to 1, and whether the background is light."""
    levels, background = picture.astype(np.float32), np.float32(np.median(_border(picture)))
    inverted = bool(background - levels.min() > levels.max() - background)
    ink = np.maximum(background - levels if inverted else levels - background, 0)
    if ink.max() < LEAST_CONTRAST:
        return np.zeros_like(ink), inverted
    ink /= ink.max()
    return np.where(ink < FAINTEST, np.float32(0), ink), inverted


def _cropped(ink: np.ndarray) -> np.ndarray:
    """Return the smallest part that holds all pixels that are at least half covered."""
    rows, columns = (np.flatnonzero((ink >= ink.max() / 2).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fitted(ink: np.ndarray, rows: int, most_columns: int) -> np.ndarray:
    """Return a picture of another height and of the same aspect ratio, but at most `most_columns` wide."""
    from PIL import Image

    columns = min(max(round(rows * ink.shape[1] / ink.shape[0]), 1), most_columns)
    filter_ = Image.Resampling.BOX if ink.shape[0] >= rows else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(ink).resize((columns, rows), filter_))


def _upright(ink: np.ndarray) -> np.ndarray:
    """Return ink whose rows are moved so that its slant, the regression of columns on rows, is SLANT."""
    total, rows, columns = ink.sum(), np.arange(ink.shape[0]), np.arange(ink.shape[1])
    down = rows - ink.sum(axis=1) @ rows / total
    right = columns - ink.sum(axis=0) @ columns / total
    slant = (down @ ink @ right) / max(down**2 @ ink.sum(axis=1), 1e-6)
    moves = np.rint((SLANT - np.clip(slant, -1, 1)) * down).astype(int)
    moves -= moves.min()
    moved = np.zeros((ink.shape[0], ink.shape[1] + moves.max()), ink.dtype)
    for row, move in enumerate(moves):
        moved[row, move : move + ink.shape[1]] = ink[row]
    return _cropped(moved)


def _thickened(ink: np.ndarray, radius: int) -> np.ndarray:
    """Return a picture in which each pixel is the maximum over a square, enlarged by `radius` on each side."""
    padded = np.pad(ink, 2 * radius)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=axis)
        padded = windows.max(axis=-1)
    return padded
