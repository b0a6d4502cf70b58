"""Averages of the weights follow their formulas, are evaluated and saved, and resume to the same bits."""

import signal

import numpy as np
import pytest

from tests.helpers import assert_array, assert_copies, find_backend
from tests.solvers import assert_same, make_solver, saving_at
from xpconv import Solver
from xpconv.backend import copy_arrays, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError
from xpconv.training import metrics


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((56, 1, 4, 4)), rng.integers(0, 3, 56)
    return {"X_train": X[:42], "y_train": y[:42], "X_val": X[42:], "y_val": y[42:]}


def copies(solver):
    return copy_arrays({**solver.model.params, **solver.model.state})


class Bowl:
    """The loss ``sum(w**2) / 2``: a step of sgd multiplies the weights by ``1 - learning_rate``."""

    def __init__(self, backend):
        self.backend, self.params = backend, {"w": backend.asarray(np.array([1.0, -2.0]))}

    def loss(self, X, y=None):
        w, xp = self.params["w"], self.backend.xp
        return xp.zeros((X.shape[0], 3), device=self.backend.device) if y is None else (xp.sum(w * w) / 2, {"w": w + 0})


def roll(backend, **options):
    """Return a Solver that is to take 12 steps on a Bowl."""
    X, y = np.zeros((12, 2)), np.zeros(12, np.int64)
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    options = {"optim_config": {"learning_rate": 0.25}, "batch_size": 1, "num_epochs": 1, **options}
    return Solver(Bowl(backend), data, verbose=False, **options)


@pytest.mark.parametrize("ema", [0.05, 0.5, 0.99])
def test_the_moving_average_follows_its_formula(data, backend, ema):
    """Running statistics are averaged too."""
    solver, seen = make_solver(data, backend=backend, ema=ema), []
    averages = {name: to_host(a).copy() for name, a in copies(solver).items()}
    solver.train(lambda solver: seen.append(copies(solver)))
    for t, weights in enumerate(seen):
        decay = min(ema, (1 + t) / (10 + t))
        averages = {name: decay * averages[name] + (1 - decay) * to_host(a) for name, a in weights.items()}
    own = solver._averages.arrays
    for name, expected in averages.items():
        assert_array({**own["ema_params"], **own["ema_state"]}[name], expected, backend, "float64")


@pytest.mark.parametrize("rule", ["sgd", lambda w, dw, config: (w - config["learning_rate"] * dw, config)])
@pytest.mark.parametrize("every", [1, 3, 5])
def test_lookahead_moves_slow_weights_half_way_and_lets_the_fast_ones_go_on_from_there(backend, every, rule):
    solver, seen = roll(backend, lookahead=every, update_rule=rule), []
    fast = slow = np.array([1.0, -2.0])
    solver.train(lambda solver: seen.append([to_host(solver.model.params["w"]).copy(), solver._averages.arrays]))
    for step, (w, _) in enumerate(seen, start=1):
        fast = 0.75 * fast
        if step % every == 0:
            fast = slow = slow + 0.5 * (fast - slow)
        np.testing.assert_allclose(w, fast, rtol=1e-12)
    assert_array(solver._averages.arrays["slow_params"]["w"], slow, backend, "float64")


def test_both_averages_together_average_the_weights_that_lookahead_leaves(backend):
    solver, weights = roll(backend, lookahead=2, ema=0.5), []
    solver.train(lambda solver: weights.append(to_host(solver.model.params["w"]).copy()))
    average = np.array([1.0, -2.0])
    for t, w in enumerate(weights):
        average = average + (1 - min(0.5, (1 + t) / (10 + t))) * (w - average)
    best, latest = solver.best_params["w"], solver.current()[0]["w"]
    assert_array(solver._averages.arrays["ema_params"]["w"], average, backend, "float64")
    np.testing.assert_allclose(to_host(latest), weights[-1])
    assert_copies(solver.model.params, {"w": best})


