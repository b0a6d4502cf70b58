"""The assignment's Solver: `xpconv.Solver` with the course's order of random draws and its printed lines."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import nan
from typing import Any, Self

import numpy as np
from safetensors.numpy import save

from xpconv.backend import Array, to_host
from xpconv.cs231n import optim
from xpconv.cs231n._adapt import plain_number
from xpconv.data import Batches
from xpconv.errors import ArgumentError, NonFiniteLossError
from xpconv.io._atomic import atomic_path
from xpconv.io.model import save_model
from xpconv.nn import Sequential
from xpconv.random import RandomStream, Rng, as_random_stream
from xpconv.training import metrics, solver
from xpconv.training._progress import Progress
from xpconv.training.optim import UPDATE_RULES, check_rule

__all__ = ["Solver"]

OPTIONS = (
    "update_rule",
    "optim_config",
    "lr_decay",
    "batch_size",
    "num_epochs",
    "num_train_samples",
    "num_val_samples",
    "print_every",
    "verbose",
)


COUNTS = ("batch_size", "num_epochs", "num_train_samples", "num_val_samples", "print_every")


class Solver(solver.Solver):
    """Train a model by minibatches, checking its accuracy once an epoch.

    All draws come from NumPy's global state, in the course's order: the indices of each minibatch, and those of the
    samples of each accuracy check. A loss that is not finite only warns, as a search for a learning rate needs.

    Parameters
    ----------
    model : one of the assignment's nets, or any object with ``params`` and ``loss``
        ``loss(X)`` gives scores (N, C), ``loss(X, y)`` the loss and a dict of gradients.
    data : dict of str to array
        ``X_train, y_train, X_val, y_val``.
    checkpoint_name : str, optional
        Save the model at each check of the accuracy, as ``<checkpoint_name>_epoch_<epoch>.safetensors``: a net of
        xpconv as `xpconv.load_model` reads it, the ``params`` of another object under their names.
    **kwargs
        ``update_rule`` ('sgd'; a function, or its name in `xpconv.cs231n.optim`), ``optim_config``, ``lr_decay`` (1.0),
        ``batch_size`` (100), ``num_epochs`` (10), ``num_train_samples`` (1000), ``num_val_samples`` (None),
        ``print_every`` (10), ``verbose`` (True), as `xpconv.Solver` says, which also describes the attributes.

    Raises
    ------
    ArgumentError
        A ValueError: for an unknown option or update rule, or data that cannot be used.

    Examples
    --------
    >>> from xpconv.cs231n.classifiers.fc_net import TwoLayerNet
    >>> np.random.seed(0)
    >>> X, y = np.random.randn(40, 3), np.arange(40) % 2
    >>> data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    >>> Solver(
    ...     TwoLayerNet(3, 5, 2),
    ...     data,
    ...     num_epochs=1,
    ...     batch_size=20,
    ...     print_every=1,
    ...     num_train_samples=5,
    ... ).train()
    (Iteration 1 / 2) loss: 0.693147
    (Epoch 0 / 1) train acc: ...; val_acc: ...
    (Iteration 2 / 2) loss: 0.693...
    (Epoch 1 / 1) train acc: ...; val_acc: ...
    """

    def __init__(
        self, model: Any, data: Mapping[str, Array], *, checkpoint_name: str | None = None, **kwargs: Any
    ) -> None:
        extra = ", ".join(f'"{name}"' for name in kwargs if name not in OPTIONS)
        if extra:
            raise ArgumentError(f"Unrecognized arguments {extra}; expected {', '.join(OPTIONS)}, checkpoint_name")
        options = {name: _plain_option(name, value) for name, value in kwargs.items()}
        options["optim_config"] = {
            name: plain_number(value) for name, value in (kwargs.get("optim_config") or {}).items()
        }
        super().__init__(model, data, **{**options, "update_rule": _find_rule(kwargs.get("update_rule", "sgd"))})
        check_rule(getattr(self.update_rule, "fast_name", self.update_rule), self.optim_config)
        self.checkpoint_name = checkpoint_name
        self._prefetch = 0  # fetching minibatches early would change the order of the draws

    def _limit_batch_size(self, num_images: int) -> None:
        """Keep the batch size: the course draws minibatches of any size, with replacement."""

    def _warn_of_high_losses(self) -> None:
        """Do not warn: notebooks train for a few iterations, and search for learning rates."""

    def _spawn_streams(self, rng: Rng) -> dict[str, RandomStream]:
        return dict.fromkeys(("batches", "checks"), as_random_stream(None))

    def _show_progress(self, total: int, done: int) -> AbstractContextManager[Progress]:
        return nullcontext(Progress()) if self.verbose else super()._show_progress(total, done)

    def train(self, each_iteration: Callable[[Self], object] | None = None) -> None:
        """Train as `xpconv.Solver.train` does, with the options that the notebook has assigned meanwhile."""
        for name in ("lr_decay", *COUNTS):
            setattr(self, name, _plain_option(name, getattr(self, name)))
        super().train(each_iteration)

    def _start_captured_steps(self, batches: Batches, progress: Progress) -> None:
        """Capture no steps, since notebooks replace methods of the Solver."""

    def _take_step(self, batches: Batches, need_images: bool) -> Array:
        for config in self.optim_configs.values():
            if "learning_rate" in config:
                config["learning_rate"] = plain_number(config["learning_rate"])
        before = self.iteration
        self._minibatch: Array | None = None
        self._step()
        if self.iteration == before:  # a subclass has a step of its own, which knows no iterations
            self.iteration += 1
        return self.X_train[: self.batch_size] if self._minibatch is None else self._minibatch

    def _step(self) -> None:  # type: ignore[override]  # notebooks call and override it as the course defines it
        """Draw a minibatch and update every parameter."""
        for name, w in self.model.params.items():
            if isinstance(w, np.ndarray) and not np.issubdtype(w.dtype, np.floating):
                self.model.params[name] = w.astype(np.float64)  # an update in place would round to integers
        if self._batches is not None:
            X, y = next(self._batches)
            self._minibatch = X
            super()._step(X, y)
            return
        with Batches(self.X_train, self.y_train, self.sampler, self.backend, prefetch=0) as batches:
            super()._step(*next(batches))
        self._read_losses()

    def _update(self, grads: Mapping[str, Array], where: Array | bool) -> None:
        fast = UPDATE_RULES.get(getattr(self.update_rule, "fast_name", ""))
        if fast is None:
            super()._update(grads, where)
            return
        for name, grad in grads.items():
            fast(self.model.params[name], grad, self.optim_configs[name], in_place=True)

    def _check_finite(self, loss: Any, grads: Mapping[str, Array]) -> tuple[Any, bool]:
        """Let a loss that is not finite pass; `_read_losses` warns of it."""
        return loss, True

    def _memory_to_check(self) -> dict[str, Array]:
        """Return no arrays, so that a search for the learning rate continues after overflows."""
        return {}

    def _read_losses(self) -> None:
        finite = bool(np.isfinite(self.loss_history).all())
        try:
            super()._read_losses()
        except NonFiniteLossError as error:
            if finite:
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)

    def evaluate(self, X: Array, y: Array, num_samples: int | None = None, batch_size: int = 100) -> metrics.Evaluation:
        """Return the accuracy, by `check_accuracy`, which notebooks override; the loss is NaN."""
        return metrics.Evaluation(self.check_accuracy(X, y, num_samples, batch_size), nan)

    def _describe_check(self) -> str:
        return f"train acc: {self.train_acc_history[-1]:f}; val_acc: {self.val_acc_history[-1]:f}"

    def _save_checkpoint(self) -> None:
        if self.checkpoint_name is None:
            return
        path = f"{self.checkpoint_name}_epoch_{self.epoch}.safetensors"
        if self.verbose:
            Progress().line(f'Saving checkpoint to "{path}"')
        if isinstance(self.model, Sequential):
            save_model(self.model, path)
            return
        content = save({name: np.ascontiguousarray(to_host(value)) for name, value in self.model.params.items()})
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def _plain_option(name: str, value: Any) -> Any:
    """Return an array of one element as a number, and a count that is a whole float as an int."""
    value = plain_number(value)
    return int(value) if name in COUNTS and isinstance(value, float) and value.is_integer() else value


def _find_rule(update_rule: Any) -> Any:
    """Return the update rule of this name, which may be one that a notebook assigned to `optim`."""
    rule = getattr(optim, update_rule, None) if isinstance(update_rule, str) else update_rule
    if not callable(rule):
        raise ArgumentError(f'Invalid update_rule "{update_rule}"; expected one of sgd, sgd_momentum, rmsprop, adam')
    return rule
