"""The training loop.

The host runs ahead of the device: losses stay on the device until they are printed, checked or saved.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from math import ceil
from typing import Any, NoReturn, Self

import numpy as np

from xpconv._validation import check_choice, check_count, check_positive, is_integer
from xpconv.backend import Array, backend_of, copy_arrays, on_its_device, to_host
from xpconv.data import Batches, Dataset
from xpconv.data._checks import check_split
from xpconv.data.augment import Minibatch
from xpconv.data.rows import as_rows
from xpconv.data.sampling import SAMPLERS
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError, NonFiniteLossError, printable
from xpconv.io._safetensors import DESCRIPTION_ERRORS, ArraySpec, check_finite_arrays, check_specs
from xpconv.nn import Sequential
from xpconv.parallel import Communicator
from xpconv.random import RandomStream, Rng, draw_seed, restore, spawn, state_of
from xpconv.training import metrics
from xpconv.training._averages import Lookahead, WeightAverages
from xpconv.training._capture import CapturedSteps, captured_steps
from xpconv.training._clip import clip_gradients
from xpconv.training._loss_scale import LossScale
from xpconv.training._microbatches import MicroBatches
from xpconv.training._monitor import TrainingMonitor
from xpconv.training._nonfinite import (
    check_finite,
    choose,
    describe_nonfinite,
    finite_flags,
    read_rows,
    read_together,
)
from xpconv.training._progress import Progress, show_progress
from xpconv.training._signals import postpone_signals
from xpconv.training._state import (
    architecture,
    array_spec,
    describe_data,
    describe_difference,
    describe_other_data,
    first_difference,
    is_array,
    name_of,
    pack_memory,
    to_plain,
    unpack_memory,
)
from xpconv.training._workers import Workers
from xpconv.training.checkpoint import read_checkpoint, write_checkpoint
from xpconv.training.optim import UPDATE_RULES, check_rule, check_writeable, default_options, options_by_parameter
from xpconv.training.preflight import PreflightFinding, check_training
from xpconv.training.schedules import Schedule, check_schedule, decay

__all__ = ["Solver"]

STEP_HISTORIES = ("loss_history", "learning_rate_history")
CHECK_HISTORIES = ("train_acc_history", "val_acc_history", "val_loss_history")
HISTORIES = (*STEP_HISTORIES, *CHECK_HISTORIES)
DATA = ("X_train", "y_train", "X_val", "y_val")
CONFIGURATION = (  # options in which a training and its continuation agree, besides those that are not plain data
    "lr_decay",
    "batch_size",
    "microbatches",
    "norm_sync",
    "num_train_samples",
    "num_val_samples",
    "sampling",
    "patience",
    "patience_on",
    "clip_norm",
    "check_every",
)
COUNTS = ("epoch", "iteration", "skipped", "round_start", "round_checks")


class Solver:
    """Train a model on minibatches, and check its accuracy and validation loss after each epoch.

    The parameters are in this order:

    ==============  ===================================================================================================
    subject         parameters
    ==============  ===================================================================================================
    model and data  `model`, `data`, `augment`, `batch_size`, `sampling`
    steps           `num_epochs`, `check_every`, `patience`, `patience_on`, `microbatches`, `norm_sync`, `communicator`
    rates           `update_rule`, `optim_config`, `param_options`, `lr_decay`, `schedule`
    regularisation  `clip_norm`, `ema`, `lookahead`
    output          `print_every`, `verbose`, `num_train_samples`, `num_val_samples`
    reliability     `rng`, `on_nonfinite`, `preflight`
    ==============  ===================================================================================================

    Parameters
    ----------
    model : Sequential, or any object with ``params`` and ``loss``
        ``loss(X)`` returns scores (N, C), ``loss(X, y)`` the loss and a dict of gradients, as for `Sequential`.
    data : mapping of str to array, or Dataset
        ``X_train`` (N, ...), ``y_train`` (N,), ``X_val``, ``y_val``: in host memory or on the model's device. Images
        may be uint8. Images larger than memory may be memory-mapped arrays, `xpconv.data.rows.Rows`, or objects with a
        length and ``[indices]``, which are read by minibatches.
    augment : callable, optional
        ``augment(X, seed) -> X`` augments the images of a minibatch on the device; the seed is a new random number each
        time. If it has a true attribute ``takes_minibatch``, as those of `xpconv.data.augment.parse_augmentation` have,
        it is called as ``augment(minibatch, seed) -> minibatch`` and may change labels too: to integers (N,), or to
        probabilities (N, C).
    batch_size : int
        If it is above the number of training images, it is lowered to that, with a warning.
    sampling : {"replacement", "epoch"}
        Draw each minibatch from all samples, as the course does, or use each sample at most once per epoch.
    num_epochs : int or float
        With a fraction such as 9.9, the last epoch ends early.
    check_every : int
        Epochs between two checks of the accuracy; there is always one after the last epoch.
    patience : int, optional
        Stop after this number of checks after epochs without a better validation accuracy or loss.
    patience_on : {"accuracy", "loss"}
        What makes a check better than others: a higher validation accuracy or a lower validation loss. Of checks with
        the same accuracy, the one with the lower loss is the best.
    microbatches : int
        Cut each minibatch into this number of equal micro-batches, a power of two, and add their gradients. Without
        batch norm, or with ``norm_sync="ghost"``, this takes less memory. Needs a Sequential.
    norm_sync : {"whole", "ghost"}
        Whether batch norm takes its statistics over the whole minibatch or over each micro-batch (Hoffer et al., "Train
        longer, generalize better", 2017).
    communicator : Communicator, optional
        Connects the workers that train the model together, each of which makes a Solver with the same arguments; see
        `xpconv.parallel`. The number of workers must divide `microbatches` and does not change the results. Only rank 0
        shows progress.
    update_rule : {"sgd", "sgd_momentum", "sgd_nesterov", "rmsprop", "adam", "adamw", "lion", "muon"} or callable
        See `xpconv.training.optim`. A callable is a rule of your own, ``rule(w, dw, config) -> (next_w, config)``.
    optim_config : dict, optional
        Options of the update rule, such as ``learning_rate``.
    param_options : dict of str to dict, optional
        Options for the parameters whose names match a pattern, in place of those in `optim_config`. For example,
        ``{"gamma*|beta*|b*": {"weight_decay": 0}}`` leaves norms and biases out of weight decay. If several patterns
        match, options of later ones replace those of earlier ones.
    lr_decay : float
        Factor by which the learning rate is multiplied after each epoch.
    schedule : callable, optional
        ``schedule(step) -> factor`` of the learning rate, in place of `lr_decay`; see `xpconv.training.schedules`.
        A call of `train` counts steps from 0, unless it continues a training that was interrupted or resumed.
    clip_norm : float, optional
        Before each step, scale the gradients so that their L2 norm, over all parameters together, is at most this.
    ema : float, optional
        Keep an exponential moving average of the parameters and running statistics, with this decay above 0 and below
        1. It is used for accuracy checks, and as best parameters; training goes on from the latest parameters. Step t,
        counted from 0, decays it by ``min(ema, (1 + t) / (10 + t))``, so that it soon forgets the initial parameters.
    lookahead : int or Lookahead, optional
        After this number of steps (5 in the paper), move slow weights half-way to the parameters, which then go on from
        there (Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019). The slow weights are used for
        accuracy checks, and as best parameters, unless `ema` is given too. A `Lookahead` can move them by other shares.
    print_every : int
        Iterations between two printed losses.
    verbose : bool
        Whether to show progress: a live bar on a terminal, a bar and curves in Jupyter, lines elsewhere.
    num_train_samples, num_val_samples : int or None
        Number of samples to draw for each check of the accuracy; None uses all.
    rng : None, int, Generator or RandomState
        Determines the minibatches, the samples for accuracy checks, the seeds of dropout and other stochastic layers,
        and the augmentation, each from a stream of its own.
    on_nonfinite : {"stop", "skip"}
        What to do if a loss or a gradient has NaN or infinite values: raise an error, or skip that minibatch and
        change nothing. On a device, the host does not wait for the check.
    preflight : bool
        Whether to run `xpconv.training.preflight.check_training` before the first iteration.

    Attributes
    ----------
    loss_history, learning_rate_history : list of float
        One value per iteration.
    train_acc_history, val_acc_history : list of float
        One value per check: after the first iteration and after each epoch, or after those that `check_every` chooses.
    val_loss_history : list of float
        Mean cross-entropy of the validation samples per check, without the penalty or label smoothing.
    health_history : dict of str to list of float
        Per check, the norm of the last update of W1 over the norm of W1 (``update_ratio_W1``, and so on; NaN if W1
        is frozen), and, for a Sequential, the fraction of each ReLU's units that were 0 for the whole minibatch
        (``dead_relu_1``).
    best_val_acc : float
        Validation accuracy of the best check.
    best_params, best_state : dict of str to array
        Copies from the best check, as `patience_on` says; `train` gives them to the model at its end. With `ema` or
        `lookahead` these are averages.
    epoch, iteration : int
        Number of completed epochs and iterations.
    skipped : int
        Number of iterations skipped because of `on_nonfinite`.
    interrupted : bool
        Whether Ctrl-C ended the training.
    resumable : bool
        Whether the training can be saved: False after an error or a second Ctrl-C in the middle of an iteration.

    Raises
    ------
    ArgumentError
        If an option or the data cannot be used. Data is checked only here, not during training.

    Examples
    --------
    >>> from xpconv.data import load_digits
    >>> from xpconv.nn import TwoLayerNet
    >>> digits = load_digits()
    >>> net = TwoLayerNet(input_dim=64, hidden_dim=50, weight_scale=0.05, rng=0)
    >>> solver = Solver(
    ...     net, digits, update_rule="adam", num_epochs=4, verbose=False, rng=0
    ... )
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
        param_options: Mapping[str, Mapping[str, Any]] | None = None,
        clip_norm: float | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        microbatches: int = 1,
        norm_sync: str = "whole",
        num_epochs: float = 10,
        check_every: int = 1,
        num_train_samples: int | None = 1000,
        num_val_samples: int | None = None,
        print_every: int = 10,
        verbose: bool = True,
        rng: Rng = None,
        augment: Callable[[Any, int], Any] | None = None,
        on_nonfinite: str = "stop",
        schedule: Schedule | None = None,
        sampling: str = "replacement",
        patience: int | None = None,
        patience_on: str = "accuracy",
        ema: float | None = None,
        lookahead: int | Lookahead | None = None,
        preflight: bool = False,
        communicator: Communicator | None = None,
    ) -> None:
        self.update_rule, self.optim_config, self.lr_decay = update_rule, dict(optim_config or {}), lr_decay
        self.schedule = schedule
        check_rule(update_rule, self.optim_config)
        self._own_options = options_by_parameter(model.params, update_rule, param_options)
        self.param_options = dict(param_options or {})
        self.clip_norm = None if clip_norm is None else check_positive("clip_norm", clip_norm)
        check_schedule(schedule, lr_decay, self.optim_config)
        self.batch_size = check_count("batch_size", batch_size)
        self.num_epochs = _epochs(num_epochs)
        self.check_every = check_count("check_every", check_every)
        self.patience = _optional_count("patience", patience)
        self.num_train_samples = _optional_count("num_train_samples", num_train_samples)
        self.num_val_samples = _optional_count("num_val_samples", num_val_samples)
        self.print_every = check_count("print_every", print_every)
        check_choice("patience_on", patience_on, ("accuracy", "loss"))
        check_choice("sampling", sampling, SAMPLERS)
        check_choice("on_nonfinite", on_nonfinite, ("stop", "skip"))
        self.patience_on, self.sampling, self.on_nonfinite = patience_on, sampling, on_nonfinite
        if augment is not None and not callable(augment):
            raise ArgumentTypeError(
                f"augment is {augment!r}; expected a function, such as that which "
                "xpconv.data.augment.parse_augmentation('crop-flip') returns"
            )
        self.augment, self.preflight = augment, preflight

        self.model = model
        self.backend = getattr(model, "backend", None) or backend_of(next(iter(model.params.values())))
        splits, classes = data.splits() if isinstance(data, Dataset) else data, getattr(model, "num_classes", None)
        self.X_train, self.y_train = check_split(splits, "train", classes)
        self.X_val, self.y_val = check_split(splits, "val", classes, self.X_train.shape[1:])
        self._limit_batch_size(self.X_train.shape[0])
        self._microbatches = MicroBatches(model, microbatches, norm_sync, self.batch_size, communicator)
        self.communicator = self._microbatches.communicator
        self._workers, self.verbose = Workers(self.communicator), verbose and self.communicator.rank == 0
        self.microbatches, self.norm_sync = self._microbatches.count, norm_sync

        self.streams = self._spawn_streams(rng)
        self.sampler = SAMPLERS[sampling](self.streams["batches"], self.X_train.shape[0], self.batch_size)
        self._averages = WeightAverages(ema, lookahead)
        self._prefetch = 2
        Solver._reset(self)  # Set private attributes even if a subclass overrides `_reset`.
        self._described: tuple[tuple[Array, ...], dict[str, Any]] | None = None  # the data and its descriptions
        self._reset()

    def _limit_batch_size(self, num_images: int) -> None:
        """Lower the batch size to the number of training images, with a warning."""
        if self.batch_size > num_images:
            warnings.warn(
                f"batch_size is {self.batch_size}, but there are {num_images} training images: "
                f"taking a batch_size of {num_images}",
                stacklevel=3,
            )
            self.batch_size = num_images

    def _spawn_streams(self, rng: Rng) -> dict[str, RandomStream]:
        """Return an independent stream for each use of random numbers, and give the model its own."""
        names = ("batches", "checks", "layers", "augment")
        streams: dict[str, RandomStream] = dict(zip(names, spawn(rng, 4), strict=True))
        if hasattr(self.model, "seed_stream"):
            self.model.seed_stream = streams["layers"]
        return streams

    def _reset(self) -> None:
        self.epoch = self.iteration = self.skipped = 0
        self.round_start = self.round_checks = 0  # iterations and checks before this round of `num_epochs` epochs
        self.interrupted, self.resumable, self._finished = False, True, False
        # The best parameters, if the model has them, and the latest parameters and state, which they replaced.
        self._replaced: tuple[Any, Any] = None, None
        self._batches: Batches | None = None
        self._captured: CapturedSteps | None = None
        self.loss_history, self.learning_rate_history = list[float](), list[float]()
        self.train_acc_history, self.val_acc_history = list[float](), list[float]()
        self.val_loss_history: list[float] = []
        self.health_history: dict[str, list[float]] = {}
        self.best_val_acc = 0.0
        self.best_params: dict[str, Array] = {}
        self.best_state: dict[str, Array] = {}
        self.optim_configs = {
            name: {**default_options(self.update_rule), **self.optim_config, **self._own_options.get(name, {})}
            for name in self.model.params
        }
        self._pending_rows: list[Any] = []
        self._gradient_names: list[str] = []
        self._loss_scale = LossScale(self.model)
        self._start_averages()

    def _start_averages(self) -> None:
        self._averages.start(self.model.params, getattr(self.model, "state", {}))

    @on_its_device
    def train(self, each_iteration: Callable[[Self], object] | None = None) -> None:
        """Train for `num_epochs` epochs and leave the best parameters found in the model.

        A training that was interrupted, or resumed from a checkpoint, continues with the remaining iterations. Ctrl-C
        ends it after the current iteration, with best parameters and histories intact; a second Ctrl-C ends it at once.
        Until the first epoch ends, an interrupted training leaves the current parameters in the model.

        A training that has finished starts another round of `num_epochs` epochs from the best parameters, with the
        memory of the update rule kept. A `schedule` starts again at step 0; `lr_decay` continues from the learning rate
        that it has reached. A training that `patience` has ended trains no further.

        Parameters
        ----------
        each_iteration : callable, optional
            Called with the Solver after each iteration, for instance to `save` it.

        Raises
        ------
        ArgumentError
            If the precision of the model has changed since the Solver was made.
        NonFiniteLossError
            If the loss or a gradient became NaN or infinite; the text names the first iteration where it did.
        PreflightError
            If a check before training failed.

        Warns
        -----
        UserWarning
            If the last losses are above that of a net whose scores are equal, ``ln C`` for C classes with the softmax
            loss.
        """
        if self.preflight and self.iteration == 0:
            self._run_preflight()
        self._begin()
        before = self.iteration
        steps_per_epoch = self._steps_per_epoch()
        done, total = self.iteration - self.round_start, self._num_steps()
        try:
            with (
                self._workers.fail_together(),
                postpone_signals() as signals,
                self._start_batches() as batches,
                self._show_progress(total, done) as progress,
            ):
                self._batches = batches
                self._compare_start()
                self._captured = self._start_captured_steps(batches, progress)
                for step in range(done, total):
                    self._workers.begin(self.iteration + 1)
                    self._workers.deliver(signals)
                    if self._out_of_patience():
                        break
                    self.resumable = False
                    epoch_ends = (step + 1) % steps_per_epoch == 0 or step + 1 == total
                    monitor = self._start_monitor(step, total)
                    X = self._take_step(batches, need_images=monitor is not None)
                    health = self._read_for_check(monitor, X)
                    self._report_step(step, total, progress)
                    if epoch_ends:
                        self.epoch += 1
                        decay(self.optim_configs.values(), self.lr_decay)
                    if monitor is not None:
                        self._workers.compare_models(self.model)
                        with self._evaluated_weights():
                            self._check_accuracies(progress)
                        monitor.append_to(self.health_history, health)
                    self.resumable = True
                    if each_iteration is not None:
                        each_iteration(self)
                else:
                    self._finished = True
        except KeyboardInterrupt:
            self.interrupted = True
            if self.verbose:
                kept = "best parameters so far" if self.epoch else "current parameters"
                Progress().line(f"interrupted after iteration {self.iteration}; keeping the {kept}")
        finally:
            self._batches = None
            self._end_captured_steps()
            self._swap_in_best()
        self._read_losses()
        if self.iteration > before and not self.interrupted:
            self._warn_of_high_losses()

    def _start_monitor(self, step: int, total: int) -> TrainingMonitor | None:
        """Return a monitor of a step if the accuracy is to be checked after it."""
        checked = step in (0, total - 1) or (step + 1) % (self.check_every * self._steps_per_epoch()) == 0
        return TrainingMonitor(self.model, self.backend) if checked else None

    def _start_batches(self) -> Batches:
        """Return the minibatches; a worker gathers only its own rows, unless augmentation needs the whole minibatch."""
        own = self._microbatches.own_rows if self.augment is None else slice(None)
        data = self.X_train, self.y_train, self.sampler, self.backend
        return Batches(*data, prefetch=self._prefetch, positions=own)

    def _compare_start(self) -> None:
        """Raise an error unless all workers are at the same point of the same training."""
        if self._workers.several:
            streams = {name: state_of(stream) for name, stream in self._streams_without_sampler().items()}
            self._workers.compare_start(
                self.backend.library,
                self._configuration(),
                self.model,
                num_epochs=self.num_epochs,
                iteration=self.iteration,
                rng=streams | {"sampler": self.sampler.state},
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for copies and pickles: during training, without minibatches drawn in advance."""
        if self._batches is None:
            return self.__dict__
        if self._captured is not None:
            self._captured.collect_rows()
        sampler = deepcopy(self.sampler)
        sampler.state = self._batches.state
        streams = {name: sampler.stream if s is self.sampler.stream else s for name, s in self.streams.items()}
        return {**self.__dict__, "_batches": None, "_captured": None, "sampler": sampler, "streams": streams}

    def _steps_per_epoch(self) -> int:
        return max(int(self.y_train.shape[0]) // self.batch_size, 1)

    def _num_steps(self) -> int:
        """Return the iterations of `num_epochs` epochs."""
        return ceil(round(self.num_epochs * self._steps_per_epoch(), 6))

    def _run_preflight(self) -> None:
        check_training(
            self.model,
            self.X_train,
            self.y_train,
            batch_size=self.batch_size,
            update_rule=self.update_rule,
            optim_config=self.optim_config,
            param_options=self.param_options,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
            num_steps=self._num_steps(),
            on_finding=_print_passed if self.verbose else None,
        )

    def _begin(self) -> None:
        """Continue an unfinished training with its latest parameters, or start a new round from the best ones."""
        self._loss_scale.check(self.model)
        if isinstance(self.update_rule, str):
            for name, w in self.model.params.items():
                check_writeable(f"model.params[{name!r}]", w)
        if self._finished:
            self.round_start, self.round_checks = self.iteration, len(self.val_acc_history)
        else:
            self._give_model(*self.current())
        self.interrupted = self._finished = False
        self._replaced = None, None
        if self.iteration == self.round_start:
            self._start_averages()

    def _out_of_patience(self) -> bool:
        """Return whether the last `patience` checks of this round were no better than an earlier one."""
        before_epoch_ended = self._steps_per_epoch() > 1  # the check after the first iteration of the round
        merits = [merit for merit, _ in self._merits()[self.round_checks + before_epoch_ended :]]
        return self.patience is not None and metrics.checks_since_best(merits) >= self.patience

    def _merits(self) -> list[tuple[float, float]]:
        return metrics.merits_of_checks(self.val_acc_history, self.val_loss_history, self.patience_on)

    def _report_step(self, step: int, total: int, progress: Progress) -> None:
        """Record the learning rate of a step and show its loss."""
        rate = self._learning_rate()
        self.learning_rate_history.append(float("nan") if rate is None else rate)
        progress.advance()
        if self.verbose and step % self.print_every == 0:
            self._read_losses()
            loss = self.loss_history[-1]
            progress.loss(f"(Iteration {step + 1} / {total}) loss: {loss:f}", loss)

    def _warn_of_high_losses(self) -> None:
        """Warn if the last losses of this round are above the loss of a net whose scores are equal."""
        if not isinstance(self.model, Sequential):  # its loss may be of another kind
            return
        losses = self.loss_history[self.round_start :]
        last = float(np.mean(losses[-max(len(losses) // 10, 1) :]))
        summed = self.batch_size if self.model.loss_options.get("reduction") == "sum" else 1
        limit, formula = metrics.loss_of_equal_scores(self.model.loss_name, self.model.num_classes, summed)
        penalty = metrics.l2_penalty(self.model) if last > limit else 0.0
        limit += penalty
        if last <= limit:
            return
        formula += f" + {penalty:.2g} for L2" if penalty else ""
        rate = f"learning_rate (it was at most {max(self.learning_rate_history[self.round_start :]):g})"
        remedy = f"train for more epochs, or with another {rate}" if last < 2 * losses[0] else f"take a smaller {rate}"
        warnings.warn(
            f"the last losses are {last:.4g} on average, more than the {limit:.4g} ({formula}) of a guess: {remedy}",
            stacklevel=4,
        )

    def _swap_in_best(self) -> None:
        """Give the model copies of the best parameters, and keep the latest ones for `current`."""
        latest = self.current()
        best = self.best_params, self.best_state
        if not self.best_params or (self.interrupted and self.epoch == 0):  # the best are those of iteration 1
            best = self._averages.evaluated(*latest)
        if best[0] is not latest[0]:
            params = copy_arrays(best[0])
            self._replaced = params, latest
            self._give_model(params, copy_arrays(best[1]))

    def _give_model(self, params: dict[str, Array], state: dict[str, Array]) -> None:
        self.model.params = params
        if state:  # a model need not have the attribute
            self.model.state = state

    def current(self) -> tuple[Any, Any]:
        """Return the parameters and the state of the last iteration, even if the model now has the best ones."""
        best, latest = self._replaced
        return latest if self.model.params is best else (self.model.params, getattr(self.model, "state", {}))

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that the rest of the training depends on, for `load_state_dict`.

        These are the parameters, running statistics and best parameters, the memory of the update rule, the random
        streams, the histories and counts, and the configuration.

        Returns
        -------
        dict
            ``arrays``: NumPy arrays in host memory by name, such as ``params.W1``, ``best_params.W1``,
            ``ema_params.W1``, ``slow_params.W1``, ``memory.m.W1`` and ``loss_history``. ``description``: plain data for
            JSON.

        Raises
        ------
        CheckpointError
            If training ended in the middle of an iteration, or the update rule remembers something that is neither an
            array nor plain data.
        NonFiniteLossError
            If a parameter or another array of the state has NaN or infinite values.

        Examples
        --------
        >>> from xpconv.data import load_digits
        >>> from xpconv.nn import TwoLayerNet
        >>> first, second = (
        ...     Solver(
        ...         TwoLayerNet(input_dim=64, rng=0),
        ...         load_digits(),
        ...         num_epochs=1,
        ...         verbose=False,
        ...         rng=0,
        ...     )
        ...     for _ in range(2)
        ... )
        >>> states = []
        >>> first.train(
        ...     lambda solver: solver.iteration == 7 and states.append(solver.state_dict())
        ... )
        >>> states[0]["arrays"]["params.b2"].shape, states[0]["description"]["iteration"]
        ((10,), 7)
        >>> second.load_state_dict(states[0])
        >>> second.train()
        >>> second.loss_history == first.loss_history
        True
        """
        self._read_losses()
        if not self.resumable:
            raise CheckpointError(
                "this training ended in the middle of an iteration, or failed: it cannot be saved, "
                "but an earlier checkpoint can be resumed"
            )
        memory, memory_arrays = pack_memory(self.optim_configs, built_in_rule=isinstance(self.update_rule, str))
        params, state = self.current()
        stores = {"params": params, "state": state, "best_params": self.best_params, "best_state": self.best_state}
        stores |= self._averages.arrays | {"loss_scale": self._loss_scale.arrays}
        on_device = {f"{kind}.{name}": a for kind, store in stores.items() for name, a in store.items()} | memory_arrays
        arrays = {name: np.array(to_host(a)) for name, a in on_device.items()}
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NonFiniteLossError(
                    f"{name} has NaN or infinite values after iteration {self.iteration}, so "
                    "nothing is saved: take a smaller learning_rate"
                )
        arrays |= {name: np.array(getattr(self, name), np.float64) for name in HISTORIES}
        arrays |= {f"health.{name}": np.array(values, np.float64) for name, values in self.health_history.items()}
        arrays |= {f"checksums.{name}": checksums for name, (_, checksums) in self._data_descriptions().items()}
        description = {name: getattr(self, name) for name in COUNTS} | {
            "health": list(self.health_history),
            "best_val_acc": float(self.best_val_acc),
            "configuration": self._configuration(),
            "memory": memory,
            "streams": {name: state_of(stream) for name, stream in self._streams_without_sampler().items()},
            "sampler": self.sampler.state if self._batches is None else self._batches.state,
        }
        return {"arrays": arrays, "description": description}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned; `train` then does the remaining iterations.

        The Solver and its model must have been made with the same arguments as those that saved the state;
        only the backend, `num_epochs`, `print_every`, `verbose` and `on_nonfinite` may differ.

        Parameters
        ----------
        state : mapping
            ``arrays`` and ``description``, which are copied.

        Raises
        ------
        CheckpointError
            If the state is malformed or comes from a Solver made with other arguments; the text names the first
            difference. The Solver is then unchanged.

        Examples
        --------
        >>> from xpconv.data import load_digits
        >>> from xpconv.nn import TwoLayerNet
        >>> first, second = (
        ...     Solver(
        ...         TwoLayerNet(input_dim=64, rng=0), load_digits(), batch_size=size, rng=0
        ...     )
        ...     for size in (50, 100)
        ... )
        >>> second.load_state_dict(first.state_dict())
        Traceback (most recent call last):
        xpconv.errors.CheckpointError: the state comes from a training with batch_size = 50, but this one has 100: ...
        """
        self._load(state, "the state")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict` to a file, for `resume`.

        Parameters
        ----------
        path : str or path
            A safetensors file, written completely or not at all.

        Raises
        ------
        CheckpointError, NonFiniteLossError
            As for `state_dict`; nothing is written then.
        OSError
            If the file cannot be written; an existing file stays.

        Examples
        --------
        >>> import tempfile
        >>> from xpconv.data import load_digits
        >>> from xpconv.nn import TwoLayerNet
        >>> first, second = (
        ...     Solver(
        ...         TwoLayerNet(input_dim=64, rng=0),
        ...         load_digits(),
        ...         num_epochs=1,
        ...         verbose=False,
        ...         rng=0,
        ...     )
        ...     for _ in range(2)
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first.train(
        ...         lambda solver: (
        ...             solver.iteration == 7
        ...             and solver.save(f"{folder}/checkpoint.safetensors")
        ...         )
        ...     )
        ...     second.resume(f"{folder}/checkpoint.safetensors")
        >>> second.iteration
        7
        >>> second.train()
        >>> second.loss_history == first.loss_history
        True
        """
        write_checkpoint(path, self.state_dict())

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Continue from a file that `save` wrote, as `load_state_dict` does from a state.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        CheckpointError
            If the file is missing or damaged, or as for `load_state_dict`. The Solver is then unchanged.
        """
        self._load(read_checkpoint(path), os.fspath(path))

    def _load(self, state: Mapping[str, Any], owner: str) -> None:
        """Check a whole state, then adopt it; `owner` is the name of the state in errors."""
        try:
            arrays, description = state["arrays"], state["description"]
            self._check_state(arrays, description, owner)
            stores = {
                kind: {name: self.backend.asarray(np.array(arrays[f"{kind}.{name}"])) for name in own}
                for kind, own in self._own_stores(arrays).items()
            }
            attributes = self._parse_attributes(arrays, description)
            self._restore_streams(description["streams"], description["sampler"])
        except CheckpointError:
            raise
        except DESCRIPTION_ERRORS as error:
            raise CheckpointError(f"{owner} does not describe a training ({printable(error)})") from error
        self._give_model(stores.pop("params"), stores.pop("state"))
        self._averages.arrays = {kind: stores.pop(kind) for kind in self._averages.arrays}
        self._loss_scale.arrays = stores.pop("loss_scale")
        for name, value in (stores | attributes).items():
            setattr(self, name, value)
        self.interrupted, self.resumable, self._finished = False, True, False
        if self._captured is not None:
            self._captured.collect_rows()
        self._pending_rows = []

    def _check_state(self, arrays: Mapping[str, Any], description: Mapping[str, Any], owner: str) -> None:
        """Raise an error unless a state has this Solver's configuration and the arrays that it needs."""
        saved, own = description["configuration"], self._configuration()
        difference = first_difference(saved, own)
        if difference is not None:
            data = difference[0].partition(".")[0]
            if data in DATA:
                checksums = arrays.get(f"checksums.{data}"), self._data_descriptions()[data][1]
                text = describe_other_data(data, saved[data], own[data], *checksums)
            else:
                text = describe_difference(*difference)
            raise CheckpointError(f"{owner} comes from a training with {text}")
        counts = {name: description[name] for name in COUNTS}
        if not all(type(count) is int and count >= 0 for count in counts.values()):
            raise ValueError(f"counts are {counts}, not all 0 or more")
        specs = {name: array_spec(a) for name, a in arrays.items()}
        check_specs(owner, specs, self._expected_specs(specs, description))
        maybe_nonfinite = {*STEP_HISTORIES, "val_loss_history", *(f"health.{name}" for name in description["health"])}
        check_finite_arrays(owner, {name: a for name, a in arrays.items() if name not in maybe_nonfinite})

    def _expected_specs(self, specs: Mapping[str, ArraySpec], description: Mapping[str, Any]) -> dict[str, ArraySpec]:
        """Return the specs of the arrays that a state with this description must have."""
        stores = self._own_stores(specs)
        expected = {f"{kind}.{name}": array_spec(a) for kind, own in stores.items() for name, a in own.items()}
        for parameter, memory in description["memory"].items():
            for key in memory["arrays"]:
                name = f"memory.{key}.{parameter}"
                built_in_rule = isinstance(self.update_rule, str)
                expected[name] = expected[f"params.{parameter}"] if built_in_rule else specs[name]
        iterations, checks = (description["iteration"],), specs["train_acc_history"].shape
        shapes = dict.fromkeys(STEP_HISTORIES, iterations) | dict.fromkeys(CHECK_HISTORIES, checks)
        shapes |= {f"health.{name}": checks for name in description["health"]}
        expected |= {f"checksums.{name}": array_spec(sums) for name, (_, sums) in self._data_descriptions().items()}
        return expected | {name: ArraySpec(shape, "float64") for name, shape in shapes.items()}

    def _own_stores(self, names: Iterable[str]) -> dict[str, Mapping[str, Array]]:
        """Return our own arrays that those of a state with these `names` replace; before a check, none is the best."""
        params, state = self.current()
        has_best = any(name.startswith("best_params.") for name in names)
        best = {"best_params": params, "best_state": state} if has_best else {"best_params": {}, "best_state": {}}
        loss_scale = {"loss_scale": self._loss_scale.arrays}
        return {"params": params, "state": state, **best, **self._averages.arrays, **loss_scale}

    def _parse_attributes(self, arrays: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes that a state gives the Solver, besides the best parameters."""
        memory = {name: description["memory"][name] for name in self.model.params}
        optim_configs = unpack_memory(memory, arrays, self.backend)
        if isinstance(self.update_rule, str):
            for config in optim_configs.values():
                numbers = {key: value for key, value in config.items() if not is_array(value)}
                with np.errstate(all="ignore"):  # a trial step, which raises an error if an option is invalid
                    UPDATE_RULES[self.update_rule](np.zeros(1), np.zeros(1), numbers)
        return {
            "optim_configs": optim_configs,
            "best_val_acc": float(description["best_val_acc"]),
            "health_history": {name: arrays[f"health.{name}"].tolist() for name in description["health"]},
            **{name: description[name] for name in COUNTS},
            **{name: arrays[name].tolist() for name in HISTORIES},
        }

    def _configuration(self) -> dict[str, Any]:
        """Return the properties in which the saving and the loading Solver must agree, as plain data for JSON."""
        rule = self.update_rule
        functions = {"augment": self.augment, "schedule": self.schedule}
        configuration = {  # the data first, since preprocessing is often computed from them
            **{name: description for name, (description, _) in self._data_descriptions().items()},
            "model": architecture(self.model),
            "precision": getattr(self.model, "precision", "full"),
            "update_rule": rule if isinstance(rule, str) else name_of(rule),
            "optim_config": _without_arrays(self.optim_config),
            "param_options": {pattern: _without_arrays(options) for pattern, options in self.param_options.items()},
            **{name: getattr(self, name) for name in CONFIGURATION},
            **self._averages.configuration(),
            **{name: None if function is None else name_of(function) for name, function in functions.items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(configuration, default=str))
        return plain

    def _data_descriptions(self) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
        """Return `describe_data` of images and labels, which are computed again only if an array is replaced."""
        data = tuple(getattr(self, name) for name in DATA)
        if self._described is None or any(a is not b for a, b in zip(data, self._described[0], strict=True)):
            arrays = [
                to_host(a).astype(np.int64) if name.startswith("y") else a for name, a in zip(DATA, data, strict=True)
            ]
            self._described = data, dict(zip(DATA, map(describe_data, arrays), strict=True))
        return self._described[1]

    def _streams_without_sampler(self) -> dict[str, RandomStream]:
        """Return the streams other than the sampler's, which may have drawn minibatches in advance."""
        streams = {name: stream for name, stream in self.streams.items() if name != "batches"}
        return streams | {"layers": self.model.seed_stream} if hasattr(self.model, "seed_stream") else streams

    def _restore_streams(self, states: Mapping[str, Any], sampler: Any) -> None:
        """Restore all streams, or none of them if a state is malformed."""
        own = self._streams_without_sampler(), self.sampler
        for streams, own_sampler in (deepcopy(own), own):  # the copies first, which raise an error if one is malformed
            for name, stream in streams.items():
                restore(stream, states[name])
            own_sampler.state = sampler

    def _show_progress(self, total: int, done: int) -> AbstractContextManager[Progress]:
        """Return a context that shows the progress of a run of `total` iterations."""
        workers = self.communicator.size
        return show_progress(total, self.batch_size, verbose=self.verbose, done=done, workers=workers)

    def _augmented(self, X: Array, y: Array, rows: np.ndarray) -> tuple[Array, Array]:
        """Return the images and labels of a minibatch, augmented."""
        if self.augment is None:
            return X, y
        seed = draw_seed(self.streams["augment"])
        if not getattr(self.augment, "takes_minibatch", False):
            return self.augment(X, seed), y
        minibatch = Minibatch(X, y, rows, self.epoch, getattr(self.model, "num_classes", None))
        changed = self.augment(minibatch, seed)
        return changed.X, changed.y

    def _take_step(self, batches: Batches, need_images: bool) -> Array | None:
        """Train on the next minibatch; return its images if they are needed."""
        if self._captured is not None:
            return self._captured.take_step(need_images)
        return self._take_ordinary_step(batches)

    def _start_captured_steps(self, batches: Batches, progress: Progress) -> CapturedSteps | None:
        return captured_steps(self, batches, progress.line)

    def _end_captured_steps(self) -> None:
        captured, self._captured = self._captured, None
        if captured is not None:
            captured.close()

    def _take_ordinary_step(self, batches: Batches) -> Array:
        """Train on the next minibatch, without a captured step, and return its images."""
        X, y = next(batches)
        if self.augment is not None:
            X, y = self._augmented(X, y, batches.rows)
            X, y = (a[self._microbatches.own_rows, ...] for a in (X, y))
        self._step(X, y)
        return X

    def _step(self, X: Array, y: Array) -> None:
        """Compute the loss and gradients of one minibatch; if all are finite, update every parameter."""
        self._apply_schedule()
        self._compute_step(X, y)

    def _apply_schedule(self) -> None:
        """Set the learning rates of the next step."""
        if self.schedule is not None:
            factor = self.schedule(self.iteration - self.round_start)
            for name, config in self.optim_configs.items():
                rate = self._own_options.get(name, {}).get("learning_rate", self.optim_config["learning_rate"])
                config["learning_rate"] = rate * factor

    def _compute_step(self, X: Array, y: Array) -> None:
        """Do the part of a step that runs on the device: loss, gradients, clipping, update and averages."""
        state_before = {**getattr(self.model, "state", {})}
        self._loss_scale.apply(self.model)
        loss, grads = self._microbatches.loss(self.model, X, y)
        grads = self._own_gradients(grads)
        self.iteration += 1
        row, finite = self._check_finite(loss, grads)
        self._pending_rows.append(row)
        if state_before:
            self.model.state = choose(finite, self.model.state, state_before)
        if finite is False:
            self._read_losses()  # raises an error, unless such minibatches are skipped
        else:
            self._update(grads if self.clip_norm is None else clip_gradients(grads, self.clip_norm), finite)
            step = self.iteration - self.round_start - 1
            self._averages.update(self.model.params, getattr(self.model, "state", {}), step, finite)

    def _own_gradients(self, grads: Mapping[str, Array]) -> dict[str, Array]:
        """Return the gradients of the parameters, in their order; those of the frozen layers of a net are missing."""
        own = {name: grads[name] for name in self.model.params if name in grads}
        missing = [name for name in self.model.params if name not in grads]
        if missing and not isinstance(self.model, Sequential):
            raise ArgumentError(
                f"the model's loss returned no gradient for {', '.join(missing)}; "
                "expected one for each of its params, under the same name"
            )
        if not own:
            raise ArgumentError(
                "all layers of the model are frozen: unfreeze those to train, as in model.unfreeze('affine*'), "
                "or freeze fewer"
            )
        if list(own) != self._gradient_names:
            self._read_losses()  # the pending rows have the gradients that were computed until now
            self._gradient_names = list(own)
        return own

    def _check_finite(self, loss: Any, grads: Mapping[str, Array]) -> tuple[Any, Any]:
        """Return a row for `read_rows`, and whether to update: True, False or a boolean array () on the device."""
        row, finite = check_finite(loss, grads, per_gradient=self.on_nonfinite == "stop")
        return row, self._loss_scale.judge(row) if self._loss_scale.arrays else finite

    def _update(self, grads: Mapping[str, Array], where: Array | bool) -> None:
        """Update each parameter, unless `where`, True or a boolean array () on the device, is False."""
        rule, params, configs = self.update_rule, self.model.params, self.optim_configs
        if isinstance(rule, str):
            for name, grad in grads.items():
                UPDATE_RULES[rule](params[name], grad, configs[name], in_place=True, where=where)
        elif where is True or to_host(where):
            for name, grad in grads.items():
                params[name], configs[name] = rule(params[name], grad, configs[name])

    @contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """Let the model have the averages of its weights, if there are any, in this context."""
        latest = self.model.params, getattr(self.model, "state", {})
        evaluated = self._averages.evaluated(*latest)
        if evaluated[0] is latest[0]:
            yield
            return
        self._give_model(*evaluated)
        try:
            yield
        finally:
            self._give_model(*latest)

    def _read_for_check(self, monitor: TrainingMonitor | None, X: Array | None) -> Any:
        """Measure the step before a check, and read losses, memory and monitor together, waiting once for the device.

        Return the monitor's row. Raise an error if a loss, a gradient or the memory of a built-in rule is not finite.
        """
        if monitor is None or X is None:
            return None
        monitor.measure(X, self._microbatches)
        memory = self._memory_to_check()
        *self._pending_rows, finite, health = read_together(
            [*self._pending_rows, finite_flags(memory, self.backend), monitor.row()]
        )
        self._read_losses()
        for name, good in zip(memory, finite, strict=True):
            if not good:
                self._raise_nonfinite(
                    f"{name}, in the memory of {self.update_rule}, stopped being finite by iteration {self.iteration}, "
                    "because a gradient was too large to square"
                )
        return health

    def _check_accuracies(self, progress: Progress) -> None:
        """Measure accuracies and validation loss, and keep copies of the parameters if they are the best so far."""
        train_acc = self.check_accuracy(self.X_train, self.y_train, num_samples=self.num_train_samples)
        val_acc, val_loss = self.evaluate(self.X_val, self.y_val, num_samples=self.num_val_samples)
        for history, value in zip(CHECK_HISTORIES, (train_acc, val_acc, val_loss), strict=True):
            getattr(self, history).append(value)
        self._save_checkpoint()
        epoch = self.epoch - ceil(self.round_start / self._steps_per_epoch())
        text = f"(Epoch {epoch} / {self.num_epochs}) {self._describe_check()}"
        progress.check(text, train_acc, val_acc, val_loss)
        if metrics.checks_since_best(self._merits()) == 0 or not self.best_params:
            self.best_val_acc = val_acc
            self.best_params = copy_arrays(self.model.params)
            self.best_state = copy_arrays(getattr(self.model, "state", {}))

    def _describe_check(self) -> str:
        """Return the results of the last check for its line; the course's Solver has no loss there."""
        train_acc, val_acc, val_loss = (getattr(self, history)[-1] for history in CHECK_HISTORIES)
        return f"train acc: {train_acc:f}; val_acc: {val_acc:f}; val_loss: {val_loss:f}"

    def _save_checkpoint(self) -> None:
        """Do nothing; the course's Solver overrides this method and saves the model after each accuracy check."""

    def _read_losses(self) -> None:
        """Wait for the losses on the device and append them to the history.

        An iteration with NaN or infinite values raises an error, or is counted as skipped, as `on_nonfinite` says.
        """
        if self._captured is not None:
            self._captured.collect_rows()
        if not self._pending_rows:
            return
        losses, pairs, bad = read_rows(self._pending_rows)
        iteration = len(self.loss_history) + 1
        self.loss_history += losses
        self._pending_rows = []
        if self.on_nonfinite == "skip":
            self.skipped += len(bad)
        elif bad:
            first = bad[0]
            self._raise_nonfinite(
                describe_nonfinite(losses[first], iteration + first, self._gradient_names, pairs[first])
            )

    def _memory_to_check(self) -> dict[str, Array]:
        """Return the memory of a built-in rule, with names for an error if it is no longer finite.

        A parameter whose memory is not finite never moves again. A finite gradient can do this, if its square
        overflows.
        """
        if not isinstance(self.update_rule, str):
            return {}
        return {
            f"{key} of {name}": value
            for name, config in self.optim_configs.items()
            for key, value in config.items()
            if is_array(value) and value.ndim
        }

    def _raise_nonfinite(self, event: str) -> NoReturn:
        self.resumable = False
        rate, reg = self._learning_rate(), getattr(self.model, "reg", 0)
        smaller = ["learning_rate" if rate is None else f"learning_rate (it is {rate:g})", "weight_scale"]
        smaller += [f"reg (it is {reg:g})"] if isinstance(reg, float) and reg else []
        labels = "check that labels are 0 to the number of classes - 1, or " if "label" in event else ""
        raise NonFiniteLossError(
            f"{event}: {labels}take a smaller {', a smaller '.join(smaller)}, or images of a smaller range"
        )

    def _learning_rate(self) -> float | None:
        """Return the learning rate of the latest step, or None if the rule has no such option.

        It is that of a parameter to which no pattern gives a rate of its own, if there is one.
        """
        own = self._own_options
        configs = sorted(self.optim_configs, key=lambda name: "learning_rate" in own.get(name, {}))
        rate = self.optim_configs[configs[0]].get("learning_rate")
        return None if rate is None else float(rate.item() if hasattr(rate, "item") else rate)

    @on_its_device
    def check_accuracy(self, X: Array, y: Array, num_samples: int | None = None, batch_size: int = 100) -> float:
        """Return the fraction of samples whose highest score is that of their label.

        Parameters and errors are those of `evaluate`.

        Returns
        -------
        float
            0 to 1.
        """
        return self._evaluate(X, y, num_samples, batch_size).accuracy

    @on_its_device
    def evaluate(self, X: Array, y: Array, num_samples: int | None = None, batch_size: int = 100) -> metrics.Evaluation:
        """Return the accuracy and the mean cross-entropy of samples, as `xpconv.training.metrics.evaluate` does.

        Parameters
        ----------
        X : array (N, ...)
        y : array (N,) of integers
        num_samples : int, optional
            Draw this number of samples instead of using all.
        batch_size : int
            Samples per forward pass.

        Returns
        -------
        Evaluation
            The ``accuracy``, 0 to 1, and the ``loss``.

        Raises
        ------
        ArgumentError, ArgumentTypeError
            If the labels are not one class for each sample, or an option is out of range.
        NonFiniteLossError
            If the highest score of a sample is NaN or infinite.
        """
        return self._evaluate(X, y, num_samples, batch_size)

    def _evaluate(self, X: Array, y: Array, num_samples: int | None, batch_size: int) -> metrics.Evaluation:
        X = as_rows(X)
        X, rows = X if hasattr(X, "shape") else np.asarray(X), None
        if num_samples is not None and check_count("num_samples", num_samples) < X.shape[0]:
            rows = self.streams["checks"].choice(X.shape[0], num_samples)
        # In training, allow NaN and infinity: the error for the next loss says more.
        in_training = self._batches is not None
        communicator = self.communicator if in_training else None
        return metrics.evaluate(
            self.model, X, y, self.backend, batch_size, rows, allow_nonfinite=in_training, communicator=communicator
        )


def _without_arrays(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as plain data; arrays are compared as part of the memory."""
    return {name: to_plain(value) for name, value in options.items() if not is_array(value)}


def _print_passed(finding: PreflightFinding) -> None:
    """Print a finding, unless it failed: the error shows it."""
    if finding.passed:
        Progress().line(str(finding))


def _epochs(num_epochs: float) -> float:
    """Return a number of epochs, 1 or more unless it is a fraction."""
    return check_count("num_epochs", num_epochs) if is_integer(num_epochs) else check_positive("num_epochs", num_epochs)


def _optional_count(name: str, value: int | None) -> int | None:
    return None if value is None else check_count(name, value)
