"""The assignment's image features: gradient orientations and hues."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.errors import ArgumentError

__all__ = ["color_histogram_hsv", "extract_features", "hog_feature", "rgb2gray"]

CELL = 8
ORIENTATIONS = 9


def extract_features(
    imgs: np.ndarray, feature_fns: Sequence[Callable[[Any], Any]], verbose: bool = False
) -> np.ndarray:
    """Return the features of each image, side by side.

    Parameters
    ----------
    imgs : array (N, H, W, C) or (N, H, W)
    feature_fns : sequence of callables
        Each takes an image, without axes of length 1, and returns a one-dimensional array, as long for each image.
    verbose : bool
        Whether to print a line after every 1000 images.

    Returns
    -------
    array (N, F) of float64
        F is the number of all features of an image. Without images it is an empty array (0,).

    Raises
    ------
    ArgumentError
        If a function returns another number of dimensions, or numbers of features that vary.

    Examples
    --------
    >>> images = np.arange(24.0).reshape(2, 2, 2, 3)
    >>> extract_features(
    ...     images, [lambda image: image.max(axis=(0, 1)), lambda image: image[0, 0, :1]]
    ... )
    array([[ 9., 10., 11.,  0.],
           [21., 22., 23., 12.]])
    """
    rows: list[np.ndarray] = []
    for image in map(np.squeeze, imgs):
        features = [np.asarray(feature_fn(image)) for feature_fn in feature_fns]
        if any(feature.ndim != 1 for feature in features):
            shapes = ", ".join(str(feature.shape) for feature in features)
            raise ArgumentError(f"feature_fns return shapes {shapes}; expected one dimension each: call ravel()")
        rows.append(np.concatenate(features, dtype=np.float64))
        if rows[-1].size != rows[0].size:
            raise ArgumentError(
                f"feature_fns return {rows[-1].size} features for image {len(rows) - 1} but {rows[0].size} "
                "for image 0; expected the same number for each image"
            )
        if verbose and len(rows) % 1000 == 0:
            print(f"Done extracting features for {len(rows)} / {len(imgs)} images")
    return np.asarray(rows, dtype=np.float64)


def rgb2gray(rgb: np.ndarray) -> np.ndarray:
    """Return the luminance of an RGB image (..., 3) or (..., 4), with the course's weights 0.299, 0.587 and 0.144.

    They sum to 1.03; the standard's weight of blue is 0.114.

    Examples
    --------
    >>> rgb2gray(np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]))
    array([[0.299, 0.144]])
    """
    return np.asarray(rgb)[..., :3] @ np.array([0.299, 0.587, 0.144])


def hog_feature(im: np.ndarray) -> np.ndarray:
    """Return the histograms of gradient orientations over cells of 8 by 8 pixels.

    The gradient of a pixel is its difference to the next pixel right and below. Each cell has the mean magnitude of the
    gradients in each of nine directions of 20 degrees, from -90 degrees (upwards) to 90. Gradients that point left are
    not counted, as in the course. Rows and columns that do not fill a cell are left out.

    Parameters
    ----------
    im : array (H, W, 3) or (H, W)
        An RGB or a grey image.

    Returns
    -------
    array (W // 8 * H // 8 * 9,) of float64
        Column of cells by column, and within it cell by cell from the top.

    Raises
    ------
    ArgumentError
        If `im` is not an image, or is smaller than a cell.

    References
    ----------
    Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.

    Examples
    --------
    >>> edge = np.zeros((8, 8))
    >>> edge[:, 4:] = 8.0  # a gradient of 8 in one of eight columns, of direction 0
    >>> hog_feature(edge)
    array([0., 0., 0., 0., 1., 0., 0., 0., 0.])
    """
    im = np.asarray(im)
    if im.ndim not in (2, 3) or (im.ndim == 3 and im.shape[2] not in (3, 4)) or min(im.shape[:2]) < CELL:
        raise ArgumentError(
            f"im has shape {im.shape}; expected an image (H, W, 3) or (H, W) of at least {CELL} by {CELL} pixels"
        )
    image = rgb2gray(im) if im.ndim == 3 else im.astype(np.float64)
    gx, gy = np.zeros_like(image), np.zeros_like(image)
    gx[:, :-1], gy[:-1] = np.diff(image, axis=1), np.diff(image, axis=0)
    magnitudes = np.sqrt(gx**2 + gy**2)
    degrees = np.arctan2(gy, gx + 1e-15) * (180 / np.pi) + 90
    bins = np.where((degrees > 0) & (degrees < 180), degrees // (180 / ORIENTATIONS), -1)
    rows, columns = image.shape[0] // CELL, image.shape[1] // CELL
    by_orientation = np.where(bins == np.arange(ORIENTATIONS)[:, None, None], magnitudes, 0)
    cells = by_orientation[:, : rows * CELL, : columns * CELL].reshape(ORIENTATIONS, rows, CELL, columns, CELL)
    return cells.mean(axis=(2, 4)).transpose(2, 1, 0).reshape(-1)


def color_histogram_hsv(
    im: np.ndarray, nbin: int = 10, xmin: float = 0, xmax: float = 255, normalized: bool = True
) -> np.ndarray:
    """Return the histogram of an image's hues.

    Parameters
    ----------
    im : array (H, W, 3)
        An RGB image with values from 0 to `xmax`.
    nbin : int
        Number of bins.
    xmin, xmax : float
        The range of the bins; hues are scaled from 0 to `xmax`.
    normalized : bool
        Whether the histogram sums to 1. Otherwise counts are multiplied by the width of a bin, as in the course.

    Returns
    -------
    array (nbin,) of float64

    Raises
    ------
    ArgumentError
        If `im` is not an RGB image, or has values outside its range.

    Examples
    --------
    >>> image = np.zeros((1, 4, 3))
    >>> image[0, :3, 0] = image[0, 3, 2] = 255  # three red pixels and a blue one
    >>> color_histogram_hsv(image, nbin=3)
    array([0.75, 0.  , 0.25])
    """
    im, nbin = np.asarray(im), check_count("nbin", nbin)
    if im.ndim != 3 or im.shape[2] != 3:
        raise ArgumentError(f"im has shape {im.shape}; expected an RGB image (H, W, 3)")
    if not np.all((im >= 0) & (im <= xmax)):
        raise ArgumentError(f"im has values from {im.min()} to {im.max()}; expected 0 to xmax = {xmax}")
    bins = np.linspace(xmin, xmax, nbin + 1)
    histogram, _ = np.histogram(_hues(im / xmax) * xmax, bins=bins, density=normalized)
    return histogram * np.diff(bins)


def _hues(rgb: np.ndarray) -> np.ndarray:
    """Return the hue of each pixel (H, W, 3), from 0 to 1; that of grey is 0."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    largest, spread = rgb.max(axis=-1), np.ptp(rgb, axis=-1)
    divisor = np.where(spread > 0, spread, 1)
    sixths = np.select(
        [blue == largest, green == largest],
        [4 + (red - green) / divisor, 2 + (blue - red) / divisor],
        (green - blue) / divisor,
    )
    return np.where(spread > 0, sixths / 6 % 1, 0)
