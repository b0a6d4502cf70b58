"""Gradients of a minibatch that is cut into equal micro-batches.

Sums over micro-batches are added in a binary tree: neighbours in pairs, then neighbouring pairs, and so on. The number
of micro-batches determines the tree, and so the bits of the sums.
"""

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, NamedTuple, TypeVar

from xpconv._validation import check_choice, check_count
from xpconv.backend import Array, array_namespace
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn import Sequential
from xpconv.nn._parts import Join, Part, Pass, add_arrays
from xpconv.ops.tiling import for_each_block
from xpconv.parallel import Communicator

__all__ = ["NORM_SYNCS", "MicroBatches", "combine_in_tree"]

NORM_SYNCS = ("whole", "ghost")
"""Whether batch norm takes its statistics over the whole minibatch or over each micro-batch."""

_T = TypeVar("_T")


def combine_in_tree(values: Iterable[_T], combine: Callable[[_T, _T], _T]) -> _T:
    """Combine 2**k values in a binary tree, each pair as soon as both values are available.

    Examples
    --------
    >>> combine_in_tree("abcd", lambda a, b: f"({a}{b})")
    '((ab)(cd))'
    """
    runs: list[tuple[int, _T]] = []  # the length of each run of neighbouring values, and their combination
    for value in values:
        size, combined = 1, value
        while runs and runs[-1][0] == size:
            combined, size = combine(runs.pop()[1], combined), 2 * size
        runs.append((size, combined))
    ((_, total),) = runs
    return total


class Terms(NamedTuple):
    """What a part of a minibatch adds to the loss, the gradients and the new state of the whole."""

    loss: Any
    grads: dict[str, Array]
    state: dict[str, Array]