@pytest.mark.parametrize(("option", "value"), [("ema", 0.9), ("lookahead", 2)])
def test_the_averages_are_evaluated_and_become_the_best_parameters(data, option, value):
    solver, kept = make_solver(data, num_val_samples=None, **{option: value}), {}

    def keep(solver):
        if solver.iteration % 6 == 0 or solver.iteration == 1:
            weights = solver._averages.evaluated(solver.model.params, solver.model.state)
            kept[len(solver.val_acc_history) - 1] = [copy_arrays(store) for store in weights]

    solver.train(keep)
    merits = list(zip(solver.val_acc_history, -np.asarray(solver.val_loss_history), strict=True))
    best = merits.index(max(merits))
    assert_copies(solver.best_params, kept[best][0])
    assert_copies(solver.best_state, kept[best][1])
    assert_copies(solver.model.params, solver.best_params)
    for check, (params, state) in kept.items():
        solver.model.params, solver.model.state = params, state
        accuracy = metrics.accuracy(solver.model, solver.X_val, solver.y_val, solver.backend)
        assert solver.val_acc_history[check] == accuracy


def test_the_moving_average_leaves_the_training_as_it_was(data):
    plain, averaged = make_solver(data), make_solver(data, ema=0.9)
    for solver in (plain, averaged):
        solver.train()
    assert averaged.loss_history == plain.loss_history
    assert averaged.health_history == plain.health_history
    for ours, theirs in zip(averaged.current(), plain.current(), strict=True):
        for name, a in theirs.items():
            np.testing.assert_array_equal(ours[name], a)


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1", pytest.param("torch", marks=pytest.mark.torch)])
@pytest.mark.parametrize("stop", [1, 6, 9, 18])
def test_resumed_training_is_the_same_to_the_bit(data, tmp_path, where, stop):
    options = {
        "backend": find_backend(where),
        "update_rule": "muon",
        "ema": 0.8,
        "lookahead": 4,
        "clip_norm": 0.5,
        "param_options": {"gamma*|b*": {"weight_decay": 0.5}},
    }
    whole, resumed = (make_solver(data, **options) for _ in range(2))
    whole.train(saving_at(stop, tmp_path / "checkpoint"))
    resumed.resume(tmp_path / "checkpoint")
    resumed.train()
    assert_same(resumed, whole)


def test_a_training_interrupted_in_its_first_epoch_leaves_the_averages_in_the_model(data):
    whole, parts = (make_solver(data, ema=0.9) for _ in range(2))
    whole.train()
    parts.train(lambda solver: solver.iteration == 3 and signal.raise_signal(signal.SIGINT))
    assert parts.interrupted
    assert_copies(parts.model.params, parts._averages.arrays["ema_params"])
    assert parts.current()[0] is not parts.model.params
    parts.train()
    assert_same(parts, whole)


def test_another_round_starts_the_averages_from_the_best_parameters(data):
    solver = make_solver(data, ema=0.9, lookahead=3)
    solver.train()
    kept = []
    start = solver._averages.start
    solver._averages.start = lambda *weights: (start(*weights), kept.append(copy_arrays(weights[0])))
    solver.train()
    assert len(kept) == 1
    assert solver.iteration == 36


def test_weights_that_are_set_before_training_start_the_averages(backend):
    solver = roll(backend, ema=0.999)
    solver.model.params["w"] = backend.asarray(np.array([100.0, 100.0]))
    solver.train(lambda solver: solver.iteration == 1 and signal.raise_signal(signal.SIGINT))
    assert_array(solver.model.params["w"], np.full(2, 0.1 * 100 + 0.9 * 75), backend, "float64")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ema", 0, "ema is 0; expected a number above 0 and below 1"),
        ("ema", 1.0, "ema is 1.0; expected a number above 0 and below 1"),
        ("ema", float("nan"), "ema is nan; expected a number above 0 and below 1"),
        ("ema", "0.9", "ema is '0.9'; expected a number above 0 and below 1"),
        ("lookahead", 0, "lookahead is 0; expected an int, 1 or more"),
        ("lookahead", 2.5, "lookahead is 2.5; expected an int, 1 or more"),
    ],
)
def test_invalid_averages_are_refused_by_name(data, option, value, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make_solver(data, **{option: value})


@pytest.mark.parametrize(("option", "value", "other"), [("ema", 0.9, 0.99), ("ema", 0.9, None), ("lookahead", None, 5)])
def test_a_checkpoint_of_other_averages_is_refused(data, tmp_path, option, value, other):
    make_solver(data, **{option: value}).save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=f"{option} = {value}, but this one has {other}: make the Solver"):
        make_solver(data, **{option: other}).resume(tmp_path / "checkpoint")
