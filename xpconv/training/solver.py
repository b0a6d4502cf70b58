"""The training loop.

The host runs ahead of the device: losses stay there until they are printed, checked or saved.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import copy
from typing import Any, Self

from xpconv._validation import check_choice, check_count
from xpconv.backend import Array, backend_of, on_its_device, to_host
from xpconv.data import Batches, Dataset
from xpconv.data._checks import check_split
from xpconv.data.sampling import SAMPLERS
from xpconv.errors import NonFiniteLossError
from xpconv.random import RandomStream, Rng, draw_seed, spawn
from xpconv.training import checkpoint, metrics
from xpconv.training._monitor import TrainingMonitor, copy_arrays
from xpconv.training._nonfinite import check_finite, describe_nonfinite, read_rows, restore_unless
from xpconv.training._progress import Progress, show_progress
from xpconv.training._signals import postpone_signals
from xpconv.training.optim import UPDATE_RULES, check_rule
from xpconv.training.preflight import check_training
from xpconv.training.schedules import Schedule, check_schedule, decay

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
    schedule : callable, optional
        ``schedule(step) -> factor`` of the learning rate, in place of `lr_decay`; see `xpconv.training.schedules`.
    batch_size, num_epochs : int
    sampling : {"replacement", "epoch"}
        Draw each minibatch from all samples, as the course does, or each sample once an epoch.
    patience : int, optional
        Stop after so many epochs without a better validation accuracy.
    num_train_samples, num_val_samples : int or None
        How many samples to draw for each check of the accuracy; None is all.
    print_every : int
        Iterations between two losses shown.
    verbose : bool
        Whether to show anything: a live bar on a terminal, lines elsewhere.
    rng : None, int, Generator or RandomState
        Determines the minibatches, the samples of checks, the dropout masks and the changes of images, each from a
        stream of its own.
    augment : callable, optional
        ``augment(X, seed) -> X`` changes the images of a minibatch on the device, as `xpconv.data.augment` has them;
        the seed is a new random number each time.
    on_nonfinite : {"stop", "skip"}
        What to do about a loss or a gradient with NaN or infinite values: raise an error, or pass over that minibatch
        and leave everything as it was, which the device decides without waiting.
    preflight : bool
        Whether to do the checks of `xpconv.training.preflight.check_training` before the first iteration.

    Attributes
    ----------
    loss_history, learning_rate_history : list of float
        One for each iteration.
    train_acc_history, val_acc_history : list of float
        One for each check: after the first iteration and after each epoch.
    health_history : dict of str to list of float
        For each check, how far its step moved the weights W1, relative to their norm (``update_ratio_W1``, and so on),
        and, for a Sequential, the share of each ReLU's units that were 0 for its whole minibatch (``dead_relu_1``).
    best_val_acc : float
    best_params, best_state : dict of str to array
        Copies from the check with the best validation accuracy; the model has them when training ends.
    epoch, iteration : int
        How many are done.
    skipped : int
        Iterations passed over, as `on_nonfinite` says.
    interrupted : bool
        Whether Ctrl-C ended the training.
    resumable : bool
        Whether it can be saved: False after an error or a second Ctrl-C in the midst of an iteration.

    Raises
    ------
    ArgumentError
        If an option or the data cannot be used; data is checked once, here.

    Examples
    --------
    >>> from xpconv.data import load_digits
    >>> from xpconv.nn import TwoLayerNet
    >>> digits = load_digits()
    >>> net = TwoLayerNet(input_dim=64, hidden_dim=50, weight_scale=0.05, rng=0)
    >>> solver = Solver(net, digits, update_rule="adam", num_epochs=4, verbose=False, rng=0)
    >>> solver.train()
    >>> solver.best_val_acc > 0.8
    True
    """

    def __init__(
        self,
        model: Any,
        data: Mapping[str, Array] | Dataset,
        *,
        update_rule: str | Callable[..., Any] = "sgd",
        optim_config: Mapping[str, Any] | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        print_every: int = 10,
        verbose: bool = True,
        rng: Rng = None,
        augment: Callable[[Array, int], Array] | None = None,
        on_nonfinite: str = "stop",
        schedule: Schedule | None = None,
        sampling: str = "replacement",
        patience: int | None = None,
        preflight: bool = False,
    ) -> None:
        optional = {"patience": patience, "num_train_samples": num_train_samples, "num_val_samples": num_val_samples}
        for name, value in optional.items():
            if value is not None:
                check_count(name, value)
        check_choice("on_nonfinite", on_nonfinite, ("stop", "skip"))
        check_choice("sampling", sampling, SAMPLERS)
        check_rule(update_rule, optim_config or {})
        check_schedule(schedule, lr_decay, optim_config or {})
        self.schedule, self.sampling, self.patience = schedule, sampling, patience
        self.model, self.augment, self.on_nonfinite, self.preflight = model, augment, on_nonfinite, preflight
        self.update_rule, self.optim_config, self.lr_decay = update_rule, dict(optim_config or {}), lr_decay
        self.batch_size, self.num_epochs = check_count("batch_size", batch_size), check_count("num_epochs", num_epochs)
        self.num_train_samples, self.num_val_samples = num_train_samples, num_val_samples
        self.print_every, self.verbose = check_count("print_every", print_every), verbose
        self.backend = getattr(model, "backend", None) or backend_of(next(iter(model.params.values())))
        splits, classes = data.splits() if isinstance(data, Dataset) else data, getattr(model, "num_classes", None)
        self.X_train, self.y_train = check_split(splits, "train", classes)
        self.X_val, self.y_val = check_split(splits, "val", classes, self.X_train.shape[1:])
        self.streams = self._spawn_streams(rng)
        self.sampler = SAMPLERS[sampling](self.streams["batches"], self.X_train.shape[0], self.batch_size)
        self._prefetch = 2
        self._reset()

    def _spawn_streams(self, rng: Rng) -> dict[str, RandomStream]:
        """Return the streams by what they are for, and give the model the one for its masks."""
        streams: dict[str, RandomStream] = dict(
            zip(("batches", "checks", "masks", "augment"), spawn(rng, 4), strict=True)
        )
        if hasattr(self.model, "mask_stream"):
            self.model.mask_stream = streams["masks"]
        return streams

    def _reset(self) -> None:
        self.epoch = self.iteration = self.skipped = self.round_start = self.round_checks = 0
        self.interrupted, self.resumable, self._finished = False, True, False
        self._swapped_in: Any = None  # the best parameters, as `train` put them into the model at its end
        self._swapped_out: tuple[Any, Any] | None = None  # the parameters and state that they replaced
        self._batches: Batches | None = None
        self.loss_history, self.learning_rate_history = list[float](), list[float]()
        self.train_acc_history, self.val_acc_history = list[float](), list[float]()
        self.health_history: dict[str, list[float]] = {}
        self.best_val_acc = 0.0
        self.best_params: dict[str, Array] = {}
        self.best_state: dict[str, Array] = {}
        self.optim_configs = {name: copy(self.optim_config) for name in self.model.params}
        self._pending_rows: list[Any] = []

    @on_its_device
    def train(self, each_iteration: Callable[[Self], object] | None = None) -> None:
        """Train for `num_epochs` epochs and leave the best parameters found in the model.

        Training that was interrupted, or resumed from a checkpoint, goes on with what was left of its epochs. Ctrl-C
        ends it after the iteration, with best parameters and histories intact; a second one ends it at once.

        Parameters
        ----------
        each_iteration : callable, optional
            Called with the Solver after each iteration, and so the place to `save` it.

        Raises
        ------
        NonFiniteLossError
            If the loss or a gradient became NaN or infinite; the text names the first such iteration.
        PreflightError
            If a check before training failed.
        """
        if self.preflight and self.iteration == 0:
            check_training(
                self.model,
                self.X_train,
                self.y_train,
                schedule=self.schedule,
                batch_size=self.batch_size,
                update_rule=self.update_rule,
                optim_config=self.optim_config,
                on_finding=print if self.verbose else None,
            )
        per_epoch = max(self.y_train.shape[0] // self.batch_size, 1)
        total = self.num_epochs * per_epoch
        self._begin()
        done = self.iteration - self.round_start
        try:
            with (
                postpone_signals() as postponed,
                Batches(self.X_train, self.y_train, self.sampler, self.backend, prefetch=self._prefetch) as batches,
                self._show_progress(total, done) as progress,
            ):
                self._batches = batches
                for t in range(done, total):
                    postponed.deliver()
                    accuracies = self.val_acc_history[self.round_checks :]
                    if self.patience is not None and metrics.checks_since_best(accuracies) >= self.patience:
                        break
                    self.resumable, epoch_end = False, (t + 1) % per_epoch == 0
                    monitor = TrainingMonitor(self.model, self.backend) if t == 0 or epoch_end else None
                    X, y = self._augmented(*next(batches))
                    self._step(X, y)
                    rate = next(iter(self.optim_configs.values())).get("learning_rate", "nan")
                    self.learning_rate_history.append(float(rate))
                    progress.advance()
                    if self.verbose and t % self.print_every == 0:
                        self._read_losses()
                        loss = self.loss_history[-1]
                        progress.loss(f"(Iteration {t + 1} / {total}) loss: {loss:f}", loss)
                    if epoch_end:
                        self.epoch += 1
                        decay(self.optim_configs.values(), self.lr_decay)
                    if monitor is not None:
                        monitor.measure(X)
                        self._check_accuracies(progress)
                        monitor.append_to(self.health_history)
                    self.resumable = True
                    if each_iteration is not None:
                        each_iteration(self)
                else:
                    self._finished = True
        except KeyboardInterrupt:
            self.interrupted = True
            if self.verbose:
                print(f"interrupted after iteration {self.iteration}; keeping the best parameters so far", flush=True)
        finally:
            self._batches = None
            self._swapped_out = self.current()
            if self.best_params:
                self._swapped_in = self.model.params = copy_arrays(self.best_params)
                if self.best_state:
                    self.model.state = copy_arrays(self.best_state)
        self._read_losses()

    def _begin(self) -> None:
        """Go on from where training was; a complete one is another round, from the best parameters on."""
        if self._finished:
            self.round_start, self.round_checks = self.iteration, len(self.val_acc_history)
        else:
            self.model.params, state = self.current()
            if state:
                self.model.state = state
        self.interrupted = self._finished = False
        self._swapped_out = self._swapped_in = None

    def current(self) -> tuple[Any, Any]:
        """Return the parameters and the state of the last iteration, though the model may have the best ones now."""
        if self._swapped_out is not None and self.model.params is self._swapped_in:
            return self._swapped_out
        return self.model.params, getattr(self.model, "state", {})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the rest of the training depends on to one file, for `resume`.

        Those are the parameters, running statistics and best parameters, what the update rule remembers, the random
        streams, histories and counts, and the configuration.

        Parameters
        ----------
        path : str or path
            A safetensors file, written whole or not at all.

        Raises
        ------
        CheckpointError
            If training ended in the midst of an iteration, or has something in it that no file can hold.
        NonFiniteLossError
            If something of it is NaN or infinite; a file is never written after that.
        OSError
            If the file cannot be written; one that was there stays.

        Examples
        --------
        >>> import tempfile
        >>> from xpconv.data import load_digits
        >>> from xpconv.nn import TwoLayerNet
        >>> first, second = (Solver(TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=1, verbose=False, rng=0)
        ...                  for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first.train(lambda solver: solver.iteration == 7 and solver.save(f"{folder}/checkpoint.safetensors"))
        ...     second.resume(f"{folder}/checkpoint.safetensors")
        >>> second.iteration
        7
        >>> second.train()
        >>> second.loss_history == first.loss_history
        True
        """
        checkpoint.save(self, path)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take over everything from a file that `save` wrote; `train` then does what was left.

        The Solver must have been made as the one that was saved, and the model too; only the backend, `num_epochs`,
        `print_every`, `verbose` and `on_nonfinite` may differ.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or of a Solver that was made otherwise: the text names the first
            difference. The Solver is then as it was.
        """
        checkpoint.resume(self, path)

    def _show_progress(self, total: int, done: int) -> AbstractContextManager[Progress]:
        """Return how to show a run of `total` iterations."""
        return show_progress(total, self.batch_size, verbose=self.verbose, done=done)

    def _augmented(self, X: Array, y: Array) -> tuple[Array, Array]:
        return (X if self.augment is None else self.augment(X, draw_seed(self.streams["augment"]))), y

    def _step(self, X: Array, y: Array) -> None:
        """Compute one minibatch's gradients and update every parameter, unless they are not finite."""
        if self.schedule is not None:
            for config in self.optim_configs.values():
                config["learning_rate"] = self.optim_config["learning_rate"] * self.schedule(self.iteration)
        before = {**getattr(self.model, "state", {})}
        loss, grads = self.model.loss(X, y)
        self.iteration += 1
        good = self._record_loss(loss, grads)
        if good is False:
            if before:
                self.model.state = before
            self._read_losses()  # raises an error if that is what to do
            return
        where = None if good is True else good
        if where is not None and before:
            restore_unless(where, self.model.state, before)
        for name, w in self.model.params.items():
            config = self.optim_configs[name]
            if isinstance(self.update_rule, str):
                UPDATE_RULES[self.update_rule](w, grads[name], config, in_place=True, where=where)
            else:
                self.model.params[name], self.optim_configs[name] = self.update_rule(w, grads[name], config)

    def _record_loss(self, loss: Any, grads: Mapping[str, Array]) -> Any:
        """Note the loss, and return whether to take the step: True, False or a boolean on the device."""
        row, good = check_finite(
            loss, {name: grads[name] for name in self.model.params}, per_gradient=self.on_nonfinite == "stop"
        )
        if good is False:
            self._read_losses()  # those before, whose rows are shorter
        self._pending_rows.append(row)
        return good if isinstance(good, bool) or isinstance(self.update_rule, str) else bool(to_host(good))

    def _check_accuracies(self, progress: Progress) -> None:
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
            self.best_params = copy_arrays(self.model.params)
            self.best_state = copy_arrays(getattr(self.model, "state", {}))

    def _save_checkpoint(self, progress: Progress) -> None:
        """Save the model at a check of the accuracy; the course's Solver does."""

    def _read_losses(self) -> None:
        """Wait for the losses on the device, append them to the history and see to those that went wrong."""
        if not self._pending_rows:
            return
        losses, figures, bad = read_rows(self._pending_rows)
        self._pending_rows = []
        first = len(self.loss_history) + 1
        self.loss_history += losses.tolist()
        if not bad.size:
            return
        if self.on_nonfinite == "skip":
            self.skipped += int(bad.size)
            return
        self.resumable = False
        rates = ", ".join({str(config.get("learning_rate")) for config in self.optim_configs.values()})
        raise NonFiniteLossError(
            f"{describe_nonfinite(losses[bad[0]], first + int(bad[0]), self.model.params, figures[bad[0]])}: "
            f"take a smaller learning_rate (it is {rates}), a smaller weight_scale, or images of "
            "a smaller range"
        )

    @on_its_device
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
        some = num_samples is not None and num_samples < X.shape[0]
        rows = self.streams["checks"].choice(X.shape[0], num_samples) if some else None
        return metrics.accuracy(self.model, X, y, self.backend, batch_size, rows)
