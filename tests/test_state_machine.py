"""A Solver that is stopped, saved, resumed and moved in any order has the results of an undisturbed one."""

import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.solvers import assert_same_results, results_of
from xpconv import Solver
from xpconv.errors import CheckpointError
from xpconv.nn import Affine, BatchNorm, Dropout, Relu, Sequential

LAST = 12
BACKENDS = ["numpy", "array_api_strict"]

_rng = np.random.default_rng(0)
_y = _rng.integers(0, 3, 50)
_X = _rng.standard_normal((50, 6)) + np.eye(3, 6)[_y]
DATA = {"X_train": _X[:30], "y_train": _y[:30], "X_val": _X[30:], "y_val": _y[30:]}


def make_solver(backend, update_rule, sampling):
    """Return a Solver with everything that has a state; its results have the same bits on both libraries."""
    net = Sequential(
        [Affine(5), BatchNorm(), Relu(), Dropout(0.8), Affine(3)],
        input_shape=(6,),
        rng=0,
        dtype="float64",
        backend=backend,
    )
    return Solver(
        net,
        DATA,
        update_rule=update_rule,
        optim_config={"learning_rate": 0.02},
        lr_decay=0.9,
        batch_size=10,
        num_epochs=LAST // 3,
        num_train_samples=10,
        num_val_samples=8,
        sampling=sampling,
        verbose=False,
        rng=3,
    )


class Training(RuleBasedStateMachine):
    """Disturb one training, and compare it with a plain one that runs from start to end.

    `events` lists everything else that changes results, as (iteration, function, value); the plain training gets the
    events at the same iterations. `files` lists checkpoints, each with the events before it.
    """

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("XPCONV_ACCELERATE", "0")
        self.folder = tempfile.TemporaryDirectory()
        self.files = []

    def teardown(self):
        self.folder.cleanup()
        self.patch.undo()

    @initialize(
        update_rule=st.sampled_from(["sgd", "sgd_momentum", "rmsprop", "adam"]),
        sampling=st.sampled_from(["replacement", "epoch"]),
    )
    def begin(self, update_rule, sampling, backend="numpy"):
        self.options = update_rule, sampling
        self.solver, self.resumable = make_solver(backend, *self.options), True
        self.events, self.accuracies = [], []

    # ---- rules

    def run(self, stop, at_stop):
        """Train until `stop` iterations are done, then call `at_stop`."""
        self.solver.train(lambda solver: solver.iteration == stop and at_stop(solver))
        assert self.solver.iteration == stop

    def later(self, data):
        return self.solver.iteration + data.draw(st.integers(1, min(4, LAST - self.solver.iteration)))

    def unfinished(self):
        return self.resumable and self.solver.iteration < LAST

    @precondition(unfinished)
    @rule(data=st.data(), how=st.sampled_from(["raise", "signal"]))
    def train_on_and_interrupt(self, data, how):
        def interrupt(solver):
            if how == "signal":
                signal.raise_signal(signal.SIGINT)
            else:
                raise KeyboardInterrupt

        self.run(self.later(data), interrupt)
        assert self.solver.interrupted

    @precondition(unfinished)
    @rule()
    def train_to_the_end(self):
        """Finish the training, then return to the state before it, since a finished training allows few rules."""
        path = self.new_file()
        self.solver.save(path)
        self.run(LAST, lambda solver: None)
        assert not self.solver.interrupted
        self.results_are_those_of_the_plain_training()
        self.solver = make_solver("numpy", *self.options)
        self.solver.resume(path)

    @precondition(unfinished)
    @rule(data=st.data(), factor=st.sampled_from([0.5, -1.0, 0.0]))
    def write_into_parameters(self, data, factor):
        stop = self.later(data)
        self.events.append((stop, write, factor))

        def act(solver):
            write(solver, factor)
            raise KeyboardInterrupt

        self.run(stop, act)

    @precondition(lambda self: self.resumable)
    @rule(size=st.integers(1, 9))
    def check_accuracy(self, size):
        self.events.append((self.solver.iteration, check, size))
        self.accuracies.append(check(self.solver, size))

    @precondition(lambda self: self.resumable)
    @rule(backend=st.sampled_from(BACKENDS))
    def save_and_resume(self, backend):
        path = self.new_file()
        self.solver.save(path)
        self.solver = make_solver(backend, *self.options)
        self.solver.resume(path)

    @precondition(unfinished)
    @rule(data=st.data())
    def save_and_train_on(self, data):
        stop = self.later(data)
        end, path = data.draw(st.integers(stop, LAST)), self.new_file()

        def act(solver):
            if solver.iteration == stop:
                solver.save(path)
            if solver.iteration == end:
                raise KeyboardInterrupt

        self.solver.train(act)

    def new_file(self):
        """Return a path for a checkpoint, and record the events before it."""
        path = Path(self.folder.name, str(len(self.files)))
        self.files.append((path, [*self.events], [*self.accuracies]))
        return path

    @precondition(unfinished)
    @rule()
    def interrupt_within_an_iteration(self):
        def loss(*_):
            raise KeyboardInterrupt

        self.solver.model.loss = loss
        self.solver.train()
        assert self.solver.interrupted
        with pytest.raises(CheckpointError, match="in the middle of an iteration"):
            self.solver.save(Path(self.folder.name, "refused"))
        self.resumable = False

    @precondition(lambda self: self.files or not self.resumable)
    @rule(data=st.data(), backend=st.sampled_from(BACKENDS))
    def go_back(self, data, backend):
        """Resume any earlier checkpoint, or start over if there is none."""
        self.begin(*self.options, backend)
        if self.files:
            path, events, accuracies = self.files[data.draw(st.integers(0, len(self.files) - 1))]
            self.solver.resume(path)
            self.events, self.accuracies = [*events], [*accuracies]

    # ---- invariants

    @invariant()
    def results_are_those_of_the_plain_training(self):
        if not self.resumable:
            return
        plain, accuracies, found = make_solver("numpy", *self.options), [], []

        def follow(solver):
            for at, function, value in self.events:
                if at == solver.iteration:
                    accuracy = function(solver, value)
                    accuracies.extend([] if accuracy is None else [accuracy])
            if solver.iteration == self.solver.iteration:
                solver._read_losses()
                found.append(results_of(solver))

        follow(plain)
        plain.train(follow)
        assert_same_results(results_of(self.solver), found[0])
        assert self.accuracies == accuracies


def write(solver, factor):
    w = solver.model.params["W1"]
    w[...] = w * factor


def check(solver, size):
    """Measure the accuracy of the best parameters on some images, as after the end of training."""
    model = solver.model
    now = model.params, model.state
    if solver.best_params:
        model.params, model.state = solver.best_params, solver.best_state
    accuracy = solver.check_accuracy(DATA["X_val"], DATA["y_val"], num_samples=size)
    model.params, model.state = now
    return accuracy


stateful = settings(stateful_step_count=8)


class TestTraining(Training.TestCase):
    settings = settings(stateful, max_examples=10, derandomize=True)


@pytest.mark.slow
class TestManyTrainings(Training.TestCase):
    settings = settings(stateful, max_examples=300, stateful_step_count=20, print_blob=True)
