"""The Solver: equal runs on every backend, no hidden waits, no loss of results when a run ends early."""

import re

import numpy as np
import pytest

from tests.helpers import assert_copies, find_backend
from xpconv import FullyConnectedNet, Solver, ThreeLayerConvNet, TwoLayerNet
from xpconv.backend import Backend
from xpconv.data import load_digits
from xpconv.errors import ArgumentError, ArgumentTypeError, NonFiniteLossError
from xpconv.training._progress import show_progress
from xpconv.training.metrics import Evaluation, accuracy, probabilities
from xpconv.training.optim import sgd


def blobs(n=60, classes=3, seed=0):
    """Return noisy images (n, 1, 4, 4) whose bright row is the label."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = rng.standard_normal((n, 1, 4, 4))
    X[np.arange(n), 0, y] += 3
    return X, y


@pytest.fixture
def data():
    X, y = blobs()
    X_val, y_val = blobs(30, seed=1)
    return {"X_train": X, "y_train": y, "X_val": X_val, "y_val": y_val}


def make_net(backend="numpy", dtype="float64", **options):
    return ThreeLayerConvNet(
        input_dim=(1, 4, 4),
        num_filters=3,
        filter_size=3,
        hidden_dim=8,
        num_classes=3,
        weight_scale=None,
        rng=0,
        backend=backend,
        dtype=dtype,
        **options,
    )


def test_twenty_iterations_give_the_same_losses_on_every_backend(data, backend):
    histories = []
    for where in ("numpy", backend):
        net = FullyConnectedNet(
            [9, 8],
            input_dim=16,
            num_classes=3,
            normalization="batchnorm",
            keep_prob=0.8,
            weight_scale=None,
            dtype="float64",
            rng=0,
            backend=where,
        )
        solver = Solver(net, data, update_rule="adam", batch_size=12, num_epochs=4, verbose=False, rng=3)
        solver.train()
        histories.append((solver.loss_history, solver.train_acc_history, solver.val_acc_history))
    (losses, *checks), (other_losses, *other_checks) = histories
    assert len(losses) == 20
    np.testing.assert_allclose(other_losses, losses, rtol=1e-8)
    assert other_checks == checks


@pytest.mark.parametrize("where", ["host", "device"])
def test_data_may_be_on_the_host_or_on_the_device(data, backend, where):
    reference = Solver(make_net(), data, batch_size=12, num_epochs=2, verbose=False, rng=3)
    reference.train()
    moved = {k: backend.asarray(v) for k, v in data.items()} if where == "device" else data
    solver = Solver(make_net(backend), moved, batch_size=12, num_epochs=2, verbose=False, rng=3)
    solver.train()
    np.testing.assert_allclose(solver.loss_history, reference.loss_history, rtol=1e-8)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_host_waits_only_to_print_and_to_check(data, monkeypatch, rule):
    """Count the waits for the device: reads of scalars and Backend.to_host."""
    backend = find_backend("array_api_strict:device1")
    waits = []

    def counted(cls, name):
        plain = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, *a, **k: waits.append(name) or plain(self, *a, **k))

    net = make_net(backend)
    moved = {k: backend.asarray(v) for k, v in data.items()}
    solver = Solver(net, moved, update_rule=rule, batch_size=12, num_epochs=4, print_every=6, verbose=False, rng=3)
    for name in ("__float__", "__bool__", "__int__"):
        counted(type(backend.xp.zeros(1)), name)
    counted(Backend, "to_host")
    solver.train()
    checks = len(solver.val_acc_history)
    assert checks == 5
    # per check: one for losses, health and whether the rule's memory is finite, and two for accuracies
    assert waits == ["to_host"] * 3 * checks

    waits.clear()
    solver.verbose = True
    solver.train()
    assert waits == ["to_host"] * (
        3 * checks + 3
    )  # plus the prints of iterations 7, 13 and 19; the one of 1 coincides with a check


def test_iterations_between_waits_read_nothing(data, monkeypatch):
    backend = find_backend("array_api_strict:device1")
    solver = Solver(make_net(backend), data, batch_size=12, num_epochs=1, verbose=False, rng=3)
    batch = backend.asarray(data["X_train"][:12]), backend.asarray(data["y_train"][:12])
    strict = type(backend.xp.zeros(1))
    for name in ("__float__", "__bool__", "__int__"):
        monkeypatch.setattr(strict, name, lambda *_: pytest.fail("waited for the device"))
    monkeypatch.setattr(Backend, "to_host", lambda *_: pytest.fail("waited for the device"))
    for _ in range(3):
        solver._step(*batch)


def test_best_parameters_are_restored_with_their_running_statistics(data):
    net = FullyConnectedNet(
        [9], input_dim=16, num_classes=3, normalization="batchnorm", weight_scale=None, rng=0, backend="numpy"
    )
    solver = Solver(net, data, optim_config={"learning_rate": 1e-2}, num_epochs=3, batch_size=10, verbose=False, rng=0)
    kept = {}

    def evaluate(X, y, num_samples):
        if len(solver.val_acc_history) != 1:
            return Evaluation(0.5, 1.0)
        kept.update({k: v.copy() for k, v in {**net.params, **net.state}.items()})
        return Evaluation(0.9, 1.0)

    solver.evaluate = evaluate
    solver.train()
    assert kept
    for name, value in {**net.params, **net.state}.items():
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize(("patience_on", "best"), [("accuracy", 3), ("loss", 2)])
def test_the_loss_decides_between_checks_of_equal_accuracy_and_patience_ignores_it(data, patience_on, best):
    checks = iter([(0.1, np.nan), (0.5, 2.0), (0.4, 0.5), (0.5, 1.0), (0.5, 1.5), (0.5, 1.2)])
    solver = Solver(
        make_net(), data, num_epochs=5, batch_size=10, verbose=False, rng=0, patience=4, patience_on=patience_on
    )
    kept = []

    def evaluate(X, y, num_samples):
        kept.append({name: w.copy() for name, w in solver.model.params.items()})
        return Evaluation(*next(checks))

    solver.evaluate = evaluate
    solver.train()
    assert len(solver.val_acc_history) == 6
    for name, w in solver.model.params.items():
        np.testing.assert_array_equal(w, kept[best][name])


def test_best_parameters_are_copies(data):
    net = make_net()
    solver = Solver(net, data, num_epochs=1, batch_size=10, verbose=False, rng=0)
    solver.train()
    assert_copies(net.params, solver.best_params)
    assert solver.check_accuracy(data["X_val"], data["y_val"]) == solver.best_val_acc


def test_the_log_has_the_courses_lines_and_the_validation_loss(data, capsys):
    Solver(make_net(), data, batch_size=20, num_epochs=2, print_every=2, rng=0).train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" loss: ")[0].split(" train acc")[0] for line in lines] == [
        "(Iteration 1 / 6)",
        "(Epoch 0 / 2)",
        "(Iteration 3 / 6)",
        "(Epoch 1 / 2)",
        "(Iteration 5 / 6)",
        "(Epoch 2 / 2)",
    ]
    assert re.fullmatch(r"\(Iteration 1 / 6\) loss: \d\.\d{6}", lines[0])
    assert re.fullmatch(r"\(Iteration 5 / 6\) loss: \d\.\d{6}, [\d,]+ images/s, \d:\d\d:\d\d left", lines[4])
    assert re.fullmatch(r"\(Epoch 0 / 2\) train acc: 0\.\d{6}; val_acc: 0\.\d{6}; val_loss: \d\.\d{6}", lines[1])


def test_the_log_has_the_speed_and_the_remaining_time_without_the_first_iteration(monkeypatch, capsys):
    clock = iter([1000.0, 1002.0, 1010.0])
    monkeypatch.setattr("xpconv.training._lines.time.perf_counter", lambda: next(clock))
    with show_progress(4004, 3000, verbose=True, done=1) as progress:
        for losses in range(5):
            progress.advance()
            if losses in (0, 2, 4):
                progress.loss(f"loss {losses}", 0.5)
    assert capsys.readouterr().out.splitlines() == [
        "loss 0",  # the first iteration starts the clock at 1000
        "loss 2, 3,000 images/s, 1:06:40 left",  # 2 of them in 2 seconds; 4000 are left
        "loss 4, 1,200 images/s, 2:46:35 left",  # 4 in 10 seconds; 3998 are left
    ]


def test_several_workers_print_lines_even_to_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with show_progress(2, 10, verbose=True, workers=2) as progress:
        progress.line("hello")
    assert capsys.readouterr().out == "hello\n"


def test_a_terminal_shows_a_progress_bar(data, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    Solver(make_net(), data, batch_size=20, num_epochs=2, print_every=2, rng=0).train()
    out = capsys.readouterr().out
    assert "6/6" in out
    assert "images/s" in out
    assert "(Epoch 2 / 2)" in out


def test_verbose_false_prints_nothing(data, capsys):
    Solver(make_net(), data, batch_size=60, num_epochs=1, verbose=False, rng=0).train()
    assert capsys.readouterr().out == ""


def test_ctrl_c_keeps_best_parameters_and_histories(data, capsys):
    net = make_net()
    solver = Solver(net, data, batch_size=10, num_epochs=50, rng=0)
    plain, calls = net.loss, []

    def loss(X, y=None):
        calls.append(y is None)
        if calls.count(False) == 9:
            raise KeyboardInterrupt
        return plain(X, y)

    net.loss = loss
    solver.train()
    assert solver.interrupted
    assert len(solver.loss_history) == solver.iteration == 8
    assert_copies(net.params, solver.best_params)
    assert "interrupted after iteration 8; keeping the best parameters so far" in capsys.readouterr().out


def test_ctrl_c_in_the_first_epoch_keeps_the_current_parameters(data, capsys):
    """The best parameters are then those of iteration 1, which are hardly trained."""
    solver, params = Solver(make_net(), data, batch_size=1, num_epochs=2, rng=0), []

    def interrupt(solver):
        if solver.iteration == 50:
            params.append({name: w.copy() for name, w in solver.model.params.items()})
            raise KeyboardInterrupt

    solver.train(interrupt)
    for name, w in solver.model.params.items():
        np.testing.assert_array_equal(w, params[0][name])
    assert "interrupted after iteration 50; keeping the current parameters\n" in capsys.readouterr().out
    solver.train()
    assert solver.iteration == 120
    assert_copies(solver.model.params, solver.best_params)


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1"])
def test_an_exploding_loss_raises_with_the_first_nonfinite_iteration(data, where):
    net = make_net(find_backend(where))
    solver = Solver(net, data, optim_config={"learning_rate": 1e200}, batch_size=10, num_epochs=5, verbose=False, rng=0)
    with (
        np.errstate(all="ignore"),
        pytest.raises(
            NonFiniteLossError,
            match=r"the loss became (nan|inf) at iteration (\d+) \(.*W1.*\): take a "
            r"smaller learning_rate \(it is 1e\+200\)",
        ) as caught,
    ):
        solver.train()
    first = next(i for i, loss in enumerate(solver.loss_history, 1) if not np.isfinite(loss))
    assert f"at iteration {first} (" in str(caught.value)
    assert all(np.isfinite(net.backend.to_host(w)).all() for w in net.params.values())


def test_learning_rate_decays_once_an_epoch(data):
    solver = Solver(
        make_net(), data, optim_config={"learning_rate": 0.1}, lr_decay=0.5, batch_size=60, num_epochs=3, verbose=False
    )
    solver.train()
    assert {config["learning_rate"] for config in solver.optim_configs.values()} == {0.0125}
    assert solver.optim_config == {"learning_rate": 0.1}


def test_a_custom_rule_trains_like_sgd(data):
    def mine(w, dw, config):
        return w - 0.01 * dw, config

    runs = []
    for rule in (mine, "sgd"):
        solver = Solver(make_net(), data, update_rule=rule, num_epochs=2, batch_size=10, verbose=False, rng=0)
        solver.train()
        runs.append(solver.loss_history)
    np.testing.assert_allclose(*runs)
    assert sgd.__name__ == "sgd"


def test_a_custom_model_is_trained(data):
    class Linear:
        def __init__(self):
            self.params = {"W": np.zeros((16, 3))}

        def loss(self, X, y=None):
            scores = X.reshape(len(X), -1) @ self.params["W"]
            if y is None:
                return scores
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            loss = -np.log(p[np.arange(len(y)), y]).mean()
            p[np.arange(len(y)), y] -= 1
            return float(loss), {"W": X.reshape(len(X), -1).T @ p / len(y)}

    solver = Solver(Linear(), data, optim_config={"learning_rate": 0.1}, num_epochs=10, batch_size=10, verbose=False)
    solver.train()
    assert solver.best_val_acc > 0.9
    assert all(type(loss) is float for loss in solver.loss_history)


def test_the_seed_determines_the_run(data):
    runs = []
    for seed in (0, 0, 1):
        solver = Solver(make_net(), data, num_epochs=2, batch_size=10, verbose=False, rng=seed)
        solver.train()
        runs.append(solver.loss_history)
    assert runs[0] == runs[1] != runs[2]


def test_check_accuracy_is_the_fraction_of_hits(data):
    net = TwoLayerNet(input_dim=16, num_classes=3, rng=0)
    solver = Solver(net, data, batch_size=60, verbose=False, rng=0)
    predicted = np.argmax(net.loss(data["X_val"]), axis=1)
    for size in (7, 100):
        accuracy = solver.check_accuracy(data["X_val"], data["y_val"], batch_size=size)
        assert accuracy == pytest.approx(np.mean(predicted == data["y_val"]))
    assert 0 <= solver.check_accuracy(data["X_val"], data["y_val"], num_samples=5) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"y": lambda y: y[:, None]},
            r"X has 30 samples but y has shape \(30, 1\); expected one label for each, \(N,\): pass y\[:, 0\]",
        ),
        ({"y": lambda y: y[:-1]}, r"X has 30 samples but y has shape \(29,\); expected one label for each"),
        ({"y": lambda y: y + 0.9}, r"y has dtype .*float64; expected integer labels"),
        ({"y": lambda y: y + 1}, r"y has (labels from 1 to 3|\d+ labels out of range); expected 0 to 2"),
        ({"y": lambda y: y - 1}, r"y has (labels from -1 to 1|\d+ labels out of range); expected 0 to 2"),
        (
            {"X": lambda X: X[:0], "y": lambda y: y[:0]},
            r"X has shape \(0, 1, 4, 4\); expected \(N, ...\) with",
        ),
        ({"batch_size": lambda size: 0}, "batch_size is 0; expected an int, 1 or more"),
        ({"num_samples": lambda size: 0}, "num_samples is 0; expected an int, 1 or more"),
        ({"X": lambda X: X * np.nan}, "the scores of 30 of 30 samples are NaN or infinite; expected numbers"),
    ],
)
def test_the_accuracy_of_what_has_none_is_refused(data, backend, change, message):
    solver = Solver(make_net(backend), data, batch_size=60, verbose=False, rng=0)
    arguments = {"X": data["X_val"], "y": data["y_val"], "batch_size": 7, "num_samples": None}
    arguments = {name: change.get(name, lambda value: value)(value) for name, value in arguments.items()}
    with pytest.raises((ArgumentError, ArgumentTypeError, NonFiniteLossError), match=message):
        solver.check_accuracy(**arguments)


def test_accuracy_and_probabilities_take_lists(data):
    solver = Solver(make_net(), data, batch_size=60, verbose=False, rng=0)
    X, y = data["X_val"], data["y_val"]
    assert solver.check_accuracy(X.tolist(), y.tolist(), num_samples=100) == solver.check_accuracy(X, y)
    np.testing.assert_array_equal(probabilities(solver.model, X.tolist()), probabilities(solver.model, X))


def test_probabilities_of_nothing_or_of_nan_scores_are_refused(data):
    net = make_net()
    with pytest.raises(ArgumentError, match="with N at least 1"):
        probabilities(net, data["X_val"][:0])
    with pytest.raises(ArgumentError, match="batch_size is 0"):
        probabilities(net, data["X_val"], batch_size=0)
    net.params["b2"][...] = np.nan
    with pytest.raises(NonFiniteLossError, match="the scores of 30 of 30 samples are NaN"):
        probabilities(net, data["X_val"])


class FixedScores:
    """A model that returns the same scores for any samples."""

    def __init__(self, scores, backend):
        self.scores = backend.asarray(np.array(scores))
        self.params = {"W": self.scores}

    def loss(self, X, y=None):
        return self.scores


def test_infinite_scores_have_no_accuracy_but_a_class_may_be_masked(backend):
    X, y = np.zeros((2, 4)), np.array([1, 1])
    for low in (-np.inf, 0.0):
        masked = FixedScores([[low, 1.0], [low, 0.5]], backend)
        assert accuracy(masked, X, y, backend) == 1
    np.testing.assert_array_equal(
        probabilities(FixedScores([[-np.inf, 1.0], [-np.inf, 0.5]], backend), X), [[0, 1], [0, 1]]
    )
    for scores in ([[np.inf, np.inf], [0.0, 1.0]], [[-np.inf, -np.inf], [0.0, 1.0]]):
        model = FixedScores(scores, backend)
        for compute in (lambda m: accuracy(m, X, y, backend), lambda m: probabilities(m, X)):
            with pytest.raises(NonFiniteLossError, match="the scores of 1 of 2 samples are NaN or infinite"):
                compute(model)


def test_scores_of_another_shape_are_named(backend):
    X, y = np.zeros((2, 4)), np.array([1, 1])
    for scores in ([1.0, 0.0], [[1.0, 0.0]]):
        model = FixedScores(scores, backend)
        for compute in (lambda m: accuracy(m, X, y, backend), lambda m: probabilities(m, X)):
            with pytest.raises(ArgumentError, match=r"model.loss\(X\) returned scores of shape .*; expected \(2, C\)"):
                compute(model)


def test_digits_as_uint8_are_learned_in_float32():
    digits = load_digits()
    net = TwoLayerNet(input_dim=64, hidden_dim=40, weight_scale=0.01, rng=0, backend="numpy")
    solver = Solver(net, digits, update_rule="adam", num_epochs=3, verbose=False, rng=0)
    solver.train()
    assert digits.X_train.dtype == np.uint8
    assert {str(w.dtype) for w in net.params.values()} == {"float32"}
    assert solver.best_val_acc > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_rule": "adagrad"}, "update_rule is 'adagrad'; expected one of sgd, sgd_momentum, sgd_nesterov, rms"),
        ({"batch_size": 0}, "batch_size is 0; expected an int, 1 or more"),
        ({"num_epochs": 0}, "num_epochs is 0; expected an int, 1 or more"),
        ({"num_epochs": -1.5}, "num_epochs is -1.5; expected a finite number above 0"),
        ({"check_every": 0}, "check_every is 0; expected an int, 1 or more"),
        ({"print_every": 0}, "print_every is 0; expected an int, 1 or more"),
        ({"augment": "flip"}, r"augment is 'flip'; expected a function, such as .*parse_augmentation\('crop-flip'\)"),
    ],
)
def test_invalid_options_are_refused_by_name(data, options, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        Solver(make_net(), data, **options)


def test_unknown_options_are_refused_by_name(data):
    with pytest.raises(TypeError, match="learning_rate"):
        Solver(make_net(), data, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.pop("y_val"), ArgumentError, "data has no 'y_val'; expected X_train, y_train, X_val and y_val"),
        (lambda d: d.update(y_train=d["y_train"][:-1]), ArgumentError, r"X_train has shape .* and y_train \(59,\)"),
        (
            lambda d: d.update(y_train=np.eye(3)[d["y_train"]]),
            ArgumentError,
            r"X_train has shape .* and y_train \(60, 3\); .*: if they are one-hot, pass xp.argmax\(y_train, axis=1\)",
        ),
        (lambda d: d.update(X_val=d["X_val"][:0], y_val=d["y_val"][:0]), ArgumentError, "with N at least 1"),
        (
            lambda d: d.update(y_train=d["y_train"] + 0.5),
            ArgumentTypeError,
            "y_train has dtype float64; expected integer",
        ),
        (lambda d: d.update(y_train=d["y_train"] + 1), ArgumentError, "labels from 1 to 3; expected 0 to 2"),
        (lambda d: d.update(y_train=d["y_train"] - 1), ArgumentError, "labels from -1 to 1; expected 0 to 2"),
        (
            lambda d: d["X_train"].__setitem__((5, 0, 0, 0), np.nan),
            ArgumentError,
            r"X_train\[5\] has NaN or infinite",
        ),
        (lambda d: d["X_val"].__setitem__((2, 0, 0, 0), np.inf), ArgumentError, r"X_val\[2\] has NaN or infinite"),
    ],
)
def test_invalid_data_is_refused_before_training(data, change, error, message):
    change(data)
    with pytest.raises(error, match=message):
        Solver(make_net(), data)


@pytest.mark.parametrize(
    "wrong", [lambda d: (d["X_train"], d["y_train"]), lambda d: iter([d]), lambda d: d["X_train"], lambda d: None]
)
def test_data_of_another_type_is_refused(data, wrong):
    with pytest.raises(ArgumentTypeError, match=r"data is a .*; expected a Dataset, or a mapping with X_train, y_"):
        Solver(make_net(), wrong(data))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0], [1.0, 2.0]], r"X_train is ragged \(.*\); expected samples of one shape"),
        (iter([1.0]), "X_train is a list_iterator; expected an array or a list of numbers"),
        (None, "X_train is a NoneType; expected an array or a list of numbers"),
    ],
)
def test_images_that_are_no_array_are_refused(data, value, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        Solver(make_net(), {**data, "X_train": value})


# ---- health


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1"])
def test_health_is_measured_from_each_steps_weights_and_minibatch(data, where):
    """Compare with NumPy on copies of the minibatches and of the weights before and after each step."""
    net = TwoLayerNet(
        input_dim=16,
        hidden_dim=12,
        num_classes=3,
        weight_scale=0.3,
        dtype="float64",
        rng=0,
        backend=find_backend(where),
    )
    solver = Solver(
        net,
        data,
        update_rule="adam",
        optim_config={"learning_rate": 0.1},
        batch_size=12,
        num_epochs=3,
        verbose=False,
        rng=3,
    )
    weights, batches, plain = [], [], net.loss

    def host():
        return {name: net.backend.to_host(w).copy() for name, w in net.params.items()}

    def loss(X, y=None):
        if y is not None:
            weights.append(host())
            batches.append(net.backend.to_host(X).reshape(12, 16))
        return plain(X, y)

    net.loss = loss
    after = []
    solver.train(lambda solver: after.append(host()))
    steps = [0, 4, 9, 14]
    expected = {"update_ratio_W1": [], "update_ratio_W2": [], "dead_relu_1": []}
    for step in steps:
        for name in ("W1", "W2"):
            old, new = weights[step][name], after[step][name]
            expected[f"update_ratio_{name}"].append(np.linalg.norm(new - old) / np.linalg.norm(old))
        hidden = batches[step] @ after[step]["W1"] + after[step]["b1"]
        expected["dead_relu_1"].append((hidden <= 0).all(axis=0).mean())
    assert solver.health_history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(solver.health_history[name], values, rtol=1e-12)
    assert all(type(value) is float for value in solver.health_history["dead_relu_1"])


def test_dead_units_of_a_convolution_are_filters(data):
    net = make_net()
    net.params["b1"][1] = -100.0
    solver = Solver(net, data, batch_size=12, num_epochs=1, verbose=False, rng=3)
    solver.train()
    assert solver.health_history["dead_relu_1"] == [1 / 3, 1 / 3]


def test_frozen_weights_have_no_update_ratio(data):
    net = make_net()
    net.freeze("conv1")
    solver = Solver(net, data, batch_size=12, num_epochs=1, verbose=False, rng=3)
    solver.train()
    assert np.isnan(solver.health_history["update_ratio_W1"]).all()
    assert all(0 < ratio < 1 for ratio in solver.health_history["update_ratio_W2"])
    assert len(solver.health_history["update_ratio_W1"]) == len(solver.health_history["update_ratio_W2"])


def test_health_of_a_custom_model_is_that_of_its_weights(data):
    class Own:
        def __init__(self):
            self.params = {"W1": np.zeros((16, 3)), "b": np.zeros(3)}

        def loss(self, X, y=None):
            X = X.reshape(len(X), -1)
            scores = X @ self.params["W1"] + self.params["b"]
            return scores if y is None else (1.0, {"W1": np.ones((16, 3)), "b": np.ones(3)})

    solver = Solver(Own(), data, batch_size=12, num_epochs=1, verbose=False, rng=3)
    solver.train()
    first, last = solver.health_history["update_ratio_W1"]
    assert list(solver.health_history) == ["update_ratio_W1"]
    assert (first, round(last, 12)) == (
        np.inf,
        0.25,
    )  # the first step starts from weights of 0; the last one adds a fourth of the weights
