"""Options of the Solver that the course does not have: schedules, sampling, patience, augmentation."""

import csv
import json
import re
import shlex
import signal
import warnings
from math import inf

import numpy as np
import pytest

from tests.commands import call
from tests.helpers import assert_array, assert_copies, find_backend
from xpconv import FullyConnectedNet, Solver, ThreeLayerConvNet, load_model, save_model
from xpconv.backend import to_host
from xpconv.cli._run import build_solver
from xpconv.cli._settings import settings_for
from xpconv.data import load_dataset, load_digits
from xpconv.data.augment import parse_augmentation, random_crop
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError, NonFiniteLossError
from xpconv.random import draw_seed, spawn, state_of
from xpconv.training._clip import clip_gradients
from xpconv.training.metrics import Evaluation
from xpconv.training.optim import UPDATE_RULES
from xpconv.training.schedules import cosine, one_cycle, step_decay, warmup


def make_data(n=48, seed=0):
    """Return noisy images (n, 1, 4, 4) whose bright row is the label."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    X = rng.standard_normal((n, 1, 4, 4))
    X[np.arange(n), 0, y] += 3
    return X, y


@pytest.fixture
def data():
    (X, y), (X_val, y_val) = make_data(), make_data(24, seed=1)
    return {"X_train": X, "y_train": y, "X_val": X_val, "y_val": y_val}


def make_solver(data, backend="numpy", **options):
    net = ThreeLayerConvNet(
        input_dim=(1, 4, 4),
        num_filters=3,
        filter_size=3,
        hidden_dim=8,
        num_classes=3,
        weight_scale=None,
        rng=0,
        backend=backend,
        dtype="float64",
    )
    options = {
        "batch_size": 12,
        "num_epochs": 4,
        "optim_config": {"learning_rate": 0.01},
        "verbose": False,
        "rng": 3,
        **options,
    }
    return Solver(net, data, **options)


# ---- warnings


def test_a_batch_size_above_the_number_of_images_is_lowered_with_a_warning(data):
    message = "batch_size is 100, but there are 48 training images: taking a batch_size of 48"
    with pytest.warns(UserWarning, match=message) as caught:
        large = make_solver(data, batch_size=100)
    assert [warning.filename for warning in caught] == [__file__]
    whole = make_solver(data, batch_size=48)
    for solver in (large, whole):
        solver.train()
    assert large.batch_size == 48
    assert large.loss_history == whole.loss_history


@pytest.mark.parametrize(("loss", "limit"), [("softmax", r"1\.099 \(ln 3\)"), ("svm", r"2 \(3 - 1\)")])
@pytest.mark.parametrize(
    ("rate", "remedy"),
    [
        (1e-6, r"train for more epochs, or with another learning_rate \(it was at most 1e-06\)"),
        (1e3, r"take a smaller learning_rate \(it was at most 1000\)"),
    ],
)
def test_a_training_whose_last_losses_are_those_of_a_guess_warns(data, loss, limit, rate, remedy):
    solver = make_solver(data, optim_config={"learning_rate": rate}, update_rule="adam", lr_decay=0.9)
    solver.model.loss_name = loss
    solver.model.params["W3"] *= 5
    with pytest.warns(
        UserWarning, match=rf"^the last losses are \S+ on average, more than the {limit} of a guess: {remedy}$"
    ) as caught:
        solver.train()
    assert [warning.filename for warning in caught] == [__file__]


def test_a_training_whose_loss_is_a_sum_is_compared_with_the_sum_of_a_guess(data):
    solver = make_solver(data, optim_config={"learning_rate": 0.0}, batch_size=8)
    solver.model.loss_options = {"reduction": "sum"}
    solver.model.params["W3"] *= 5
    with pytest.warns(UserWarning, match=r"more than the 8\.789 \(8 ln 3\) of a guess"):
        solver.train()


def test_the_losses_of_a_guess_include_the_l2_term(data):
    solver = make_solver(data, update_rule="adam", num_epochs=20)
    solver.model.reg = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver.train()
    assert solver.loss_history[-1] > np.log(3)
    solver = make_solver(data, optim_config={"learning_rate": 0.0})
    solver.model.params["W3"] *= 5
    solver.model.reg = 0.5
    penalty = 0.25 * sum(float(np.sum(w * w)) for name, w in solver.model.params.items() if name[0] == "W")
    guess = re.escape(f"more than the {np.log(3) + penalty:.4g} (ln 3 + {penalty:.2g} for L2) of a guess: ")
    with pytest.warns(UserWarning, match=guess):
        solver.train()


def test_a_training_that_learns_or_is_interrupted_does_not_warn(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_solver(data, update_rule="adam", num_epochs=20).train()
        solver = make_solver(data, optim_config={"learning_rate": 0.0})
        solver.model.params["W3"] *= 5
        solver.train(lambda solver: solver.iteration == 3 and signal.raise_signal(signal.SIGINT))
    assert solver.interrupted


# ---- schedules


@pytest.mark.parametrize("rule", ["sgd", "adam", lambda w, dw, config: (w - config["learning_rate"] * dw, config)])
def test_schedule_sets_the_learning_rate_of_every_step(data, rule):
    schedule = warmup(4, cosine(16))
    solver = make_solver(data, update_rule=rule, schedule=schedule)
    solver.train()
    assert solver.learning_rate_history == [0.01 * schedule(step) for step in range(16)]
    assert all(type(rate) is float for rate in solver.learning_rate_history)


def test_another_round_starts_the_schedule_again(data, tmp_path, capsys):
    solver, resumed = (make_solver(data, schedule=cosine(8), num_epochs=2, verbose=True) for _ in range(2))
    solver.train()
    capsys.readouterr()
    solver.train(lambda solver: solver.iteration == 11 and solver.save(tmp_path / "checkpoint"))
    epochs = [line.split(")")[0] + ")" for line in capsys.readouterr().out.splitlines() if line.startswith("(Epoch")]
    assert epochs == ["(Epoch 0 / 2)", "(Epoch 1 / 2)", "(Epoch 2 / 2)"]
    assert solver.learning_rate_history == 2 * [0.01 * cosine(8)(step) for step in range(8)]
    resumed.resume(tmp_path / "checkpoint")
    resumed.train()
    assert resumed.loss_history == solver.loss_history


def test_another_round_goes_on_with_lr_decay(data):
    solver = make_solver(data, lr_decay=0.5, num_epochs=1)
    for _ in range(2):
        solver.train()
    assert solver.learning_rate_history == 4 * [0.01] + 4 * [0.005]


def test_step_decay_trains_like_lr_decay(data):
    plain, scheduled = make_solver(data, lr_decay=0.5), make_solver(data, schedule=step_decay(4, 0.5))
    for solver in (plain, scheduled):
        solver.train()
    assert scheduled.loss_history == plain.loss_history
    assert (
        scheduled.learning_rate_history
        == plain.learning_rate_history
        == [0.01 * 0.5 ** (step // 4) for step in range(16)]
    )


def test_the_default_learning_rate_of_a_rule_is_recorded(data):
    solver = make_solver(data, optim_config={})
    solver.train()
    assert solver.learning_rate_history == [0.01] * 16


@pytest.mark.parametrize("options", [{"lr_decay": 0.9}, {"optim_config": {}}])
def test_a_schedule_requires_a_learning_rate_and_no_lr_decay(data, options):
    with pytest.raises(ArgumentError, match=r"schedule is given, with lr_decay .*; expected lr_decay 1 and a learning"):
        make_solver(data, schedule=cosine(16), **options)


# ---- patience


def with_checks(solver, accuracies, losses=None):
    """Make the checks return these validation accuracies and losses."""
    found = iter(zip(accuracies, losses or [1.0] * len(accuracies), strict=True))
    solver.evaluate = lambda X, y, num_samples: Evaluation(*next(found))
    return solver


@pytest.mark.parametrize(("patience", "epochs"), [(None, 9), (1, 2), (2, 5), (3, 9)])
def test_training_ends_after_patience_epochs_without_a_better_accuracy(data, patience, epochs):
    accuracies = [0.1, 0.5, 0.5, 0.6, 0.2, 0.6, 0.7, 0.1, 0.1, 0.1]
    solver = with_checks(make_solver(data, num_epochs=9, patience=patience), accuracies)
    solver.train()
    assert solver.epoch == epochs
    assert solver.best_val_acc == max(accuracies[: epochs + 1])
    assert not solver.interrupted
    assert_copies(solver.model.params, solver.best_params)


@pytest.mark.parametrize(("patience_on", "epochs", "best"), [("accuracy", 5, 3), ("loss", 3, 1)])
def test_patience_and_the_best_parameters_are_those_of_accuracy_or_loss(data, patience_on, epochs, best):
    accuracies, losses = [0.1, 0.2, 0.3, 0.9, 0.3, 0.4, 0.5], [2.0, 0.7, 0.8, 0.9, 0.6, 0.5, 0.4]
    solver, kept = make_solver(data, num_epochs=6, patience=2, patience_on=patience_on), {}
    with_checks(solver, accuracies, losses)
    solver.train(lambda solver: kept.update({solver.iteration: {k: w.copy() for k, w in solver.model.params.items()}}))
    assert solver.epoch == epochs
    assert solver.best_val_acc == accuracies[best]
    for name, w in solver.model.params.items():
        np.testing.assert_array_equal(w, kept[4 * best][name])


@pytest.mark.parametrize("losses", [[inf, 2.0, 1.0], [inf, inf, inf]])
def test_an_infinite_validation_loss_is_never_better(data, losses):
    solver = with_checks(make_solver(data, num_epochs=2, patience_on="loss"), [0.1, 0.2, 0.3], losses)
    solver.train()
    assert solver.best_val_acc == (0.3 if losses[-1] < inf else 0.1)


def test_the_check_after_the_first_iteration_does_not_count_for_patience(data):
    """An untrained net may be lucky; training still gets `patience` epochs after the first."""
    solver = with_checks(make_solver(data, num_epochs=9, patience=2), [0.9, 0.1, 0.2, 0.1, 0.1, 0.3])
    solver.train()
    assert solver.epoch == 4
    assert solver.best_val_acc == 0.9


def test_patience_counts_from_the_first_check_if_an_epoch_is_one_iteration(data):
    solver = with_checks(make_solver(data, num_epochs=9, patience=2, batch_size=48), [0.9, 0.1, 0.2])
    solver.train()
    assert solver.epoch == 3


def test_batch_norm_after_a_few_iterations_outlasts_patience():
    """With averages that start from zeros, no check of the first epochs was better than that of the untrained net."""
    digits = load_digits()
    net = FullyConnectedNet([50], input_dim=64, normalization="batchnorm", weight_scale=None, rng=0, backend="numpy")
    data = {**digits.splits(), "X_train": digits.X_train[:30], "y_train": digits.y_train[:30]}
    data |= {"X_val": data["X_train"], "y_val": data["y_train"]}
    options = {"update_rule": "adam", "optim_config": {"learning_rate": 0.01}, "verbose": False, "rng": 0}
    solver = Solver(net, data, batch_size=30, sampling="epoch", num_epochs=5, patience=3, **options)
    solver.train()
    assert solver.epoch == 5
    assert solver.best_val_acc > 0.9


def test_validation_loss_is_the_cross_entropy_of_the_validation_samples_alone(data, backend):
    solver = make_solver(data, backend=backend, num_epochs=2, num_val_samples=None)
    solver.model.reg = 10.0
    solver.train()
    assert len(solver.val_loss_history) == len(solver.val_acc_history) == 3
    params, state = solver.current()
    solver.model.params, solver.model.state = params, state
    scores = to_host(solver.model.loss(data["X_val"]))
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = -np.log(probs[np.arange(len(probs)), data["y_val"]]).mean()
    np.testing.assert_allclose(solver.val_loss_history[-1], expected, rtol=1e-12)
    assert solver.evaluate(data["X_val"], data["y_val"]).accuracy == solver.val_acc_history[-1]


def test_the_first_of_tied_accuracies_is_the_best(data):
    solver, kept = with_checks(make_solver(data), [0.5, 0.7, 0.7, 0.6, 0.6]), []
    solver.train(
        lambda solver: solver.iteration == 4 and kept.append({k: w.copy() for k, w in solver.model.params.items()})
    )
    for name, w in solver.best_params.items():
        np.testing.assert_array_equal(w, kept[0][name])


def test_all_samples_are_taken_in_order_if_as_many_are_wanted(data):
    solver, seen = make_solver(data), []
    plain = solver.model.loss
    solver.model.loss = lambda X: seen.append(X) or plain(X)
    before = state_of(solver.streams["checks"])
    solver.check_accuracy(data["X_val"], data["y_val"], num_samples=24)
    assert state_of(solver.streams["checks"]) == before
    np.testing.assert_array_equal(np.concatenate(seen), data["X_val"])


def test_training_that_ran_out_of_patience_does_not_continue(data):
    solver = with_checks(make_solver(data, patience=1), [0.5, 0.4, 0.3])
    solver.train()
    losses = list(solver.loss_history)
    solver.train()
    assert solver.loss_history == losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience is 0; expected an int, 1 or more"),
        ({"sampling": "all"}, "sampling is 'all'; expected replacement or epoch"),
    ],
)
def test_invalid_options_are_refused_by_name(data, options, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make_solver(data, **options)


# ---- sampling and augmentation


def seen_by(solver):
    """Return a list to which each minibatch of the training is appended."""
    plain, seen = solver.model.loss, []

    def loss(X, y=None):
        if y is not None:
            seen.append(solver.backend.to_host(X))
        return plain(X, y)

    solver.model.loss = loss
    return seen


def test_epochs_hold_each_sample_once(data):
    solver = make_solver(data, sampling="epoch")
    seen = seen_by(solver)
    solver.train()
    for epoch in range(4):
        images = np.concatenate(seen[4 * epoch : 4 * epoch + 4])
        assert sorted(map(bytes, images)) == sorted(map(bytes, np.ascontiguousarray(data["X_train"])))


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1"])
def test_minibatches_are_augmented_on_the_device_from_their_own_stream(data, where):
    def change(X, seed):
        seeds.append(seed)
        return random_crop(X, 1, seed)

    seeds = []
    plain, changed = make_solver(data), make_solver(data, find_backend(where), augment=change)
    before, after = seen_by(plain), seen_by(changed)
    for solver in (plain, changed):
        solver.train()
    stream = spawn(3, 4)[3]
    assert seeds == [draw_seed(stream) for _ in range(16)]
    for X, Y, seed in zip(before, after, seeds, strict=True):
        np.testing.assert_array_equal(Y, random_crop(X, 1, seed))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("sampling", ["epoch", "replacement"])
def test_an_augmentation_of_minibatches_gets_rows_and_epoch_and_changes_labels(data, sampling, prefetch):
    def change(minibatch, seed):
        np.testing.assert_array_equal(minibatch.X, data["X_train"][minibatch.rows])
        np.testing.assert_array_equal(minibatch.y, data["y_train"][minibatch.rows])
        assert minibatch.num_classes == solver.model.num_classes
        epochs.append(minibatch.epoch)
        return minibatch._replace(y=np.zeros_like(minibatch.y))

    epochs, labels = [], []
    change.takes_minibatch = True
    solver = make_solver(data, sampling=sampling, augment=change)
    solver._prefetch, plain = prefetch, solver.model.loss
    solver.model.loss = lambda X, y=None: (labels.append(y), plain(X, y))[1]
    solver.train()
    assert epochs == [epoch for epoch in range(4) for _ in range(4)]
    assert all((y == 0).all() for y in labels if y is not None)


@pytest.mark.parametrize("spec", ["crop-flip", "reflect-alternate-cutout-contrast-mixup"])
def test_augmented_training_is_the_same_on_every_backend(data, backend, spec):
    histories = []
    for where in ("numpy", backend):
        solver = make_solver(data, where, augment=parse_augmentation(spec), sampling="epoch", schedule=cosine(16))
        solver.train()
        histories.append(solver.loss_history)
    np.testing.assert_allclose(*histories, rtol=1e-8)


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
@pytest.mark.parametrize("spec", ["crop-flip", "crop-alternate-mixup"])
def test_resumed_training_is_the_same_to_the_bit(data, tmp_path, stop, spec):
    def solver():
        return make_solver(
            data,
            update_rule="adam",
            augment=parse_augmentation(spec),
            sampling="epoch",
            schedule=warmup(3, cosine(16)),
            patience=2,
        )

    def save(solver):
        if solver.iteration == stop:
            solver.save(tmp_path / "checkpoint.safetensors")

    whole, resumed = solver(), solver()
    whole.train(save)
    resumed.resume(tmp_path / "checkpoint.safetensors")
    assert len(resumed.learning_rate_history) == stop
    resumed.train()
    for name in ("loss_history", "learning_rate_history", "train_acc_history", "val_acc_history", "epoch"):
        assert getattr(resumed, name) == getattr(whole, name)
    for name, w in whole.model.params.items():
        np.testing.assert_array_equal(w, resumed.model.params[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": cosine(17)}, r"schedule = cosine\(16, 0\.0\), but this one has cosine\(17, 0\.0\)"),
        ({"sampling": "replacement"}, "sampling = epoch, but this one has replacement"),
        ({"augment": parse_augmentation("flip")}, "augment = crop-flip, but this one has flip"),
        ({"clip_norm": 2.0}, r"clip_norm = None, but this one has 2\.0"),
        ({"param_options": {"b*": {"weight_decay": 1}}}, r"param_options.b\* = None, but this one has some"),
    ],
)
def test_a_checkpoint_of_other_schedule_or_sampling_is_refused(data, tmp_path, change, message):
    options = {"augment": parse_augmentation("crop-flip"), "sampling": "epoch", "schedule": cosine(16)}
    make_solver(data, **options).save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match=message):
        make_solver(data, **{**options, **change}).resume(tmp_path / "checkpoint.safetensors")


# ---- options by parameter


@pytest.mark.parametrize("scheduled", [False, True])
def test_patterns_give_parameters_options_of_their_own(data, scheduled):
    """Later patterns replace options of earlier ones; the recorded learning rate is that of the other parameters."""
    options = {"W*|b1": {"learning_rate": 0.5, "weight_decay": 0.25}, "b?": {"weight_decay": 0}}
    change = {"schedule": cosine(16)} if scheduled else {"lr_decay": 0.5}
    solver = make_solver(data, param_options=options, **change)
    factors = [cosine(16)(step) if scheduled else 0.5 ** (step // 4) for step in range(16)]
    seen = []
    solver.train(lambda solver: seen.append({name: dict(c) for name, c in solver.optim_configs.items()}))
    for step in (0, 2, 6):
        for name, config in seen[step].items():
            rate = 0.5 if name in ("W1", "W2", "W3", "b1") else 0.01
            assert config == {"learning_rate": rate * factors[step], "weight_decay": 0.25 * (name[0] == "W")}
    assert solver.learning_rate_history == [0.01 * factor for factor in factors]


def test_a_pattern_trains_like_rules_called_with_its_options(data):
    solver, plain = (
        make_solver(data, update_rule="adamw", **options)
        for options in ({"param_options": {"b*": {"weight_decay": 0}}}, {})
    )

    def update(grads, where):
        for name, w in plain.model.params.items():
            UPDATE_RULES["adamw"](w, grads[name], plain.optim_configs[name], in_place=True)

    for name, config in plain.optim_configs.items():
        config["weight_decay"] = 0 if name[0] == "b" else 0.01
    plain._update = update
    for training in (solver, plain):
        training.train()
    assert solver.loss_history == plain.loss_history


@pytest.mark.parametrize(
    ("param_options", "message"),
    [
        (
            {"gamma*": {"weight_decay": 0}},
            r"param_options has the pattern 'gamma\*', which matches no parameter; expected one that matches some of "
            "W1, b1, W2, b2, W3, b3",
        ),
        ({"b*": {"lr": 1}}, r"param_options\['b\*'\] has 'lr'; expected options of sgd: learning_rate, weight_decay"),
        ({"b*": {"weight_decay": -1}}, "weight_decay is -1; expected a finite number, 0 or more"),
        ({"b*": 0}, r"param_options has 'b\*': 0; expected a pattern, such as 'b\*', and a dict of options"),
        ("b*", r"param_options is 'b\*'; expected a dict of options by pattern"),
    ],
)
def test_invalid_options_by_parameter_are_refused(data, param_options, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make_solver(data, param_options=param_options)


# ---- frozen layers


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_frozen_layers_are_not_trained(data, backend, on_nonfinite):
    solver = make_solver(
        data, backend, update_rule="adamw", on_nonfinite=on_nonfinite, clip_norm=1.0, ema=0.5, lookahead=2
    )
    solver.model.freeze("conv1")
    before = {name: to_host(w).copy() for name, w in solver.model.params.items()}
    solver.train()
    latest = solver.current()[0]
    changed = {name for name, w in before.items() if not np.array_equal(w, to_host(latest[name]))}
    assert changed == {"W2", "b2", "W3", "b3"}


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1"])
def test_layers_may_be_unfrozen_during_training(data, where):
    solver = make_solver(data, find_backend(where))
    solver.model.freeze("*")
    solver.model.unfreeze("affine2")
    solver.train(lambda solver: solver.iteration == 6 and solver.model.unfreeze("*"))
    assert len(solver.loss_history) == 16
    plain = solver.model.loss

    def loss(X, y=None):
        result = plain(X, y)
        if y is not None:
            result[1]["W3"] = result[1]["W3"] * float("nan")
        return result

    solver.model.loss = loss
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError, match="the gradient of W3 stopped being finite"):
        solver.train()


def test_a_net_whose_layers_are_all_frozen_is_refused(data):
    solver = make_solver(data)
    solver.model.freeze("*")
    with pytest.raises(ArgumentError, match="all layers of the model are frozen: unfreeze those to train"):
        solver.train()


def test_a_model_of_ones_own_must_return_all_gradients(data):
    class Net:
        params = {"W": np.zeros((16, 3)), "b": np.zeros(3)}  # noqa: RUF012

        def loss(self, X, y=None):
            return X.reshape(len(X), -1) @ self.params["W"] if y is None else (0.5, {"W": np.ones((16, 3))})

    with pytest.raises(ArgumentError, match="the model's loss returned no gradient for b; expected one for each"):
        Solver(Net(), data, batch_size=12, verbose=False).train()


# ---- clipped gradients


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 5.0, 1e9])
def test_gradients_are_clipped_as_in_torch(backend, clip_norm, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    grads = {"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3), "scalar": rng.standard_normal(())}
    parameters = [torch.zeros(grad.shape, dtype=torch.float64) for grad in grads.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = torch.tensor(grad)
    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    clipped = clip_gradients({name: backend.asarray(grad, dtype) for name, grad in grads.items()}, clip_norm)
    for parameter, grad in zip(parameters, clipped.values(), strict=True):
        assert_array(grad, parameter.grad.numpy(), backend, dtype)


def test_training_clips_the_gradients_of_all_parameters_together(data, backend):
    solver, plain = (make_solver(data, backend, clip_norm=clip_norm) for clip_norm in (0.1, None))
    update = plain._update

    def clip(grads, where):
        norm = sum(float(np.sum(to_host(grad) ** 2)) for grad in grads.values()) ** 0.5
        assert norm > 0.1
        update({name: grad * (0.1 / (norm + 1e-6)) for name, grad in grads.items()}, where)

    plain._update = clip
    for training in (solver, plain):
        training.train()
    np.testing.assert_allclose(solver.loss_history, plain.loss_history, rtol=1e-10)


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1"])
def test_clipping_an_infinite_gradient_does_not_hide_it(data, where):
    for on_nonfinite in ("stop", "skip"):
        solver = make_solver(data, find_backend(where), clip_norm=1.0, on_nonfinite=on_nonfinite)
        plain = solver.model.loss

        def loss(X, y=None, solver=solver, plain=plain):
            result = plain(X, y)
            if y is not None and solver.iteration == 5:
                result[1]["b1"] = result[1]["b1"] * float("inf")
            return result

        solver.model.loss = loss
        with np.errstate(all="ignore"):
            if on_nonfinite == "stop":
                with pytest.raises(NonFiniteLossError, match="the gradient of b1 stopped being finite at iteration 6"):
                    solver.train()
            else:
                solver.train()
                assert solver.skipped == 1
                assert all(np.isfinite(to_host(w)).all() for w in solver.model.params.values())


@pytest.mark.parametrize("clip_norm", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_clip_norm_that_is_no_positive_number_is_refused(data, clip_norm):
    message = f"clip_norm is {clip_norm!r}; expected a finite number above 0"
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make_solver(data, clip_norm=clip_norm)


# ---- the command line


def train(folder, *words):
    result = call("train", "--num-train", 200, "--epochs", 3, "--augment", "none", *words, "--out", folder)
    assert result.exit_code == 0, result.output
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("words", "factors"),
    [
        (["--schedule", "step", "--lr-decay", "0.5"], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]),
        (
            ["--schedule", "step", "--lr-decay", "0.5", "--decay-every", "2", "--warmup", "1"],
            [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5],
        ),
        (["--schedule", "constant"], [1] * 12),
        (["--schedule", "cosine"], [(1 + np.cos(np.pi * step / 12)) / 2 for step in range(12)]),
        (["--schedule", "one-cycle"], [one_cycle(12)(step) for step in range(12)]),
        (["--schedule", "constant", "--warmup", "0.5"], [0.5, *11 * [1]]),
        (["--schedule", "constant", "--warmup", "1.5"], [*np.arange(1, 7) / 6, *6 * [1]]),
    ],
)
def test_command_follows_the_schedule_and_writes_learning_rates(tmp_path, words, factors):
    rows, _ = train(tmp_path / "run", *words, "--learning-rate", "0.002")
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], np.multiply(0.002, factors))


def test_command_with_every_option_is_reproducible(tmp_path):
    words = [
        "--augment",
        "reflect-cutout2-brightness-mixup0.4",
        "--sampling",
        "epoch",
        "--schedule",
        "cosine",
        "--warmup",
        "1",
        "--patience",
        "1",
        "--patience-on",
        "loss",
    ]
    first, config = train(tmp_path / "a", *words)
    second, _ = train(tmp_path / "b", *words)
    assert first == second
    names = ("sampling", "schedule", "warmup", "patience", "patience_on", "augment")
    assert {name: config["settings"][name] for name in names} == {
        "sampling": "epoch",
        "schedule": "cosine",
        "warmup": 1,
        "patience": 1,
        "patience_on": "loss",
        "augment": "reflect-cutout2-brightness-mixup0.4",
    }
    assert " ".join(words[:2]) in config["command"]


@pytest.mark.parametrize("augment", ["flip", "crop-alternate"])
def test_a_flip_of_digits_warns_that_it_changes_classes(tmp_path, augment):
    words = ("train", "--num-train", 50, "--epochs", 1, "--augment", augment, "--out", tmp_path / "run")
    result = call(*words)
    assert result.exit_code == 0
    word = "alternate" if "alternate" in augment else "flip"
    assert (
        f"xpconv: warning: augment has {word}, but mirroring changes the class of some digits, such as 2 and 5: leave "
        "it out" in result.stderr
    )


def solver_of(*words):
    """Return the Solver that the command line makes with these options, beside --num-train 200."""
    settings = settings_for("digits", num_train=200, **dict(zip(words[::2], words[1::2], strict=True)))
    return build_solver(settings, load_dataset("digits")), settings


def test_command_decays_weights_but_not_norms_and_biases():
    solver, settings = solver_of("optimizer", "adamw", "weight_decay", 0.25)
    decays = {name: config["weight_decay"] for name, config in solver.optim_configs.items()}
    assert decays == {name: 0.25 if name[0] == "W" else 0 for name in solver.model.params}
    assert settings.reg == 0
    assert solver_of("optimizer", "adam")[1].reg == 1e-3
    assert solver_of("optimizer", "adamw")[1].reg == 0
    assert solver_of("optimizer", "adamw")[0].optim_configs["W1"]["weight_decay"] == 0.01
    assert solver_of("optimizer", "adamw", "reg", 0.5)[1].reg == 0.5
    assert solver_of("optimizer", "adamw", "weight_decay", 0.0)[1].reg == 1e-3


def test_command_takes_momentum_only_for_rules_that_have_it():
    for rule in ("sgd_momentum", "sgd_nesterov", "muon"):
        solver, _ = solver_of("optimizer", rule, "momentum", 0.5)
        assert {config["momentum"] for config in solver.optim_configs.values()} == {0.5}
    with pytest.raises(
        ArgumentError,
        match=r"momentum is 0\.5, which has no effect with the optimizer adam: leave it out, or take one of sgd",
    ):
        solver_of("optimizer", "adam", "momentum", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr_decay": 0.5},
            "lr_decay is 0.5, which has no effect if schedule is one-cycle: leave it out, or set schedule",
        ),
        ({"decay_every": 1}, "decay_every is 1, which has no effect if schedule is one-cycle: leave it out, or set"),
        (
            {"norm_sync": "whole", "model": "convnet"},
            "norm_sync is whole, which has no effect without batch norm over 2",
        ),
        (
            {"norm_sync": "ghost", "microbatches": 2},
            "norm_sync is ghost, which has no effect without batch norm over 2",
        ),
        ({"norm_sync": "ghost", "microbatches": 2, "model": "fc", "norm": "group"}, "norm_sync is ghost, which has no"),
        (
            {"strict": True},
            "strict is True, which has no effect on digits: leave it out, or train on a folder of images",
        ),
        ({"image_size": 8}, "image_size is 8, which has no effect on digits: leave it out, or train on a folder of"),
        ({"momentum": 0.5}, "momentum is 0.5, which has no effect with the optimizer adamw: leave it out, or take one"),
        (
            {"freeze": "conv*"},
            "freeze is conv*, which has no effect without a trained model: leave it out, or set init",
        ),
        (
            {"model": "fc", "init": "net"},
            "model is fc, which has no effect beside init, whose net is trained: leave out",
        ),
        (
            {"dropout": 0.5, "init": "net"},
            "dropout is 0.5, which has no effect beside init, whose net is trained: leave",
        ),
    ],
)
def test_an_option_without_effect_is_refused(options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        settings_for("digits", **options)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_memory_for_images_is_an_option_of_folders_only(command, tmp_path):
    model = tmp_path / "model.safetensors"
    save_model(ThreeLayerConvNet(input_dim=(1, 8, 8), rng=0), model)
    words = ["--out", tmp_path / "run"] if command == "train" else [model]
    result = call(command, *words, "--max-memory", 256)
    assert (result.exit_code, result.stderr) == (
        1,
        "xpconv: error: --max-memory is 256, which has no effect on digits: leave it out, or take a folder of images\n",
    )


def test_the_command_of_a_run_has_only_options_with_an_effect():
    settings = settings_for("pictures", init="net", strict=True, schedule="step")
    words = shlex.split(settings.command())
    assert {"--init", "--strict", "--lr-decay", "--decay-every"} <= set(words)
    assert not {"--model", "--norm-sync"} & set(words)
    assert not {"--lr-decay", "--decay-every", "--norm-sync"} & set(shlex.split(settings_for("digits").command()))


def test_command_evaluates_and_saves_the_averages(tmp_path):
    words = ["--ema", "0.9", "--lookahead", "3", "--clip-norm", "0.5", "--optimizer", "lion", "--weight-decay", "0.1"]
    _, config = train(tmp_path / "run", *words)
    names = ("ema", "lookahead", "clip_norm", "weight_decay", "reg")
    assert [config["settings"][name] for name in names] == [0.9, 3, 0.5, 0.1, 0]
    averaged, _ = solver_of(
        *("ema", 0.9, "lookahead", 3, "clip_norm", 0.5, "optimizer", "lion", "weight_decay", 0.1),
        *("epochs", 3, "augment", "none"),
    )
    averaged.train()
    saved = load_model(tmp_path / "run" / "model.safetensors", "numpy")
    for name, w in averaged.best_params.items():
        np.testing.assert_array_equal(saved.params[name], w)


def test_an_array_as_learning_rate_decays_once_per_epoch_in_a_copy(data):
    rate = np.array(0.5)
    solver = make_solver(data, optim_config={"learning_rate": rate}, lr_decay=0.5, num_epochs=3, batch_size=48)
    solver.train()
    assert solver.learning_rate_history == [0.5, 0.25, 0.125]
    assert rate == 0.5


@pytest.mark.parametrize(("rule", "known"), [("sgd", "learning_rate"), ("adam", "learning_rate, beta1, beta2")])
def test_unknown_options_of_the_rule_are_refused_by_name(data, rule, known):
    with pytest.raises(ArgumentError, match=f"optim_config has 'lr', 'rate'; expected options of {rule}: {known}"):
        make_solver(data, update_rule=rule, optim_config={"lr": 3, "learning_rate": 1e-3, "rate": 2})


def test_accuracy_needs_a_label_for_each_sample(data):
    with pytest.raises(ArgumentError, match=r"X has 3 samples but y has shape \(48,\); expected one label for each"):
        make_solver(data).check_accuracy(data["X_train"][:3], data["y_train"])


@pytest.mark.parametrize("rule", UPDATE_RULES)
@pytest.mark.parametrize("where", ["numpy", "array_api_strict"])
def test_training_goes_on_where_numpy_raises_floating_point_errors(data, rule, where):
    solver = make_solver(data, find_backend(where), update_rule=rule, optim_config={"learning_rate": 1e-3})
    plain = solver.model.loss

    def tiny(X, y=None):
        if y is None:
            return plain(X)
        loss, grads = plain(X, y)
        return loss, {name: grad * 1e-200 for name, grad in grads.items()}

    solver.model.loss = tiny
    with np.errstate(all="raise"):
        solver.train()
    assert solver.iteration == 16


def test_read_only_parameters_are_refused_by_name(data):
    solver = make_solver(data)
    solver.model.params["b1"].flags.writeable = False
    with pytest.raises(
        ArgumentError, match=r"model\.params\['b1'\] is read-only; expected an array that can be updated"
    ):
        solver.train()


@pytest.mark.torch
def test_torch_parameters_that_require_gradients_are_refused_by_name(data):
    torch = pytest.importorskip("torch")
    solver = make_solver(data, "torch")
    solver.model.params["W2"] = torch.nn.Parameter(solver.model.params["W2"])
    with pytest.raises(ArgumentError, match=r"model\.params\['W2'\] requires gradients of torch; expected .*detach"):
        solver.train()


def test_patience_starts_over_in_another_round(data):
    """The first check of a round does not count as an epoch without a better accuracy."""
    solver = with_checks(make_solver(data, patience=1, num_epochs=2), [0.5, 0.6, 0.7, 0.1, 0.2, 0.3])
    for iterations in (8, 16):
        solver.train()
        assert solver.iteration == iterations


def test_best_params_stay_when_another_solver_trains_the_model(data):
    first = make_solver(data)
    first.train()
    kept = {name: w.copy() for name, w in first.best_params.items()}
    Solver(first.model, data, num_epochs=1, batch_size=12, verbose=False, rng=0).train()
    for name, w in kept.items():
        np.testing.assert_array_equal(first.best_params[name], w)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_val_samples": 0}, "num_val_samples is 0; expected an int, 1 or more"),
        ({"num_train_samples": 5.0}, "num_train_samples is 5.0; expected an int, 1 or more"),
        ({"lr_decay": "x"}, "lr_decay is 'x'; expected a finite number, 0 or more"),
        ({"lr_decay": float("nan")}, "lr_decay is nan; expected a finite number, 0 or more"),
        ({"lr_decay": float("inf")}, "lr_decay is inf; expected a finite number, 0 or more"),
        ({"optim_config": {"learning_rate": float("nan")}}, "learning_rate is nan; expected a finite number, 0 or"),
        ({"optim_config": {"learning_rate": -1}}, "learning_rate is -1; expected a finite number, 0 or more"),
        ({"update_rule": "adam", "optim_config": {"epsilon": float("inf")}}, "epsilon is inf; expected a finite"),
    ],
)
def test_options_are_checked_before_training(data, options, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make_solver(data, **options)


def test_validation_images_must_have_the_shape_of_training_images(data):
    data["X_val"] = data["X_val"][:, :, :3]
    with pytest.raises(ArgumentError, match=r"X_val has samples of shape \(1, 3, 4\); expected \(1, 4, 4\)"):
        make_solver(data)


def test_schedules_accept_numpy_integers():
    assert [cosine(np.int64(4))(2), step_decay(np.int32(2))(2), warmup(np.int64(2))(0)] == [0.5, 0.1, 0.5]
