"""Which samples go to which part of a data set."""

from collections.abc import Sequence
from math import floor, isclose

import numpy as np

from xpconv.errors import ArgumentError
from xpconv.random import Rng, as_random_stream

__all__ = ["stratified_split"]


def stratified_split(y: np.ndarray, fractions: Sequence[float], rng: Rng = 0) -> list[np.ndarray]:
    """Split samples into parts that have the classes in the same proportions.

    Of the n samples of a class, part i gets about ``fractions[i] * n`` and at least one, drawn at random.

    Parameters
    ----------
    y : array (N,)
        Labels.
    fractions : sequence of float
        The fraction of each part, above 0; their sum is 1.
    rng : None, int, Generator or RandomState
        Decides which sample goes to which part.

    Returns
    -------
    list of array of int64
        The indices of each part's samples, in random order. Each index is in one part.

    Raises
    ------
    ArgumentError
        If `fractions` are no such fractions, or a class has fewer samples than there are parts.

    Examples
    --------
    >>> y = np.array([0] * 8 + [1] * 4)
    >>> train, val = stratified_split(y, (0.75, 0.25))
    >>> np.bincount(y[train]), np.bincount(y[val])
    (array([6, 3]), array([2, 1]))
    """
    y, fractions = np.asarray(y), tuple(fractions)
    if y.ndim != 1 or not fractions or min(fractions) <= 0 or not isclose(sum(fractions), 1):
        raise ArgumentError(
            f"y has shape {y.shape} and fractions is {fractions}; expected labels (N,) and fractions above 0 "
            "that add up to 1"
        )
    stream = as_random_stream(rng)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for label in np.unique(y):
        members = stream.permutation(np.flatnonzero(y == label))
        if len(members) < len(fractions):
            raise ArgumentError(
                f"class {label} has {len(members)} samples; expected {len(fractions)} or more, one for each part"
            )
        for part, chosen in zip(parts, np.split(members, _bounds(len(members), fractions)), strict=True):
            part.append(chosen)
    return [stream.permutation(np.concatenate([np.empty(0, np.int64), *part])) for part in parts]


def _bounds(count: int, fractions: tuple[float, ...]) -> list[int]:
    """Return where to cut `count` samples: rounded, and so that no part is empty."""
    bounds: list[int] = []
    for i, fraction in enumerate(np.cumsum(fractions)[:-1], start=1):
        lowest = bounds[-1] + 1 if bounds else 1
        bounds.append(min(max(floor(fraction * count + 0.5), lowest), count - (len(fractions) - i)))
    return bounds
