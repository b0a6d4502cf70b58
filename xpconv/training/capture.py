"""A model's loss and gradients, captured in a CUDA graph, for training loops without the Solver."""

import importlib
from contextlib import suppress
from operator import is_
from types import TracebackType
from typing import Any, Self

from xpconv._deferred import DeferredStream, Tape
from xpconv.backend import Array, copy_arrays, on_its_device, tf32_enabled
from xpconv.nn import Sequential
from xpconv.random import draw_seed
from xpconv.training._capture import (
    capture_obstacle,
    environment,
    keeping_arrays,
    model_obstacle,
    shallow_copy,
    write_back,
)

__all__ = ["CapturedLoss", "capture"]


def capture(model: Sequential, X: Array, y: Array) -> "CapturedLoss":
    """Return a function ``(X, y) -> (loss, grads)`` that does what ``model.loss`` does, in one call to the GPU.

    On a GPU, most of a small net's time goes into launching hundreds of kernels from Python for each minibatch. The
    function captures the kernels in a CUDA graph and replays it, with the same bits. Elsewhere it calls ``model.loss``.

    Parameters
    ----------
    model : Sequential
        Its parameters and state may change. If parts of the model are replaced, the function captures again.
    X, y : array
        A minibatch. For minibatches of other shapes or dtypes, the function calls ``model.loss``.

    Returns
    -------
    CapturedLoss
        The next call overwrites the loss and gradients that this function returned: copy what you keep.

    Examples
    --------
    >>> import numpy as np
    >>> import xpconv
    >>> from xpconv.training.optim import sgd
    >>> net = xpconv.TwoLayerNet(input_dim=4, num_classes=3, rng=0)
    >>> X, y = np.ones((6, 4), np.float32), np.arange(6) % 3
    >>> with xpconv.capture(net, X, y) as loss_and_gradients:
    ...     for step in range(3):
    ...         loss, grads = loss_and_gradients(X, y)
    ...         for name, grad in grads.items():
    ...             _ = sgd(net.params[name], grad, {"learning_rate": 0.1}, in_place=True)
    >>> round(float(loss), 2)
    1.1
    """
    return CapturedLoss(model, X, y)


class CapturedLoss:
    """What `capture` returns.

    Parameters
    ----------
    model, X, y
        As for `capture`.

    Attributes
    ----------
    obstacle : str
        Why calls are not captured; empty if they are.

    Examples
    --------
    >>> import numpy as np
    >>> import xpconv
    >>> net = xpconv.TwoLayerNet(input_dim=4, num_classes=3, rng=0, backend="numpy")
    >>> loss_and_gradients = CapturedLoss(net, np.ones((2, 4)), np.zeros(2, int))
    >>> loss_and_gradients.obstacle
    'numpy has no CUDA graphs'
    """

    def __init__(self, model: Sequential, X: Array, y: Array) -> None:
        self.model, self.backend = model, model.backend
        self.obstacle = model_obstacle(model) or capture_obstacle(model.backend)
        self._graph: Any = None
        self._memory: Any = None
        self._results: Any = None
        if not self.obstacle:
            self._graphs: Any = importlib.import_module("xpconv.ops.cupy._graph")
            self._prepare(X, y)

    @on_its_device
    def _prepare(self, X: Array, y: Array) -> None:
        # Keep the caller's dtypes: the model converts each minibatch itself.
        self._minibatch = tuple(copy_arrays({"X": self.backend.asarray(X), "y": self.backend.asarray(y)}).values())
        self._capture()

    @on_its_device
    def __call__(self, X: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        """Return the loss and the gradients of a minibatch; the model's running averages are updated."""
        if not self._ready(X, y):
            with self._keeping_state():
                loss, grads = self.model.loss(X, y)
            return loss, grads
        for fixed, given in zip(self._minibatch, (X, y), strict=True):
            fixed[...] = self.backend.asarray(given)
        self._numbers.write(None, self._groups, self._tape.evaluate())
        self._graph.launch()
        loss, grads = self._results
        return loss, dict(grads)

    def close(self) -> None:
        """Free the graph and its memory; the next call captures again."""
        if self._graph is not None:
            with self.backend.current(), suppress(Exception):  # after a failure of the device
                self._graphs.wait_for_stream()
        self._graph = self._memory = self._results = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, X: Array, y: Array) -> bool:
        """Return whether the graph computes this minibatch; capture it if need be."""
        if self.obstacle or not self._fits(X, y):
            return False
        if self._graph is None or not self._unchanged():
            self._capture()
        return self._graph is not None

    def _fits(self, X: Any, y: Any) -> bool:
        return all(
            hasattr(given, "shape") and tuple(given.shape) == tuple(fixed.shape) and given.dtype == fixed.dtype
            for given, fixed in zip((X, y), self._minibatch, strict=True)
        )

    def _dependencies(self) -> list[Any]:
        model = self.model
        plain = [value for name, value in vars(model).items() if name not in ("params", "state", "seed_stream")]
        return [*plain, *model.params.values(), *model.state.values(), tf32_enabled(), *environment()]

    def _unchanged(self) -> bool:
        now = self._dependencies()
        return len(now) == len(self._frozen) and all(map(is_, now, self._frozen))

    def _keeping_state(self) -> Any:
        return keeping_arrays([self.model.state] if self._graph is not None else [])

    def _capture(self) -> None:
        self.close()
        try:
            self._memory = self._graphs.GraphMemory()
            self._numbers = self._graphs.Numbers(0, 64 + 8 * len(self.model.layers))
            self._trace(Tape(self._numbers.place), rehearse=True)
            self._tape = Tape(self._numbers.place)
            self._graph, self._results = self._memory.capture(lambda: self._trace(self._tape, rehearse=False))
        except Exception as error:  # nothing has changed
            self.obstacle = f"{type(error).__name__}: {error}"
            return
        self._groups, self._frozen = self._graphs.number_groups(self._tape), self._dependencies()

    def _trace(self, tape: Tape, *, rehearse: bool) -> tuple[Array, dict[str, Array]]:
        model = shallow_copy(self.model)
        model.state = copy_arrays(model.state) if rehearse else dict(model.state)
        model.seed_stream = DeferredStream(tape, lambda: draw_seed(self.model.seed_stream))
        before = dict(model.state)
        loss, grads = model.loss(*self._minibatch)
        write_back({}, before, model.state)
        return loss, grads
