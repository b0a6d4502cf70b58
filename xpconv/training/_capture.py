"""Steps of a Solver that a CUDA graph replays.

A replay gives the work of a whole step to the device in one call. It has the same bits as an ordinary step, since the
same code is captured. Numbers that change from step to step are read from the device's memory (`xpconv._deferred`). If
a step replaces an array, such as a running mean, the result is copied into the array of the capture.
"""

import importlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from operator import is_, setitem
from typing import Any, NamedTuple

import array_api_compat

from xpconv._deferred import Deferred, DeferredStream, NotCapturableError, Tape
from xpconv.backend import Array, Backend, copy_arrays, tf32_enabled
from xpconv.data import Batches
from xpconv.nn import Sequential
from xpconv.nn._chain import nodes
from xpconv.random import draw_seed

__all__ = [
    "Captured",
    "CapturedSteps",
    "capture_obstacle",
    "captured_steps",
    "dependencies_of",
    "keeping_arrays",
    "model_obstacle",
    "rehearse_and_capture",
    "same_objects",
    "shallow_copy",
    "write_back",
]

WARM_UP = 2  # ordinary steps before the capture, which allocate workspaces and the memory of the update rule
RING = 64  # rows of losses on the device
MOST_GRAPHS = 8
CHANGING = ("learning_rate", "t")  # Numbers of an update rule that change from step to step.
CHANGED_BY_STEPS = ("params", "state", "seed_stream", "loss_scale")  # attributes of a model
SETTINGS = ("XPCONV_ACCELERATE", "XPCONV_WORKSPACE")
_settings: dict[str | None, str | None] = {}


def capture_obstacle(backend: Backend) -> str:
    """Return why no step can be captured on a backend, or "" if some can.

    Examples
    --------
    >>> from xpconv import get_backend
    >>> capture_obstacle(get_backend("numpy"))
    'numpy has no CUDA graphs'
    """
    if backend.library != "cupy":
        return f"{backend.library} has no CUDA graphs"
    if os.environ.get("XPCONV_CAPTURE") == "0":
        return "XPCONV_CAPTURE is 0"
    library, reason = importlib.import_module("xpconv.ops.cupy._gemm").load()
    return "" if library is not None else f"CuPy's own matrix products cannot be captured, and {reason}"


def model_obstacle(model: Any) -> str:
    """Return why the passes of a model cannot be captured, or "" if they can."""
    if not isinstance(model, Sequential):
        return f"the model is a {type(model).__name__}, not a Sequential"
    for path, layer in nodes(model.layers):
        if not type(layer).__module__.startswith("xpconv.") and not getattr(layer, "capturable", False):
            return (
                f"layer {path} is a {type(layer).__name__} of your own: set its attribute capturable to True if it "
                "does the same work on the device in each step"
            )
    return ""


def solver_obstacle(solver: Any) -> str:
    """Return why the steps of a Solver cannot be captured, or "" if they can."""
    if reason := capture_obstacle(solver.backend) or model_obstacle(solver.model):
        return reason
    if not isinstance(solver.update_rule, str):
        return "the update rule is a function of your own"
    if solver.augment is not None and not getattr(solver.augment, "capturable", False):
        return (
            "augment is a function of your own: set its attribute capturable to True if it does the same work on the "
            "device in each step, apart from its seed"
        )
    if solver._workers.several:
        return "several workers train the model"
    base = next(kind for kind in type(solver).__mro__ if kind.__module__ == "xpconv.training.solver")
    methods = ("_take_step", "_step", "_compute_step", "_augmented", "_update", "_check_finite", "_own_gradients")
    own = vars(solver)
    changed = [name for name in methods if name in own or getattr(type(solver), name) is not getattr(base, name)]
    return f"{type(solver).__name__} overrides {changed[0]}" if changed else ""


def captured_steps(solver: Any, batches: Batches, tell: Callable[[str], None]) -> "CapturedSteps | None":
    """Return the captured steps of a training, or None if its steps cannot be captured; on CuPy, tell why.

    Parameters
    ----------
    solver : Solver
    batches : Batches
        Minibatches of the training.
    tell : callable
        Receives the reason why steps are not captured.
    """
    reason = solver_obstacle(solver)
    try:
        if not reason:
            return CapturedSteps(solver, batches, tell)
    except Exception as error:  # for example, if there is too little memory
        reason = f"{type(error).__name__}: {error}"
    if solver.backend.library == "cupy":
        tell(f"steps are not captured: {reason}")
    return None


