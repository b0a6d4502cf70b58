"""A model's loss and gradients, captured in a CUDA graph, for training loops without the Solver."""

import importlib
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import array_api_compat

from xpconv._deferred import DeferredStream, Tape
from xpconv.backend import Array, copy_arrays, on_its_device
from xpconv.errors import ArgumentTypeError
from xpconv.nn import Sequential
from xpconv.random import draw_seed
from xpconv.training._capture import (
    Captured,
    capture_obstacle,
    dependencies_of,
    keeping_arrays,
    model_obstacle,
    rehearse_and_capture,
    same_objects,
    shallow_copy,
    write_back,
)

__all__ = ["CapturedLoss", "capture"]


def capture(model: Sequential, X: Array, y: Array) -> "CapturedLoss":
    """Return a function ``(X, y) -> (loss, grads)`` that computes ``model.loss`` in one call to the GPU.

    On a GPU, a small net spends most of its time on launching hundreds of kernels from Python for each minibatch. The
    function captures these kernels in a CUDA graph and replays them, with the same bits. On other backends it calls
    ``model.loss``.

    Parameters
    ----------
    model : Sequential
        The values of its parameters and state may change. If arrays or layers are replaced, they are captured again.
    X, y : array
        A minibatch. For minibatches of other shapes or dtypes, the function calls ``model.loss``.

    Returns
    -------
    CapturedLoss
        Each call overwrites the loss and the gradients of the previous call: copy what you keep.

    Raises
    ------
    ArgumentTypeError
        If `model` has no loss and backend, or `X` or `y` is not an array.

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
    ...             _ = sgd(
    ...                 net.params[name], grad, {"learning_rate": 0.1}, in_place=True
    ...             )
    >>> round(float(loss), 2)
    1.1
    """
    return CapturedLoss(model, X, y)


class CapturedLoss:
    """A model's loss and gradients as a function of a minibatch, made by `capture`.

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
        if not hasattr(model, "backend") or not callable(getattr(model, "loss", None)):
            raise ArgumentTypeError(f"model is a {type(model).__name__}; expected a Sequential")
        minibatch: dict[str, Any] = {"X": X, "y": y}
        for name, array in minibatch.items():
            if not isinstance(array, list | tuple) and not array_api_compat.is_array_api_obj(array):
                raise ArgumentTypeError(f"{name} is a {type(array).__name__}; expected an array, a minibatch's {name}")
        self.model, self.backend = model, model.backend
        self.obstacle = model_obstacle(model) or capture_obstacle(model.backend)
        self._captured: Captured | None = None
        self._memory: Any = None
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
        captured = self._find_graph(X, y)
        if captured is None:
            with self._keeping_state():
                loss, grads = self.model.loss(X, y)
            return loss, grads
        for fixed, given in zip(self._minibatch, (X, y), strict=True):
            fixed[...] = self.backend.asarray(given)
        captured.replay(self._numbers)
        loss, grads = captured.results
        return loss, dict(grads)

    def close(self) -> None:
        """Free the graph and its memory; the next call captures again."""
        if self._captured is not None:
            with self.backend.current(), suppress(Exception):  # the device may have failed
                self._graphs.wait_for_stream()
        self._captured = self._memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find_graph(self, X: Array, y: Array) -> Captured | None:
        """Return the graph, captured again if the model has changed; None if the minibatch does not fit it."""
        if self.obstacle or not self._fits(X, y):
            return None
        if self._captured is None or not same_objects(self._dependencies(), self._frozen):
            self._capture()
        return self._captured

    def _fits(self, X: Any, y: Any) -> bool:
        return all(
            hasattr(given, "shape") and tuple(given.shape) == tuple(fixed.shape) and given.dtype == fixed.dtype
            for given, fixed in zip((X, y), self._minibatch, strict=True)
        )

    def _dependencies(self) -> list[Any]:
        model = self.model
        own = dependencies_of(model, ("params", "state", "seed_stream"))
        return [*own, *model.params.values(), *model.state.values()]

    def _keeping_state(self) -> Any:
        return keeping_arrays([self.model.state] if self._captured is not None else [])

    def _capture(self) -> None:
        self.close()
        try:
            self._memory = self._graphs.GraphMemory()
            self._numbers = self._graphs.Numbers(0, 64 + 8 * len(self.model.layers))
            self._captured = rehearse_and_capture(self._graphs, self._memory, self._numbers, self._trace)
        except Exception as error:  # The model is unchanged: calls compute its loss without a graph.
            self.obstacle = f"{type(error).__name__}: {error}"
            return
        self._frozen = self._dependencies()

    def _trace(self, tape: Tape, *, rehearse: bool) -> tuple[Array, dict[str, Array]]:
        model = shallow_copy(self.model)
        model.state = copy_arrays(model.state) if rehearse else dict(model.state)
        model.seed_stream = DeferredStream(tape, lambda: draw_seed(self.model.seed_stream))
        before = dict(model.state)
        loss, grads = model.loss(*self._minibatch)
        write_back({}, before, model.state)
        return loss, grads
