"""Random splits of a data set that keep the proportions of its classes."""

from collections.abc import Iterable, Sequence
from math import floor, isclose

import numpy as np

from xpconv.errors import ArgumentError
from xpconv.random import Rng, as_random_stream

__all__ = ["stratified_split"]


def stratified_split(y: np.ndarray, fractions: Sequence[float], rng: Rng = 0) -> list[np.ndarray]:
    """Split samples at random so that all splits have the same class proportions.

    Of the n samples of a class, split i gets about ``fractions[i] * n``, and at least one.

    Parameters
    ----------
    y : array (N,)
        Labels.
    fractions : sequence of float
        The fraction of each split, above 0; the fractions add up to 1.
    rng : None, int, Generator or RandomState
        Determines which sample goes to which split.

    Returns
    -------
    list of array of int64
        The indices of each split's samples, in random order. Each index is in exactly one split.

    Raises
    ------
    ArgumentError
        If `fractions` are not positive or do not add up to 1, or a class has fewer samples than there are splits.

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
    splits: list[list[np.ndarray]] = [[] for _ in fractions]
    for label in np.unique(y):
        indices = stream.permutation(np.flatnonzero(y == label))
        if (count := len(indices)) < len(fractions):
            raise ArgumentError(
                f"class {label} has {count} sample{'s' * (count != 1)}; expected {len(fractions)} or more, "
                "one for each split"
            )
        boundaries = [floor(end * len(indices) + 0.5) for end in np.cumsum(fractions)[:-1]]
        for split, chosen in zip(splits, np.split(indices, leave_none_empty(boundaries, len(indices))), strict=True):
            split.append(chosen)
    return [stream.permutation(np.concatenate([np.empty(0, np.int64), *split])) for split in splits]


def leave_none_empty(boundaries: Iterable[int], count: int) -> list[int]:
    """Return where to cut `count` samples: the boundaries nearest to those given that leave no split empty."""
    boundaries, moved = list(boundaries), [0]
    for i, boundary in enumerate(boundaries):
        moved.append(min(max(int(boundary), moved[-1] + 1), count - len(boundaries) + i))
    return moved[1:]