class CapturedSteps:
    """The steps of one training: ordinary ones first, then replays of captured ones.

    Steps that do different work have separate graphs, such as those that move the slow weights of lookahead. `close`
    frees everything.

    Parameters
    ----------
    solver, batches, tell
        As for `captured_steps`.
    """

    def __init__(self, solver: Any, batches: Batches, tell: Callable[[str], None]) -> None:
        self.solver, self._batches, self._tell = solver, batches, tell
        self._graphs: Any = importlib.import_module("xpconv.ops.cupy._graph")
        self._memory = self._graphs.GraphMemory()
        capacity = 256 + 16 * len(solver.model.params) + 4 * len(solver.model.layers)
        self._numbers = self._graphs.Numbers(solver.batch_size, capacity)
        self._steps: list[Captured] = []
        self._ordinary_steps = 0  # since the last change of what captured steps depend on
        self._frozen: list[Any] = []
        self._minibatch: tuple[Array, Array] | None = None  # for data on the host: what captured steps read
        self._ring: Array | None = None
        self._used = 0  # rows of the ring that have not been moved to the Solver's pending rows
        self.failed = False

    def take_step(self, need_images: bool) -> Array | None:
        """Train on the next minibatch; return its images if they are needed."""
        if self.failed or need_images or not self._unchanged():
            self.collect_rows()
            with self._keeping_arrays():
                X: Array = self.solver._take_ordinary_step(self._batches)
            self._ordinary_steps += 1
            self._frozen = self._dependencies()
            return X
        minibatch = self._next_minibatch()
        self.solver._apply_schedule()
        step = self._find_step()
        if step is None:
            self.collect_rows()
            X, y = self._batches.gather(self._batches.rows) if minibatch is None else minibatch
            with self._keeping_arrays():
                self.solver._compute_step(*self.solver._augmented(X, y, self._batches.rows))
            return None
        if self._used == RING:
            self.collect_rows()
        values = step.replay(self._numbers, self._batches.rows)
        for store, position in step.results:
            store(values[position])
        self._used += 1
        return None

    def collect_rows(self) -> None:
        """Move the rows of losses to the Solver's pending rows, without waiting for the device."""
        if self._ring is not None and self._used:
            xp = self.solver.backend.xp
            self.solver._pending_rows.append(xp.asarray(self._ring[: self._used, :], copy=True))
            self._used = 0

    def close(self) -> None:
        """Free the graphs and their memory."""
        try:
            self.collect_rows()
        finally:
            memory, graphs = self._memory, bool(self._steps)
            self._steps, self._ring, self._minibatch, self._memory = [], None, None, None
            with suppress(Exception):  # the device may have failed
                if graphs:
                    self._graphs.wait_for_stream()
                if memory is not None:
                    memory.free()

    def _unchanged(self) -> bool:
        """Return whether captured steps may be used; forget those captured so far if a dependency has changed."""
        now = self._dependencies()
        if not same_objects(now, self._frozen):
            self._steps, self._frozen, self._ordinary_steps = [], now, min(self._ordinary_steps, WARM_UP - 1)
        return self._ordinary_steps >= WARM_UP

    def _dependencies(self) -> list[Any]:
        """Return all objects that captured steps depend on: arrays, and options that a replay does not read again."""
        solver, model = self.solver, self.solver.model
        found = [solver.X_train, solver.y_train, solver.augment, solver.clip_norm, solver.on_nonfinite, model]
        found += [solver.update_rule, solver._microbatches, *dependencies_of(model, CHANGED_BY_STEPS)]
        for store in self._stores(solver):
            found += [value for key, value in store.items() if key not in CHANGING or hasattr(value, "shape")]
        return found

    @staticmethod
    def _stores(solver: Any) -> list[dict[str, Any]]:
        """Return the dicts that hold all arrays that a step changes."""
        averages, configs = solver._averages.arrays.values(), solver.optim_configs.values()
        return [solver.model.params, solver.model.state, *averages, *configs, solver._loss_scale.arrays]

    def _keeping_arrays(self) -> AbstractContextManager[None]:
        """Let an ordinary step write its results to the arrays that captured steps use."""
        return keeping_arrays(self._stores(self.solver) if self._steps else [], lambda: self._stores(self.solver))

    def _next_minibatch(self) -> tuple[Array, Array] | None:
        """Draw the next minibatch; if it comes from the host, copy it to the arrays of captured steps and return it."""
        if self._batches.arrays is not None:
            self._batches.draw_rows()
            return None
        X, y = next(self._batches)
        if self._minibatch is None:
            xp = self.solver.backend.xp
            self._minibatch = xp.empty_like(X), xp.empty_like(y)
        for fixed, array in zip(self._minibatch, (X, y), strict=True):
            fixed[...] = array
        return X, y

    def _find_step(self) -> "Captured | None":
        """Return the captured step with the work of the next step; capture it if need be."""
        if self.failed:
            return None
        for step in self._steps:
            if step.tape.fits():
                return step
        try:
            if len(self._steps) == MOST_GRAPHS:
                raise NotCapturableError(f"the steps differ in more than {MOST_GRAPHS} ways")
            step = rehearse_and_capture(self._graphs, self._memory, self._numbers, self._trace)
        except Exception as error:  # Nothing has changed: training goes on with ordinary steps.
            self.failed = True
            self._tell(f"steps are not captured: {type(error).__name__}: {error}")
            return None
        self._steps.insert(0, step)
        return step

    def _trace(self, tape: Tape, *, rehearse: bool) -> list[tuple[Callable[[Any], None], int]]:
        """Give the work of a step to the device; return the functions to call after each replay, as `write_back` does.

        A rehearsal works on copies of all arrays.
        """
        place = copy_arrays if rehearse else dict
        solver, model = shallow_copy(self.solver), shallow_copy(self.solver.model)
        solver.model, solver._pending_rows = model, []
        solver._averages, solver._loss_scale = shallow_copy(solver._averages), shallow_copy(solver._loss_scale)
        model.params, model.state = place(model.params), place(model.state)
        solver._averages.arrays = {kind: place(store) for kind, store in solver._averages.arrays.items()}
        solver._loss_scale.arrays = place(solver._loss_scale.arrays)
        configs = self.solver.optim_configs
        solver.optim_configs = {name: self._deferred_config(tape, config, place) for name, config in configs.items()}
        solver.iteration = tape.source(lambda: self.solver.iteration, repeatable=True)
        solver.epoch = tape.source(lambda: self.solver.epoch, repeatable=True)
        model.seed_stream = DeferredStream(tape, lambda: draw_seed(self.solver.model.seed_stream))
        augment = DeferredStream(tape, lambda: draw_seed(self.solver.streams["augment"]))
        solver.streams = {**solver.streams, "augment": augment}
        before = [dict(store) for store in self._stores(solver)]

        solver._compute_step(*solver._augmented(*self._gather(), self._numbers.rows))
        self._keep_row(tape, solver._pending_rows[0], rehearse)
        results: list[tuple[Callable[[Any], None], int]] = [
            (partial(setattr, self.solver, "iteration"), solver.iteration.position)
        ]
        for real, old, new in zip(self._stores(self.solver), before, self._stores(solver), strict=True):
            results += write_back(real, old, new)
        return results

    def _deferred_config(self, tape: Tape, config: Mapping[str, Any], place: Callable[[Any], Any]) -> dict[str, Any]:
        """Return the options and the memory of an update rule, in which numbers that change are deferred."""
        arrays = place({key: value for key, value in config.items() if hasattr(value, "shape")})
        deferred = {**config, **arrays}
        for key in CHANGING:
            if key in config and key not in arrays:
                deferred[key] = tape.source(partial(config.__getitem__, key), repeatable=True)
        return deferred

    def _gather(self) -> tuple[Array, Array]:
        """Return the minibatch, whose row numbers or arrays are written to the device before each replay."""
        if self._batches.arrays is None:
            assert self._minibatch is not None
            return self._minibatch
        X, y = self._batches.arrays
        take, rows = self.solver.backend.xp.take, self._numbers.rows
        return take(X, rows, axis=0), take(y, rows, axis=0)

    def _keep_row(self, tape: Tape, row: Array, rehearse: bool) -> None:
        """Write a step's row of losses to the next row of the ring."""
        xp, device = self.solver.backend.xp, array_api_compat.device(row)
        if self._ring is None or self._ring.shape[1] != row.shape[0]:
            self.collect_rows()
            self._ring = xp.zeros((RING, row.shape[0]), dtype=row.dtype, device=device)
        ring = xp.asarray(self._ring, copy=True) if rehearse else self._ring
        numbers = xp.reshape(xp.arange(RING, dtype=xp.int64, device=device), (-1, 1))
        ring[...] = xp.where(numbers == tape.source(lambda: self._used), row, ring)


