"""Which samples go to which part of a data set."""

from collections.abc import Sequence
from math import floor, isclose

import numpy as np

from xpconv.errors import ArgumentError
from xpconv.random import Rng, as_random_stream

__all__ = ["stratified_split"]


def stratified_split(y: np.ndarray, shares: Sequence[float], rng: Rng = 0) -> list[np.ndarray]:
    """Split samples into parts that have the classes in the same proportions.

    Of the n samples of a class, part i gets about ``shares[i] * n`` and at least one, drawn at random.

    Parameters
    ----------
    y : array (N,)
        Labels.
    shares : sequence of float
        The share of each part, above 0; their sum is 1.
    rng : None, int, Generator or RandomState
        Decides which sample goes to which part.

    Returns
    -------
    list of array of int64
        The indices of each part's samples, in random order. Each index is in one part.

    Raises
    ------
    ArgumentError
        If `shares` are no such shares, or a class has fewer samples than there are parts.

    Examples
    --------
    >>> y = np.array([0] * 8 + [1] * 4)
    >>> train, val = stratified_split(y, (0.75, 0.25))
    >>> np.bincount(y[train]), np.bincount(y[val])
    (array([6, 3]), array([2, 1]))
    """
    y, shares = np.asarray(y), tuple(shares)
    if y.ndim != 1 or not shares or min(shares) <= 0 or not isclose(sum(shares), 1):
        raise ArgumentError(
            f"y has shape {y.shape} and shares are {shares}; expected labels (N,) and shares above 0 whose sum is 1"
        )
    stream = as_random_stream(rng)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(y):
        members = stream.permutation(np.flatnonzero(y == label))
        if len(members) < len(shares):
            raise ArgumentError(
                f"class {label} has {len(members)} samples; expected {len(shares)} or more, one for each part"
            )
        for part, chosen in zip(parts, np.split(members, _bounds(len(members), shares)), strict=True):
            part.append(chosen)
    return [stream.permutation(np.concatenate([np.empty(0, np.int64), *part])) for part in parts]


def _bounds(count: int, shares: tuple[float, ...]) -> list[int]:
    """Return where to cut `count` samples: rounded, and so that no part is empty."""
    bounds: list[int] = []
    for i, share in enumerate(np.cumsum(shares)[:-1], start=1):
        lowest = bounds[-1] + 1 if bounds else 1
        bounds.append(min(max(floor(share * count + 0.5), lowest), count - (len(shares) - i)))
    return bounds
