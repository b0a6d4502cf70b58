"""Pictures of drawn or printed characters, brought to the form of the handwritten digits."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xpconv._validation import check_count
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["Strokes", "frame_strokes"]

INK = 0.3
"""Mean of the framed pixels, 0 to 1, to which thin strokes are thickened; 0.31 in the digits of scikit-learn."""

MOST_INK = 0.4
"""Mean of the framed pixels to which thick strokes are thinned; a digit of scikit-learn in a hundred is above 0.39."""

WIDEST = 0.625
"""Largest width of framed strokes as a fraction of their height; 0.6 on average in the digits of scikit-learn."""

FAINTEST = 0.2
"""Ink, as a fraction of the darkest, below which a pixel is paper."""

LEAST_CONTRAST = 16
"""Grey levels between paper and ink, below which a picture is blank."""

FINE_ROWS = 64
"""Least number of rows of the picture in which strokes are made upright and thickened."""

FOOT = 0.25
"""Fraction of the height, from the bottom, that is searched for a foot."""

OVERHANG = 0.3
"""Least distance by which a foot is wider than its stem on each side, as a fraction of the stem's width."""

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
    """Return the strokes of a picture as light strokes of usual thickness that fill the height, centred.

    The median of the picture's border is taken as the background. Strokes are cropped, made upright, made narrower if
    they are wider than 5/8 of their height, thickened or thinned to a usual thickness, and averaged to the new size.
    The foot of an upright stem, which makes a printed 1 look like a 2, is cut off. If the picture is blank, all pixels
    of the result are 0.

    Parameters
    ----------
    picture : numpy.ndarray (rows, columns) of uint8
        A grey picture of one character, of any size.
    height, width : int
        Size of the result in pixels.

    Raises
    ------
    ArgumentError
        If `picture` is not a grey picture with at least one pixel, or a size is below 1.
    ArgumentTypeError
        If `picture` is not a NumPy array, or a size is not an integer.

    Notes
    -----
    The digits of scikit-learn were made in the same way: scanned, cropped, scaled to 32 by 32 and averaged to 8 by 8.

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
    if not isinstance(picture, np.ndarray):
        raise ArgumentTypeError(
            f"picture is a {type(picture).__name__}; expected a numpy.ndarray (rows, columns) of uint8"
        )
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
    upright = _without_foot(_upright(_fitted(_cropped(ink), rows, 4 * rows)))
    narrow = _fitted(upright, rows, min(round(WIDEST * rows), columns))
    pixels = _of_usual_thickness(narrow, (height, fineness, width, fineness))
    return Strokes(np.rint(255 * pixels / pixels.max()).astype(np.uint8), inverted, plain)


def _of_usual_thickness(ink: np.ndarray, blocks: tuple[int, int, int, int]) -> np.ndarray:
    """Return the means of blocks (height, rows of a block, width, columns), thickened or thinned to a usual mean."""
    height, fineness, width, _ = blocks
    rows, columns = height * fineness, width * fineness

    def averaged(strokes: np.ndarray) -> np.ndarray:
        left = (columns - strokes.shape[1]) // 2
        canvas = np.pad(strokes, ((0, 0), (left, columns - strokes.shape[1] - left)))
        return canvas.reshape(blocks).mean(axis=(1, 3))

    pixels = averaged(ink)
    if pixels.mean() > MOST_INK:
        for radius in range(1, rows // 12):
            pixels = averaged(_fitted(_cropped(_thinned(ink, radius)), rows, ink.shape[1]))
            if pixels.mean() <= MOST_INK:
                break
    else:
        for radius in range(rows // 4):
            pixels = averaged(_fitted(_thickened(ink, radius), rows, columns))
            if pixels.mean() >= INK:
                break
    return pixels


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
    """Return ink whose rows are moved so that its slant, the regression of columns on rows, is 0."""
    total, rows, columns = ink.sum(), np.arange(ink.shape[0]), np.arange(ink.shape[1])
    down = rows - ink.sum(axis=1) @ rows / total
    right = columns - ink.sum(axis=0) @ columns / total
    slant = (down @ ink @ right) / max(down**2 @ ink.sum(axis=1), 1e-6)
    moves = np.rint(-np.clip(slant, -1, 1) * down).astype(int)
    moves -= moves.min()
    moved = np.zeros((ink.shape[0], ink.shape[1] + moves.max()), ink.dtype)
    for row, move in enumerate(moves):
        moved[row, move : move + ink.shape[1]] = ink[row]
    return _cropped(moved)


def _without_foot(ink: np.ndarray) -> np.ndarray:
    """Return ink without the bar below an upright stem that is wider than the stem on both sides."""
    covered = ink >= ink.max() / 2
    first, last = covered.argmax(axis=1), ink.shape[1] - 1 - covered[:, ::-1].argmax(axis=1)
    rows = len(ink)
    stem, end = slice(int(0.4 * rows), int((1 - FOOT) * rows)), slice(int((1 - FOOT) * rows), rows)
    widths = (last - first + 1)[stem]
    width = np.median(widths)
    solid = (covered[stem].sum(axis=1) >= 0.9 * widths).all()
    straight = max(np.ptp(first[stem]), np.ptp(last[stem])) <= width / 2
    left, right = first[stem].min() - first[end].min(), last[end].max() - last[stem].max()
    if not (solid and straight and min(left, right) >= OVERHANG * width):
        return ink
    return _cropped(ink[: end.start + int(((last - first + 1)[end] > 1.3 * width).argmax())])


def _extremes(ink: np.ndarray, radius: int, choose: Callable[..., np.ndarray]) -> np.ndarray:
    """Return a picture in which each pixel is the maximum, or the minimum, over a square around it."""
    chosen = np.pad(ink, radius)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(chosen, 2 * radius + 1, axis=axis)
        chosen = choose(windows, axis=-1)
    return chosen


def _thickened(ink: np.ndarray, radius: int) -> np.ndarray:
    """Return a picture in which strokes are wider by `radius` on each side, as is the picture."""
    return _extremes(np.pad(ink, radius), radius, np.max)


def _thinned(ink: np.ndarray, radius: int) -> np.ndarray:
    """Return a picture in which strokes are narrower by `radius` on each side; those that would vanish stay."""
    eroded = _extremes(ink, radius, np.min)
    stays = _extremes(eroded, radius + 1, np.max) < ink.max() / 2
    return np.where(stays, ink, eroded)