class Captured(NamedTuple):
    """Captured work.

    Parameters
    ----------
    tape : Tape
    graph : cupy.cuda.Graph
    groups : list
        The argument of `Numbers.write`.
    results
        What the function that was captured returned.
    """

    tape: Tape
    graph: Any
    groups: Any
    results: Any

    def replay(self, numbers: Any, rows: Any = None) -> Any:
        """Write row numbers and deferred numbers to the device, start the graph, and return the deferred numbers."""
        values = self.tape.evaluate()
        numbers.write(rows, self.groups, values)
        self.graph.launch()
        return values


def rehearse_and_capture(graphs: Any, memory: Any, numbers: Any, trace: Callable[..., Any]) -> Captured:
    """Capture the work of ``trace(tape, rehearse=False)``.

    A rehearsal comes first, since kernels must be loaded before a capture.
    """
    trace(Tape(numbers.place), rehearse=True)
    tape = Tape(numbers.place)
    graph, results = memory.capture(lambda: trace(tape, rehearse=False))
    return Captured(tape, graph, graphs.number_groups(tape), results)


def dependencies_of(model: Any, changing: Collection[str]) -> list[Any]:
    """Return the attributes of a model except the `changing` ones, and the settings that captured passes depend on."""
    attributes = [value for name, value in vars(model).items() if name not in changing]
    # Dependencies are compared by identity, so equal texts must be one object.
    environment = [_settings.setdefault(text, text) for text in map(os.environ.get, SETTINGS)]
    return [*attributes, tf32_enabled(), *environment]


