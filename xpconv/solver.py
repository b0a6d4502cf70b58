"""The training loop.

The host runs ahead of the device: losses stay there until they are printed, checked or saved.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import copy
from typing import Any

import numpy as np

from xpconv.backend import Array, backend_of, to_host
from xpconv.data import Batches, Dataset
from xpconv.errors import ArgumentError, ArgumentTypeError, NonFiniteLossError
from xpconv.optim import UPDATE_RULES
from xpconv.progress import Progress, show_progress
from xpconv.random import Rng, Stream, spawn

__all__ = ["Solver"]


class Solver:
    """Train a model by minibatches, checking its accuracy once an epoch.

    Parameters
    ----------
    model : Sequential, or any object with ``params`` and ``loss``
        ``loss(X)`` gives scores (N, C), ``loss(X, y)`` the loss and a dict of gradients, as `Sequential` does.
    data : mapping of str to array, or Dataset
        ``X_train`` (N, ...), ``y_train`` (N,), ``X_val``, ``y_val``: in host memory or on the model's device. Images
        may be uint8.
    update_rule : {"sgd", "sgd_momentum", "rmsprop", "adam"} or callable
        A callable is a rule of your own, ``rule(w, dw, config) -> (next_w, config)``.
    optim_config : dict, optional
        Options of the update rule, such as ``learning_rate``.
    lr_decay : float
        The learning rate is multiplied by it after each epoch.
    batch_size, num_epochs : int
    num_train_samples, num_val_samples : int or None
        How many samples to draw for each check of the accuracy; None is all.
    print_every : int
        Iterations between two losses shown.
    verbose : bool
        Whether to show anything: a live bar on a terminal, lines elsewhere.
    rng : None, int, Generator or RandomState
        Determines the minibatches, the samples of checks and the dropout masks, each from a stream of its own.

    Attributes
    ----------
    loss_history : list of float
        One for each iteration.
    train_acc_history, val_acc_history : list of float
        One for each check: after the first iteration and after each epoch.
    best_val_acc : float
    best_params, best_state : dict of str to array
        Copies from the check with the best validation accuracy; the model has them when training ends.
    epoch, iteration : int
        How many are done.
    interrupted : bool
        Whether Ctrl-C ended the training.

    Raises
    ------
    ArgumentError
        If an option or the data cannot be used; data is checked once, here.

    Examples
    --------
    >>> from xpconv.data import load_digits
    >>> from xpconv.models import TwoLayerNet
    >>> digits = load_digits()
    >>> net = TwoLayerNet(input_dim=64, hidden_dim=50, weight_scale=0.05, rng=0)
    >>> solver = Solver(net, digits, update_rule="adam", num_epochs=4, verbose=False, rng=0)
    >>> solver.train()
    >>> solver.best_val_acc > 0.8
    True
    """

    def __init__(self, model: Any, data: Mapping[str, Array] | Dataset, *,
                 update_rule: str | Callable[..., Any] = "sgd", optim_config: Mapping[str, Any] | None = None,
                 lr_decay: float = 1.0, batch_size: int = 100, num_epochs: int = 10,
                 num_train_samples: int | None = 1000, num_val_samples: int | None = None, print_every: int = 10,
                 verbose: bool = True, rng: Rng = None) -> None:
        for name, value in {"batch_size": batch_size, "num_epochs": num_epochs, "print_every": print_every}.items():
            if not isinstance(value, int | np.integer) or value < 1:
                raise ArgumentError(f"{name} is {value!r}; expected an int, 1 or more")
        if isinstance(update_rule, str) and update_rule not in UPDATE_RULES:
            raise ArgumentError(f"update_rule is {update_rule!r}; expected one of {', '.join(UPDATE_RULES)} "
                                "or a function rule(w, dw, config)")
        self.model = model
        self.update_rule, self.optim_config, self.lr_decay = update_rule, dict(optim_config or {}), lr_decay
        self.batch_size, self.num_epochs = int(batch_size), int(num_epochs)
        self.num_train_samples, self.num_val_samples = num_train_samples, num_val_samples
        self.print_every, self.verbose = int(print_every), verbose
        self.backend = getattr(model, "backend", None) or backend_of(next(iter(model.params.values())))
        splits = data.splits() if isinstance(data, Dataset) else data
        self.X_train, self.y_train = self._checked(splits, "train")
        self.X_val, self.y_val = self._checked(splits, "val")
        self._batch_stream, self._check_stream = self._streams(rng)
        self._ahead = 2
        self._reset()

    def _streams(self, rng: Rng) -> tuple[Stream, Stream]:
        """Return the streams of minibatches and of checks, and give the model one for its masks."""
        batches, checks, masks = spawn(rng, 3)
        if hasattr(self.model, "mask_stream"):
            self.model.mask_stream = masks
        return batches, checks

    def _checked(self, splits: Mapping[str, Array], part: str) -> tuple[Array, Array]:
        """Return one part of the data after the checks that later would cost waits."""
        for name in (f"X_{part}", f"y_{part}"):
            if name not in splits:
                raise ArgumentError(f"data has no {name!r}; expected X_train, y_train, X_val and y_val")
        X, y = (a if hasattr(a, "shape") else np.asarray(a) for a in (splits[f"X_{part}"], splits[f"y_{part}"]))
        if X.shape[0] == 0 or tuple(y.shape) != (X.shape[0],):
            raise ArgumentError(f"X_{part} has shape {tuple(X.shape)} and y_{part} {tuple(y.shape)}; expected "
                                "(N, ...) and (N,) with N at least 1")
        labels = to_host(y)
        if labels.dtype.kind not in "iu":
            raise ArgumentTypeError(f"y_{part} has dtype {labels.dtype}; expected integer labels")
        classes = getattr(self.model, "num_classes", None)
        if labels.min() < 0 or (isinstance(classes, int) and labels.max() >= classes):
            limit = f"0 to {classes - 1}" if isinstance(classes, int) else "0 or more"
            raise ArgumentError(f"y_{part} has labels from {labels.min()} to {labels.max()}; expected {limit}")
        xp = backend_of(X).xp
        if xp.isdtype(X.dtype, "real floating") and not bool(to_host(xp.all(xp.isfinite(X)))):
            first = int(np.argmin(np.isfinite(to_host(X)).reshape(X.shape[0], -1).all(axis=1)))
            raise ArgumentError(f"X_{part}[{first}] holds NaN or infinite values; expected finite images: "
                                "drop or mend such samples first")
        return X, y

    def _reset(self) -> None:
        self.epoch = self.iteration = 0
        self.interrupted = False
        self.loss_history: list[float] = []
        self.train_acc_history: list[float] = []
        self.val_acc_history: list[float] = []
        self.best_val_acc = 0.0
        self.best_params: dict[str, Array] = {}
        self.best_state: dict[str, Array] = {}
        self.optim_configs = {name: copy(self.optim_config) for name in self.model.params}
        self._unread: list[Any] = []

    def train(self) -> None:
        """Train for `num_epochs` epochs and leave the best parameters found in the model.

        Ctrl-C ends training early, with best parameters and histories intact.

        Raises
        ------
        NonFiniteLossError
            If the loss became NaN or infinite; the text names the first such iteration.
        """
        per_epoch = max(self.y_train.shape[0] // self.batch_size, 1)
        total = self.num_epochs * per_epoch
        try:
            with (Batches(self.X_train, self.y_train, self._draw, self.backend, ahead=self._ahead) as batches,
                  self._show(total) as progress):
                for t in range(total):
                    self._step(*next(batches))
                    progress.advance()
                    if self.verbose and t % self.print_every == 0:
                        self._read_losses()
                        loss = self.loss_history[-1]
                        progress.loss(f"(Iteration {t + 1} / {total}) loss: {loss:f}", loss)
                    epoch_end = (t + 1) % per_epoch == 0
                    if epoch_end:
                        self._end_epoch()
                    if t == 0 or epoch_end:
                        self._check(progress)
        except KeyboardInterrupt:
            self.interrupted = True
            if self.verbose:
                print(f"interrupted after iteration {self.iteration}; keeping the best parameters so far", flush=True)
        finally:
            if self.best_params:
                self.model.params = self.best_params
                if self.best_state:
                    self.model.state = self.best_state
        self._read_losses()

    def _show(self, total: int) -> AbstractContextManager[Progress]:
        """Return how to show a run of `total` iterations."""
        return show_progress(total, self.batch_size, verbose=self.verbose)

    def _draw(self) -> np.ndarray:
        """Draw the indices of the next minibatch."""
        return self._batch_stream.choice(self.X_train.shape[0], self.batch_size)

    def _step(self, X: Array, y: Array) -> None:
        """Compute one minibatch's gradients and update every parameter."""
        loss, grads = self.model.loss(X, y)
        self._unread.append(loss)
        for name, w in self.model.params.items():
            config = self.optim_configs[name]
            if isinstance(self.update_rule, str):
                UPDATE_RULES[self.update_rule](w, grads[name], config, in_place=True)
            else:
                self.model.params[name], self.optim_configs[name] = self.update_rule(w, grads[name], config)
        self.iteration += 1

    def _end_epoch(self) -> None:
        self.epoch += 1
        for config in self.optim_configs.values():
            if "learning_rate" in config:
                config["learning_rate"] *= self.lr_decay

    def _check(self, progress: Progress) -> None:
        """Measure both accuracies and keep the parameters if they are the best so far."""
        self._read_losses()
        train_acc = self.check_accuracy(self.X_train, self.y_train, num_samples=self.num_train_samples)
        val_acc = self.check_accuracy(self.X_val, self.y_val, num_samples=self.num_val_samples)
        self.train_acc_history.append(train_acc)
        self.val_acc_history.append(val_acc)
        self._save_checkpoint(progress)
        progress.line(f"(Epoch {self.epoch} / {self.num_epochs}) train acc: {train_acc:f}; val_acc: {val_acc:f}")
        if val_acc > self.best_val_acc or not self.best_params:
            self.best_val_acc = val_acc
            self.best_params = _copies(self.model.params)
            self.best_state = _copies(getattr(self.model, "state", {}))

    def _save_checkpoint(self, progress: Progress) -> None:
        """Save the model at a check of the accuracy; the course's Solver does."""

    def _read_losses(self) -> None:
        """Wait for the losses on the device, append them to the history and stop at the first bad one."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        if isinstance(unread[0], float | np.generic | np.ndarray):
            values = np.asarray(unread)
        else:
            xp = backend_of(unread[0]).xp
            values = to_host(xp.stack(unread))
        self.loss_history += [float(value) for value in values]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            iteration = len(self.loss_history) - len(values) + int(bad[0]) + 1
            rates = {config.get("learning_rate") for config in self.optim_configs.values()}
            raise NonFiniteLossError(
                f"the loss became {values[bad[0]]} at iteration {iteration}: take a smaller learning_rate (it is "
                f"{', '.join(str(rate) for rate in rates)}), a smaller weight_scale, or images of a smaller range")

    def check_accuracy(self, X: Array, y: Array, num_samples: int | None = None, batch_size: int = 100) -> float:
        """Return the share of samples whose highest score is their label's.

        Parameters
        ----------
        X : array (N, ...)
        y : array (N,) of integers
        num_samples : int, optional
            Draw so many samples instead of taking all.
        batch_size : int
            How many to compute at once.

        Returns
        -------
        float
            0 to 1.
        """
        N = X.shape[0]
        if num_samples is not None and num_samples < N:
            chosen = self._check_stream.choice(N, num_samples)
            X, y = _take(X, chosen), _take(y, chosen)
            N = num_samples
        xp, correct = self.backend.xp, None
        for start in range(0, N, batch_size):
            scores = self.model.loss(X[start:min(start + batch_size, N), ...])
            labels = self.backend.asarray(y[start:min(start + batch_size, N)])
            hits = xp.sum(xp.astype(xp.argmax(scores, axis=1) == xp.astype(labels, xp.int64), xp.int64))
            correct = hits if correct is None else correct + hits
        return float(int(to_host(correct)) / N)


def _take(a: Array, indices: np.ndarray) -> Array:
    backend = backend_of(a)
    return backend.xp.take(a, backend.asarray(indices), axis=0)


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: backend_of(a).xp.asarray(a, copy=True) for name, a in arrays.items()}
