"""Training as files: everything that the rest of a training depends on, so that it can go on elsewhere to the bit."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np

from xpconv.backend import to_host
from xpconv.data._fingerprint import checksum, fingerprint
from xpconv.errors import CheckpointError, NonFiniteLossError, printable
from xpconv.io._safetensors import DESCRIPTION_ERRORS, DTYPES, ArrayFile, ArraySpec, write_arrays
from xpconv.nn import Sequential
from xpconv.random import RandomStream, restore, state_of
from xpconv.training.optim import UPDATE_RULES

if TYPE_CHECKING:
    from xpconv.training.solver import Solver

__all__ = ["CheckpointFolder", "resume", "save"]

FILE_FORMAT = "xpconv-checkpoint"
HISTORIES = ("loss_history", "learning_rate_history", "train_acc_history", "val_acc_history")
COUNTS = ("epoch", "iteration", "skipped", "round_start", "round_checks")


def save(solver: "Solver", path: str | os.PathLike[str]) -> None:
    """Write what `resume` needs; see `Solver.save`."""
    solver._read_losses()
    if not solver.resumable:
        raise CheckpointError(
            "this training ended in the midst of an iteration, or went wrong: it cannot be saved, "
            "but one that was saved before can be resumed"
        )
    arrays = {f"{kind}.{name}": to_host(a) for kind, store in _stores(solver).items() for name, a in store.items()}
    memory: dict[str, dict[str, Any]] = {}
    for parameter, config in solver.optim_configs.items():
        held = {key: to_host(value) for key, value in config.items() if _is_array(value)}
        if isinstance(solver.update_rule, str):  # whose arrays of one number count steps
            held = {key: value for key, value in held.items() if value.ndim}
        memory[parameter] = {
            "arrays": list(held),
            "values": {key: _plain(value) for key, value in config.items() if key not in held},
        }
        arrays |= {f"memory.{key}.{parameter}": value for key, value in held.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NonFiniteLossError(
                f"{name} has NaN or infinite values after iteration {solver.iteration}, so that "
                "nothing is saved: take a smaller learning_rate"
            )
    arrays |= {name: np.asarray(getattr(solver, name), np.float64) for name in HISTORIES}
    arrays |= {f"health.{name}": np.asarray(values, np.float64) for name, values in solver.health_history.items()}
    description = {name: getattr(solver, name) for name in COUNTS} | {
        "health": list(solver.health_history),
        "best_val_acc": float(solver.best_val_acc),
        "configuration": _configuration(solver),
        "memory": memory,
        "streams": {name: state_of(stream) for name, stream in _streams(solver).items()},
        "sampler": solver.sampler.state if solver._batches is None else solver._batches.state,
    }
    write_arrays(path, FILE_FORMAT, description, arrays)


def resume(solver: "Solver", path: str | os.PathLike[str]) -> None:
    """Take over what `save` wrote; see `Solver.resume`."""
    file = ArrayFile(path, FILE_FORMAT)
    try:
        _take_over(solver, file)
    except CheckpointError:
        raise
    except DESCRIPTION_ERRORS as error:
        raise CheckpointError(f"{file.path} describes no training ({printable(error)})") from error


def _take_over(solver: "Solver", file: ArrayFile) -> None:
    """Check everything, then change the solver."""
    told, backend = file.description, solver.backend
    difference = _difference(told["configuration"], _configuration(solver))
    if difference is not None:
        where, theirs, ours = difference
        raise CheckpointError(
            f"{file.path} is of a training with {printable(where)} = {printable(theirs)}, but this one "
            f"has {printable(ours)}: "
            "make the Solver and its model as they were made then"
        )
    counts = {name: told[name] for name in COUNTS}
    if not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError(f"counts of {counts}")
    best_val_acc, checks = float(told["best_val_acc"]), file.specs[HISTORIES[2]].shape

    stores = _stores(solver)
    own = {kind: {name: _entry(a) for name, a in store.items()} for kind, store in stores.items()}
    if any(name.startswith("best_params.") for name in file.specs):
        own |= {"best_params": own["params"], "best_state": own["state"]}
    else:
        own |= {"best_params": {}, "best_state": {}}
    wanted = {f"{kind}.{name}": entry for kind, entries in own.items() for name, entry in entries.items()}
    for parameter, memory in told["memory"].items():
        for key in memory["arrays"]:
            name = f"memory.{key}.{parameter}"
            wanted[name] = own["params"][parameter] if isinstance(solver.update_rule, str) else file.specs[name]
    shapes = (counts["iteration"],), (counts["iteration"],), checks, checks
    wanted |= {name: ArraySpec(shape, "float64") for name, shape in zip(HISTORIES, shapes, strict=True)}
    wanted |= {f"health.{name}": ArraySpec(checks, "float64") for name in told["health"]}
    arrays = file.read(wanted, allow_nonfinite=[*HISTORIES[:2], *(f"health.{name}" for name in told["health"])])
    memories = {
        parameter: {key: _value(value) for key, value in told["memory"][parameter]["values"].items()}
        | {key: backend.asarray(arrays[f"memory.{key}.{parameter}"]) for key in told["memory"][parameter]["arrays"]}
        for parameter in own["params"]
    }
    if isinstance(solver.update_rule, str):
        with np.errstate(all="ignore"):
            for values in memories.values():  # whether it can work with them, the rule knows
                numbers = {key: value for key, value in values.items() if not _is_array(value)}
                UPDATE_RULES[solver.update_rule](np.zeros(1), np.zeros(1), numbers)
    _restore_all(solver, told["streams"], told["sampler"])

    loaded = {kind: {name: backend.asarray(arrays[f"{kind}.{name}"]) for name in own[kind]} for kind in own}
    solver.model.params, solver.best_params, solver.best_state = (
        loaded[kind] for kind in ("params", "best_params", "best_state")
    )
    if own["state"]:
        solver.model.state = loaded["state"]
    solver.optim_configs, solver.best_val_acc = memories, best_val_acc
    for name in COUNTS:
        setattr(solver, name, counts[name])
    for name in HISTORIES:
        setattr(solver, name, arrays[name].tolist())
    solver.health_history = {name: arrays[f"health.{name}"].tolist() for name in told["health"]}
    solver.interrupted, solver.resumable, solver._finished, solver._swapped_out, solver._pending_rows = (
        False,
        True,
        False,
        None,
        [],
    )


def _stores(solver: "Solver") -> dict[str, Mapping[str, Any]]:
    params, state = solver.current()
    return {"params": params, "state": state, "best_params": solver.best_params, "best_state": solver.best_state}


def _configuration(solver: "Solver") -> dict[str, Any]:
    """Return what a Solver must have in common with the one that was saved."""
    model, rule = solver.model, solver.update_rule
    configuration = {
        "model": _architecture(model) if isinstance(model, Sequential) else type(model).__name__,
        "update_rule": rule if isinstance(rule, str) else _name_of(rule),
        "optim_config": {key: _plain(value) for key, value in solver.optim_config.items() if not _is_array(value)},
        **{
            name: getattr(solver, name)
            for name in ("lr_decay", "batch_size", "num_train_samples", "num_val_samples", "sampling", "patience")
        },
        **{
            name: None if (function := getattr(solver, name)) is None else _name_of(function)
            for name in ("augment", "schedule")
        },
        "train": fingerprint(solver.X_train, solver.y_train),
        "val": fingerprint(solver.X_val, solver.y_val),
    }
    plain: dict[str, Any] = json.loads(json.dumps(configuration, default=str))
    return plain


def _architecture(model: Sequential) -> dict[str, Any]:
    """Return what makes a model, but for its parameters."""
    before = model.preprocessing
    return {
        **model.config(),
        "seed": model.seed,
        "preprocessing": None if before is None else {"mean": checksum(before.mean), "std": checksum(before.std)},
    }


def _difference(theirs: Any, ours: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the first place in which two descriptions differ, and what is there."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        parts = [
            (f"{where}.{key}" if where else key, theirs.get(key), ours.get(key))
            for key in dict.fromkeys([*ours, *theirs])
        ]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        parts = [(f"{where}[{k}]", *pair) for k, pair in enumerate(zip(theirs, ours, strict=True))]
    else:
        return None if theirs == ours else (where, theirs, ours)
    return next((found for name, a, b in parts if (found := _difference(a, b, name))), None)


def _streams(solver: "Solver") -> dict[str, RandomStream]:
    """Return the streams that are drawn from when their numbers are used; the sampler may draw ahead."""
    streams = {name: stream for name, stream in solver.streams.items() if name != "batches"}
    return streams | {"masks": solver.model.mask_stream} if hasattr(solver.model, "mask_stream") else streams


def _restore_all(solver: "Solver", states: Mapping[str, Any], sampler: Any) -> None:
    """Restore all streams or none."""
    streams = _streams(solver)
    before = {name: state_of(stream) for name, stream in streams.items()}, solver.sampler.state
    try:
        for name, stream in streams.items():
            restore(stream, states[name])
        solver.sampler.state = sampler
    except DESCRIPTION_ERRORS:
        for name, stream in streams.items():
            restore(stream, before[0][name])
        solver.sampler.state = before[1]
        raise


def _is_array(value: Any) -> bool:
    return bool(array_api_compat.is_array_api_obj(value)) and not isinstance(value, np.generic)


def _entry(a: Any) -> ArraySpec:
    return ArraySpec(tuple(a.shape), to_host(a).dtype.name)


def _plain(value: Any) -> Any:
    """Return a number or word for JSON; NumPy's numbers remember their dtype, on which results depend."""
    if isinstance(value, np.number | np.bool):
        return {"dtype": value.dtype.name, "value": value.item()}
    plain = to_host(value).item() if _is_array(value) else value
    if not isinstance(plain, str | int | float | None) and not (
        isinstance(plain, list) and all(isinstance(part, str | int | float | None) for part in plain)
    ):
        raise CheckpointError(
            f"the update rule remembers {printable(repr(plain))}, for which a checkpoint has no place; "
            "expected arrays, numbers, texts or lists of those"
        )
    return plain