def same_objects(first: list[Any], second: list[Any]) -> bool:
    """Return whether two lists hold the same objects."""
    return len(first) == len(second) and all(map(is_, first, second))


def write_back(
    real: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[Callable[[Any], None], int]]:
    """Copy arrays that a step has replaced into the old ones.

    For a deferred number, return a function to call after each replay, and the position on the tape of the number that
    it gets.
    """
    if old.keys() != new.keys():
        raise NotCapturableError(f"the step adds or removes {', '.join(sorted(old.keys() ^ new.keys()))}")
    results: list[tuple[Callable[[Any], None], int]] = []
    for key, value in new.items():
        if value is old[key]:
            continue
        if isinstance(value, Deferred):
            results.append((partial(setitem, real, key), value.position))
        elif hasattr(value, "shape") and hasattr(old[key], "shape") and value.shape == old[key].shape:
            old[key][...] = value
        else:
            raise NotCapturableError(
                f"the step replaces {key}, a {type(old[key]).__name__}, by a {type(value).__name__}"
            )
    return results


@contextmanager
def keeping_arrays(
    stores: list[dict[str, Any]], find_stores: Callable[[], list[dict[str, Any]]] | None = None
) -> Iterator[None]:
    """At the end, copy each array that has replaced another in the dicts into the original, and put that back.

    `find_stores` returns the dicts at the end, if the dicts themselves may have been replaced.
    """
    before = [dict(store) for store in stores]
    yield
    for store, old in zip(find_stores() if find_stores else stores, before, strict=False):
        for key, array in old.items():
            if hasattr(array, "shape") and store.get(key) is not array:
                array[...] = store[key]
                store[key] = array


def shallow_copy(thing: Any) -> Any:
    """Return a copy with the same attributes, without `__getstate__`, which changes those of a Solver in training."""
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied
