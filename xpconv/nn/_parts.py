"""Training passes of micro-batches, the equal parts into which a minibatch is cut.

A pass is a generator. Where it needs a value of the whole minibatch, such as the mean of a batch norm, it yields a
`Join` and receives the combination of what all parts yielded. All parts of a minibatch yield at the same places.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from xpconv.backend import Array

__all__ = ["WHOLE", "Join", "Part", "Pass", "add_arrays", "run_pass"]


@dataclass(frozen=True)
class Part:
    """One of the micro-batches of a minibatch.

    Attributes
    ----------
    number : int
        0 to `count` - 1.
    count : int
        A power of two.
    norm_sync : bool
        Whether batch norm normalises by the statistics of the whole minibatch, not of this part.
    """

    number: int = 0
    count: int = 1
    norm_sync: bool = True


WHOLE = Part()
"""A minibatch that is not cut."""


class Join(NamedTuple):
    """A request for the combination of an array over all parts.

    Attributes
    ----------
    array : array
        The part's own array, small and of the same shape in each part.
    combine : callable
        Returns the array of a run of parts, given those of its first and its second half.
    """

    array: Array
    combine: Callable[[Array, Array], Array]


Pass: TypeAlias = Generator[Join, Array, Any]


def run_pass(steps: Pass) -> Any:
    """Run the pass of a minibatch that is not cut, and return its result."""
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise AssertionError("a pass of the whole minibatch yielded a Join")


def add_arrays(a: Array, b: Array) -> Array:
    """Return the sum of two arrays: the `combine` of sums."""
    return a + b