def _value(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    if plain["dtype"] not in DTYPES.values() or not isinstance(plain["value"], int | float):
        raise ValueError(f"a number {plain}")
    return np.dtype(plain["dtype"]).type(plain["value"])


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


class CheckpointFolder:
    """A folder of checkpoints of one training, of which the newest are kept.

    Parameters
    ----------
    path : str or path
        It is made when something is saved.
    keep : int
        How many to keep.

    Examples
    --------
    >>> CheckpointFolder("nowhere").newest() is None
    True
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        self.path, self.keep = Path(path), keep

    def files(self) -> list[Path]:
        """Return the checkpoints, the oldest first."""
        return sorted(self.path.glob("iteration-*.safetensors"))

    def save(self, solver: "Solver") -> Path:
        """Write a checkpoint, read it back, and only then remove those that are not to be kept.

        Raises
        ------
        CheckpointError, NonFiniteLossError, OSError
            As `Solver.save`, and if what was read is not what was written; nothing is removed then.
        """
        self.path.mkdir(exist_ok=True)
        path = self.path / f"iteration-{solver.iteration:09d}.safetensors"
        solver.save(path)
        ArrayFile(path, FILE_FORMAT)
        self.prune(path)
        return path

    def prune(self, newest: Path) -> None:
        """Remove all but `newest`, which is known to be whole, and those just before it that are to be kept."""
        older = [file for file in self.files() if file < newest]
        for file in self.files():
            if file != newest and file not in older[max(len(older) - self.keep + 1, 0) :]:
                file.unlink()

    def newest(self, report: Callable[[str], object] = print) -> Path | None:
        """Return the newest checkpoint that is whole, or None; `report` is told of those that are not."""
        for path in reversed(self.files()):
            try:
                ArrayFile(path, FILE_FORMAT)
            except CheckpointError as error:
                report(f"passing over a checkpoint: {error}")
            else:
                return path
        return None
