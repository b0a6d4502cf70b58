"""What the images of a training set have in common, to recognise images that are unlike them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from xpconv.data.rows import Rows, as_rows
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["TypicalImages", "measure_images"]

MOST_IMAGES = 5000
"""Largest number of images to measure; of a larger set, evenly spaced images are measured."""

SLACK = 1.1
"""Images are called unlike the training images from this multiple of the distance that 1 in 1000 of these exceeds."""


@dataclass(frozen=True, eq=False)
class TypicalImages:
    """The distribution of a few numbers that describe the brightness, the contrast and the detail of an image.

    The numbers are the mean of each channel, the standard deviation of all pixels, and the mean absolute differences of
    vertical and of horizontal neighbours. They reveal noise, blank images and, if most training images have a
    background of one brightness, inverted images. They do not reveal a photograph of another subject.

    Parameters
    ----------
    mean : numpy.ndarray (D,)
        Mean of each number; D is the number of channels plus 3.
    precision : numpy.ndarray (D, D)
        Inverse of the numbers' covariance, divided by the square of the largest usual distance.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> typical = measure_images(rng.integers(0, 100, (500, 1, 8, 8)).astype(np.uint8))
    >>> bright = np.full((1, 1, 8, 8), 200, np.uint8)
    >>> typical.mean.shape, typical.distances(bright) > 1
    ((4,), array([ True]))
    """

    mean: np.ndarray
    precision: np.ndarray

    def distances(self, X: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance of each image from the training images; above 1 it is unlike them.

        Parameters
        ----------
        X : numpy.ndarray (N, C, H, W)

        Raises
        ------
        ArgumentError
            If `X` are not finite images with as many channels as the training images.
        ArgumentTypeError
            If `X` is not a NumPy array of numbers.
        """
        numbers = _describe(X)
        if numbers.shape[1] != len(self.mean):
            raise ArgumentError(
                f"X has shape {tuple(X.shape)}; expected images (N, C, H, W) with {len(self.mean) - 3} channels, "
                "as the training images have"
            )
        return self._distances(numbers)

    def _distances(self, numbers: np.ndarray) -> np.ndarray:
        away = numbers - self.mean
        return np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", away, self.precision, away), 0))


def measure_images(X: Any) -> TypicalImages:
    """Return what images have in common.

    Parameters
    ----------
    X : numpy.ndarray (N, C, H, W) or Rows
        Training images; of more than 5000, an evenly spaced part is measured.

    Raises
    ------
    ArgumentError
        If `X` are not images, there are none, or they are not finite.
    ArgumentTypeError
        If `X` is not a NumPy array or Rows of numbers.

    Notes
    -----
    The largest usual distance is 1.1 times the distance that one training image in a thousand exceeds.

    Examples
    --------
    >>> X = np.random.default_rng(0).integers(0, 100, (500, 1, 8, 8)).astype(np.uint8)
    >>> bool(measure_images(X).distances(X).max() < 1.1)
    True
    """
    X = as_rows(X)
    _check_images(X)
    if X.shape[0] == 0:
        raise ArgumentError(f"X has shape {tuple(X.shape)}; expected one image or more")
    chosen = np.unique(np.linspace(0, X.shape[0] - 1, min(X.shape[0], MOST_IMAGES)).astype(np.int64))
    numbers = np.concatenate([_describe(X[part]) for part in np.array_split(chosen, -(-len(chosen) // 500))])
    mean = numbers.mean(axis=0)
    covariance = np.cov(numbers.T, bias=True)
    variances = np.maximum(np.diag(covariance), 1e-6 * (1 + mean**2))
    covariance = 0.95 * covariance + np.diag(0.05 * variances)
    typical = TypicalImages(mean, np.linalg.inv(covariance))
    limit = SLACK * max(float(np.quantile(typical._distances(numbers), 0.999)), 1.0)
    return TypicalImages(mean, typical.precision / limit**2)


def _describe(X: np.ndarray) -> np.ndarray:
    """Return the numbers (N, C + 3) that describe images."""
    _check_images(X)
    pixels = np.asarray(X, np.float64)
    details = [
        np.abs(np.diff(pixels, axis=axis)).mean(axis=(1, 2, 3)) if X.shape[axis] > 1 else np.zeros(len(pixels))
        for axis in (2, 3)
    ]
    numbers = np.column_stack([pixels.mean(axis=(2, 3)), pixels.std(axis=(1, 2, 3)), *details])
    if not np.isfinite(numbers).all():
        raise ArgumentError("X has NaN, infinite or huge values; expected finite images: remove or repair such images")
    return numbers


def _check_images(X: Any) -> None:
    if not isinstance(X, np.ndarray | Rows):
        raise ArgumentTypeError(f"X is a {type(X).__name__}; expected a numpy.ndarray (N, C, H, W) or Rows")
    if X.dtype.kind not in "buif":
        raise ArgumentTypeError(f"X has dtype {X.dtype}; expected images of real numbers")
    if len(X.shape) != 4 or 0 in X.shape[1:]:
        raise ArgumentError(f"X has shape {tuple(X.shape)}; expected images (N, C, H, W) of one pixel or more")
