"""Gradients of a minibatch that is cut into equal micro-batches.

Sums over micro-batches are added in a binary tree: neighbours in pairs, then neighbouring pairs, and so on. The number
of micro-batches determines the tree, and so the bits of the sums.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from xpconv._validation import check_choice, check_count
from xpconv.backend import Array, array_namespace
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn import Sequential
from xpconv.nn._parts import Join, Part, Pass
from xpconv.ops.tiling import for_each_block

__all__ = ["NORM_SYNCS", "MicroBatches", "combine_in_tree"]

NORM_SYNCS = ("whole", "ghost")
"""Over what batch norm takes its statistics: the whole minibatch or each micro-batch."""

_T = TypeVar("_T")


def combine_in_tree(values: Iterable[_T], combine: Callable[[_T, _T], _T]) -> _T:
    """Combine 2**k values in a binary tree, each pair as soon as both are there.

    Examples
    --------
    >>> combine_in_tree("abcd", lambda a, b: f"({a}{b})")
    '((ab)(cd))'
    """
    runs: list[tuple[int, _T]] = []  # of neighbouring values: their number and their combination
    for value in values:
        size, combined = 1, value
        while runs and runs[-1][0] == size:
            combined, size = combine(runs.pop()[1], combined), 2 * size
        runs.append((size, combined))
    ((_, total),) = runs
    return total


class MicroBatches:
    """The micro-batches of each minibatch of a training.

    Parameters
    ----------
    model : Sequential, or another object if `count` is 1
    count : int
        Number of micro-batches: a power of two that divides the batch size.
    norm_sync : {"whole", "ghost"}
    batch_size : int

    Raises
    ------
    ArgumentError
        If the batch size or the model cannot be cut.
    """

    def __init__(self, model: Any, count: int, norm_sync: str, batch_size: int) -> None:
        self.count = check_count("microbatches", count)
        check_choice("norm_sync", norm_sync, NORM_SYNCS)
        if self.count & (self.count - 1):
            raise ArgumentError(f"microbatches is {count}; expected a power of two, such as 1, 2 or 4")
        if batch_size % self.count:
            raise ArgumentError(
                f"microbatches is {count}, which does not divide the batch_size of {batch_size}: take a multiple of "
                f"{count} as batch_size, or fewer microbatches"
            )
        if self.count > 1 and not isinstance(model, Sequential):
            raise ArgumentTypeError(
                f"microbatches is {count}, but the model is a {type(model).__name__}; expected a Sequential, whose "
                "layers know how to compute a part of a minibatch"
            )
        self.norm_sync = norm_sync

    def cut(self, X: Array) -> Iterator[Array]:
        """Yield the rows of each micro-batch, in an array of its own."""
        if self.count == 1:
            yield X
            return
        xp, size = array_namespace(X=X), X.shape[0] // self.count
        for k in range(self.count):
            yield xp.asarray(X[k * size : (k + 1) * size, ...], copy=True)

    def combine(self, arrays: Iterable[Array], combine: Callable[[Array, Array], Array]) -> Array:
        """Combine an array of each micro-batch in the tree."""
        return combine_in_tree(arrays, combine)

    def loss(self, model: Any, X: Array, y: Array) -> tuple[Any, dict[str, Array]]:
        """Return what ``model.loss(X, y)`` returns, and update its state, with less memory for more micro-batches.

        Micro-batches are computed one after another. Where they join, as in a batch norm over the whole minibatch, each
        is computed up to there before any goes on, so the activations of all of them stay in memory.
        """
        if self.count == 1:
            loss, grads = model.loss(X, y)
            return loss, grads
        with model._memory_errors(X):
            loss, grads, state = combine_in_tree(self._terms(model, X, y), _add)
            loss = model._add_penalty(loss, grads)
        model.state.update(state)
        return loss, grads

    def _terms(self, model: Sequential, X: Array, y: Array) -> Iterator[tuple[Any, dict[str, Array], dict[str, Array]]]:
        """Yield each micro-batch's terms of the loss, of the gradients and of the state."""
        seeds, norm_sync = model._draw_seeds(), self.norm_sync == "whole"

        def terms_of(number: int, X: Array, y: Array) -> Pass:
            loss, grads, state = yield from model._training_pass(X, y, seeds, Part(number, self.count, norm_sync))
            return loss, grads, {name: a / self.count for name, a in state.items()}

        pairs = zip(self.cut(X), self.cut(y), strict=True)
        passes: Iterable[Pass] = (terms_of(number, *pair) for number, pair in enumerate(pairs))
        answer: Any = None
        while passes:
            joins, waiting = list[Join](), list[Pass]()
            for each in passes:
                try:
                    joins.append(each.send(answer))
                    waiting.append(each)
                except StopIteration as end:
                    yield end.value
            passes = waiting
            if joins:
                answer = self.combine((join.array for join in joins), joins[0].combine)


def _add(
    a: tuple[Any, dict[str, Array], dict[str, Array]], b: tuple[Any, dict[str, Array], dict[str, Array]]
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
    """Add terms, gradients in place."""

    def add(x: Array, y: Array) -> None:
        x += y

    for name, grad in a[1].items():
        for_each_block(grad, b[1][name], update=add)
    return a[0] + b[0], a[1], {name: x + b[2][name] for name, x in a[2].items()}