class MicroBatches:
    """The micro-batches of each minibatch of a training, which one or several workers compute.

    Worker r of R computes the ``count / R`` micro-batches from number ``r * count / R`` on. They form a subtree, so the
    bits of the sums do not depend on R.

    Parameters
    ----------
    model : Sequential, or another object if `count` is 1
    count : int
        Number of micro-batches: a power of two that divides the batch size.
    norm_sync : {"whole", "ghost"}
    batch_size : int
    communicator : Communicator, optional
        Connects the workers, whose number divides `count`.

    Raises
    ------
    ArgumentError
        If `count` is not a power of two, does not divide the batch size, or cannot be shared among the workers.
    ArgumentTypeError
        If there are several micro-batches and the model is not a Sequential.
    """

    def __init__(
        self, model: Any, count: int, norm_sync: str, batch_size: int, communicator: Communicator | None = None
    ) -> None:
        self.count, self.communicator = check_count("microbatches", count), communicator or Communicator()
        check_choice("norm_sync", norm_sync, NORM_SYNCS)
        if self.count & (self.count - 1):
            raise ArgumentError(f"microbatches is {count}; expected a power of two, such as 1, 2 or 4")
        if batch_size % self.count:
            raise ArgumentError(
                f"microbatches is {count}, which does not divide the batch_size of {batch_size}: take fewer "
                f"microbatches, or another batch_size, such as {-(-batch_size // self.count) * self.count}"
            )
        if self.count > 1 and not isinstance(model, Sequential):
            raise ArgumentTypeError(
                f"microbatches is {count}, but the model is a {type(model).__name__}; expected a Sequential, whose "
                "layers know how to compute a part of a minibatch"
            )
        workers = self.communicator.size
        if self.count % workers:
            raise ArgumentError(
                f"microbatches is {count}, which {workers} workers cannot share equally: start 1, 2, 4, ... workers, "
                "at most microbatches of them"
            )
        self.norm_sync, self.own_count = norm_sync, self.count // workers
        size, rank = batch_size // workers, self.communicator.rank
        self.own_rows = slice(rank * size, (rank + 1) * size) if workers > 1 else slice(None)
        """The rows of each minibatch that this worker computes."""

    def cut(self, X: Array) -> Iterator[Array]:
        """Yield the rows of each of this worker's micro-batches, in an array of its own."""
        if self.count == 1:
            yield X
            return
        xp, size = array_namespace(X=X), X.shape[0] // self.own_count
        for k in range(self.own_count):
            yield xp.asarray(X[k * size : (k + 1) * size, ...], copy=True)

    def combine(self, arrays: Iterable[Array], combine: Callable[[Array, Array], Array]) -> Array:
        """Combine a small array of each micro-batch in the tree; every worker gets the result."""
        own = combine_in_tree(arrays, combine)
        return own if self.communicator.size == 1 else combine_in_tree(self.communicator.gather_all(own), combine)

    def loss(self, model: Any, X: Array, y: Array) -> tuple[Any, dict[str, Array]]:
        """Return what ``model.loss(X, y)`` returns for the whole minibatch, and update the model's state.

        Micro-batches are computed one after another, so more of them take less memory. Where they join, as in a batch
        norm over the whole minibatch, each is computed up to the join before any continues, so the activations of all
        micro-batches stay in memory.

        Parameters
        ----------
        model : Sequential, or another object if there is one micro-batch
        X, y : array
            This worker's rows of the minibatch.
        """
        if self.count == 1:
            loss, grads = model.loss(X, y)
            return loss, grads
        with model._memory_errors(X):
            terms = combine_in_tree(self._terms(model, X, y), _add)
            loss, grads, state = terms if self.communicator.size == 1 else self._add_over_workers(terms)
            loss = model._add_penalty(loss, grads)
        model.state.update(state)
        return loss, grads

    def _terms(self, model: Sequential, X: Array, y: Array) -> Iterator[Terms]:
        """Yield the terms of each of this worker's micro-batches."""
        seeds, norm_sync = model._draw_seeds(), self.norm_sync == "whole"

        def terms_of(number: int, X: Array, y: Array) -> Pass:
            loss, grads, state = yield from model._training_pass(X, y, seeds, Part(number, self.count, norm_sync))
            return Terms(loss, grads, {name: a / self.count for name, a in state.items()})

        pairs, first = zip(self.cut(X), self.cut(y), strict=True), self.communicator.rank * self.own_count
        passes: Iterable[Pass] = (terms_of(number, *pair) for number, pair in enumerate(pairs, first))
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

    def _add_over_workers(self, own: Terms) -> Terms:
        """Add the terms of all workers: each worker adds up one slice in the tree, and sends the sum to the others."""
        arrays = [own.loss, *own.grads.values(), *own.state.values()]
        xp, workers = array_namespace(grad=arrays[1]), self.communicator.size
        shapes = [tuple(a.shape) for a in arrays]
        flat = [xp.reshape(xp.asarray(a), (-1,)) for a in arrays]
        padding = -sum(prod(shape) for shape in shapes) % workers
        bucket = xp.concat([*flat, *([flat[-1][:1]] * padding)])
        size = bucket.shape[0] // workers
        slices = self.communicator.exchange([bucket[k * size : (k + 1) * size] for k in range(workers)])
        bucket = xp.concat(self.communicator.gather_all(combine_in_tree(slices, add_arrays)))
        sums, start = list[Array](), 0
        for shape in shapes:
            sums.append(xp.asarray(xp.reshape(bucket[start : start + prod(shape)], shape), copy=True))
            start += prod(shape)
        names = [*own.grads]
        return Terms(
            sums[0],
            dict(zip(names, sums[1:], strict=False)),
            dict(zip(own.state, sums[1 + len(names) :], strict=True)),
        )


def _add(a: Terms, b: Terms) -> Terms:
    """Return the sum of two micro-batches' terms; the gradients are added in place."""

    def add(x: Array, y: Array) -> None:
        x += y

    for name, grad in a.grads.items():
        for_each_block(grad, b.grads[name], update=add)
    return Terms(a.loss + b.loss, a.grads, {name: x + b.state[name] for name, x in a.state.items()})
