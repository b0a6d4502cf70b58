"""Checks before a training: correct nets pass, each mistake is found with its cause, and nothing changes."""

import math
import re
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

from tests.commands import call
from tests.helpers import find_backend
from xpconv import ConvNet, FullyConnectedNet, Preprocessing, Solver, ThreeLayerConvNet, TwoLayerNet
from xpconv.backend._memory import peak_bytes
from xpconv.cs231n.classifiers.fc_net import FullyConnectedNet as CourseNet
from xpconv.cs231n.solver import Solver as CourseSolver
from xpconv.data import load_digits
from xpconv.data.augment import parse_augmentation
from xpconv.errors import ArgumentError, PreflightError
from xpconv.random import state_of
from xpconv.training import preflight
from xpconv.training.optim import UPDATE_RULES
from xpconv.training.preflight import check_training
from xpconv.training.schedules import cosine, step_decay, warmup

SHAPE = (1, 8, 8)
CHECKS = ["initial loss", "overfitting a small batch", "gradients", "memory"]


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def make_net(kind, **options):
    makers = {
        "two-layer": lambda: TwoLayerNet(input_dim=64, **options),
        "fc": lambda: FullyConnectedNet([40, 40], input_dim=64, keep_prob=0.8, **options),
        "fc, batchnorm": lambda: FullyConnectedNet([30] * 3, input_dim=64, normalization="batchnorm", **options),
        "fc, layernorm": lambda: FullyConnectedNet([30] * 3, input_dim=64, normalization="layernorm", **options),
        "three-layer": lambda: ThreeLayerConvNet(input_dim=SHAPE, num_filters=8, filter_size=3, **options),
        "convnet": lambda: ConvNet([8, "pool", 16], input_dim=SHAPE, **options),
        "convnet, groupnorm": lambda: ConvNet([8, "pool", 16], input_dim=SHAPE, normalization="groupnorm", **options),
    }
    net = makers[kind]()
    net.preprocessing = Preprocessing(128.0, 64.0)
    return net


KINDS = ["two-layer", "fc", "fc, batchnorm", "fc, layernorm", "three-layer", "convnet", "convnet, groupnorm"]


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_scale": None}, {"loss": "svm", "weight_scale": None}, {"reg": 0.1, "dtype": "float64"}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_net_passes(digits, kind, options):
    findings = check_training(make_net(kind, rng=0, **options), digits.X_train, digits.y_train)
    assert [finding.name for finding in findings] == CHECKS


def test_nets_pass_on_every_backend(digits, backend):
    findings = check_training(make_net("fc, batchnorm", rng=0, backend=backend), digits.X_train, digits.y_train)
    assert all(finding.passed for finding in findings)


def failures(model, X, y, **options):
    """Return the texts of the failed checks by name, and check that the error lists them."""
    seen = []
    with pytest.raises(PreflightError) as caught:
        check_training(model, X, y, on_finding=seen.append, **options)
    failed = {finding.name: finding.text for finding in seen if not finding.passed}
    head, *lines = str(caught.value).split("\n")
    assert head == f"{len(failed)} of 4 checks before training failed:"
    assert lines == [f"{name}: {text}" for name, text in failed.items()]
    return failed


# ---- the initial loss


def test_initial_loss_is_reported_with_its_expected_value(digits):
    net = TwoLayerNet(input_dim=64, weight_scale=1e-4, reg=2.0, rng=0)
    (first, *_) = check_training(net, digits.X_train, digits.y_train)
    penalty = sum(float((net.params[name] ** 2).sum()) for name in ("W1", "W2"))
    assert f"about {math.log(10) + penalty:.4g} (ln 10 + {penalty:.2g} for L2), at most" in first.text
    svm = TwoLayerNet(input_dim=64, weight_scale=1e-4, loss="svm", num_classes=10, rng=0)
    assert "9; expected about 9 (10 - 1), at most 36" in check_training(svm, digits.X_train, digits.y_train)[0].text


def test_nets_with_loss_options_pass(digits):
    options = {"label_smoothing": 0.1, "class_weights": [1.0, 2.0] * 5, "reduction": "sum"}
    net = TwoLayerNet(input_dim=64, rng=0, loss_options=options)
    findings = check_training(net, digits.X_train, digits.y_train)
    assert "(100 ln 10)" in findings[0].text


@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_too_large_weights_fail(digits, loss):
    net = TwoLayerNet(input_dim=64, weight_scale=3.0, loss=loss, rng=0)
    text = failures(net, digits.X_train, digits.y_train)["initial loss"]
    assert text.endswith(": normalise the images, take a smaller weight_scale, or make the loss a mean over images")


def test_too_small_a_loss_fails(digits):
    class Half(TwoLayerNet):
        def loss(self, X, y=None):
            found = super().loss(X, y)
            return found if y is None else (found[0] / 4, {name: grad / 4 for name, grad in found[1].items()})

    failed = failures(Half(input_dim=64, rng=0), digits.X_train, digits.y_train)
    assert list(failed) == ["initial loss"]
    assert "0.575" in failed["initial loss"]
    assert "the loss leaves out a term, or the model is already trained" in failed["initial loss"]


# ---- overfitting, and gradients


class Wrong(FullyConnectedNet):
    """A net with wrong gradients of the second layer."""

    def loss(self, X, y=None):
        found = super().loss(X, y)
        if y is None:
            return found
        loss, grads = found
        return loss, {name: -grad if name.endswith("2") else grad for name, grad in grads.items()}


def test_wrong_gradients_fail_and_correct_ones_are_listed(digits):
    net = Wrong([30], input_dim=64, weight_scale=0.05, rng=0, preprocessing=Preprocessing(128.0, 64.0))
    failed = failures(net, digits.X_train, digits.y_train)
    assert list(failed) == ["overfitting a small batch", "gradients"]
    assert "after 1000 steps of Adam: look for wrong gradients" in failed[CHECKS[1]]
    assert failed["gradients"] == (
        "wrong for W2, b2, correct for W1, b1: look for the mistake in the backward passes of the layer of b2 and the "
        "layers after it"
    )


def test_dead_units_fail(digits):
    net = TwoLayerNet(input_dim=64, rng=0)
    net.params["b1"] -= 1e4
    failed = failures(net, digits.X_train, digits.y_train)
    assert list(failed) == ["overfitting a small batch"]
    assert "dead units" in failed[CHECKS[1]]


def test_identical_images_with_different_labels_fail(digits):
    X, y = np.ones((40, 64)), np.arange(40) % 10
    failed = failures(TwoLayerNet(input_dim=64, rng=0), X, y)
    assert list(failed) == ["overfitting a small batch"]
    assert failed[CHECKS[1]].startswith("4 of 20 images are classified correctly")
    assert failed[CHECKS[1]].endswith("equal images with different labels")


def test_gradients_of_a_random_loss_are_reported_as_not_checked(digits):
    class Noisy(TwoLayerNet):
        draws = np.random.default_rng(0)

        def loss(self, X, y=None):
            found = super().loss(X, y)
            return found if y is None else (found[0] + 1e-3 * self.draws.random(), found[1])

    findings = check_training(Noisy(input_dim=64, rng=0), digits.X_train, digits.y_train)
    assert "not checked: two passes over the same images give different losses" in findings[2].text


def test_errors_of_the_net_itself_are_raised(digits):
    with pytest.raises(ArgumentError, match=r"X has shape \(100, 1, 8, 8\); expected \(N, 65\)"):
        check_training(TwoLayerNet(input_dim=65, rng=0), digits.X_train, digits.y_train)


def test_model_that_cannot_be_copied_is_refused(digits):
    class Own:
        def __init__(self):
            self.params, self.module = {"W1": np.zeros((64, 10))}, math

    with pytest.raises(ArgumentError, match=r"model is .*, which cannot be copied \(.*\); expected one that copy.deep"):
        check_training(Own(), digits.X_train, digits.y_train)


def test_training_data_without_images_is_refused(digits):
    with pytest.raises(ArgumentError, match=r"X has shape \(0, 1, 8, 8\); expected \(N, ...\) with N at least 1"):
        check_training(TwoLayerNet(input_dim=64, rng=0), digits.X_train[:0], digits.y_train[:0])


# ---- memory


def test_memory_of_a_large_batch_is_estimated_from_small_ones(monkeypatch):
    """The estimate is within a factor of 1.5 of what tracemalloc measures for a batch of 256."""
    monkeypatch.setenv("XPCONV_NUM_THREADS", "1")  # more threads make the peak depend on their timing
    rng, net = np.random.default_rng(0), ConvNet([16, "pool", 16], input_dim=(3, 32, 32), rng=0)
    X, y = rng.standard_normal((256, 3, 32, 32), dtype=np.float32), rng.integers(10, size=256)
    measured = min(
        peak_bytes(net.backend, lambda: net.loss(X, y)) for _ in range(3)
    )  # some passes allocate scratch memory that stays
    text = check_training(net, X, y, batch_size=256)[3].text
    estimate = float(text.split("about ")[1].split(" MiB")[0]) * 2**20
    assert measured / 1.5 < estimate < measured * 1.5
    assert text.endswith("; at most all 256 images fit")


def test_too_large_a_batch_fails_and_the_largest_that_fits_is_named(digits, monkeypatch):
    monkeypatch.setattr(preflight, "free_bytes", lambda backend: 4 * 2**20)
    net = make_net("convnet", rng=0)
    failed = failures(net, digits.X_train, digits.y_train, batch_size=1000)
    assert list(failed) == ["memory"]
    assert "a step of 1000 images takes about" in failed["memory"]
    assert "of the 4 MiB that are free: take a batch_size of about" in failed["memory"]
    most = int(failed["memory"].split("batch_size of about ")[1].split(",")[0])
    assert 50 < most < 1000
    assert check_training(net, digits.X_train, digits.y_train, batch_size=most // 2)[3].passed


def test_the_first_steps_take_little_memory_for_any_batch_size(digits):
    """Otherwise this check would run out of memory before the result of the memory check is raised."""
    seen = []
    net = TwoLayerNet(input_dim=64, rng=0, preprocessing=Preprocessing(128.0, 64.0))
    with pytest.raises(PreflightError, match=r"^1 of 5 checks before training failed:\nmemory: "):
        check_training(
            net, digits.X_train, digits.y_train, batch_size=10**12, update_rule="adam", on_finding=seen.append
        )
    assert [finding.passed for finding in seen] == [True, True, True, False, True]


def test_unknown_memory_is_reported_as_not_measured(digits, monkeypatch):
    monkeypatch.setattr(preflight, "peak_bytes", lambda backend, call: None)
    findings = check_training(TwoLayerNet(input_dim=64, rng=0), digits.X_train, digits.y_train)
    assert findings[3].text == "not measured: numpy does not report its memory here"


# ---- the first steps


def first_steps(net, digits, rule, rate, **options):
    """Return the finding of the first steps, failed or not."""
    seen = []
    with suppress(PreflightError):
        check_training(
            net,
            digits.X_train,
            digits.y_train,
            update_rule=rule,
            optim_config={"learning_rate": rate},
            on_finding=seen.append,
            **options,
        )
    assert [finding.name for finding in seen] == [*CHECKS, "first steps"]
    return seen[-1]


@pytest.mark.parametrize("rule", UPDATE_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_usual_learning_rates_pass_and_too_large_ones_fail(digits, kind, rule):
    usual = {"sgd": 1e-2, "lion": 1e-4, "muon": 1e-2}.get(rule, 1e-3)
    assert first_steps(make_net(kind, rng=0), digits, rule, usual).passed
    found = first_steps(make_net(kind, rng=0), digits, rule, 1000.0)
    assert not found.passed
    assert re.fullmatch(
        r"the loss rises from \S+ to \S+ within 20 steps: take a tenth of the learning rate \(it is 1000\)", found.text
    )


def test_a_loss_that_does_not_recover_fails(digits):
    found = first_steps(make_net("two-layer", rng=0), digits, "sgd", 10.0)
    first, largest = map(float, re.findall(r"from (\S+) to (\S+) within", found.text)[0])
    assert not found.passed
    assert largest > 10 * first


def test_frozen_layers_options_by_parameter_and_clipping_are_those_of_the_training(digits):
    net, seen = make_net("two-layer", rng=0), {}

    def rule(w, dw, config):
        seen.setdefault(config["name"], []).append(float(np.sum(dw**2)))
        return w - 0.01 * dw, config

    net.freeze("affine1")
    check_training(
        net,
        digits.X_train,
        digits.y_train,
        update_rule=rule,
        param_options={name: {"name": name} for name in net.params},
        clip_norm=1e-3,
    )
    assert set(seen) == {"W2", "b2"}
    np.testing.assert_allclose(np.sqrt(np.add(seen["W2"], seen["b2"])), 1e-3, rtol=0.01)
    assert [layer.trainable for layer in net.layers] == [False, True, True]


class Planned:
    """A model whose losses are given."""

    def __init__(self, losses):
        self.params, self.losses = {"W1": np.zeros((1, 1))}, iter(losses)

    def loss(self, X, y=None):
        return next(self.losses), {"W1": np.zeros((1, 1))}


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([2.0, 19.0, 3.0], "the loss goes from 2 to 3 in 20 steps"),
        ([2.0, 150.0, 1.0], "the loss goes from 2 to 1 in 20 steps"),
        ([2.0, 21.0, 3.0], "the loss rises from 2 to 21 within 20 steps: take a tenth of the learning rate"),
        ([2.0, 201.0, 1.0], "the loss rises from 2 to 201 within 20 steps: take a tenth of the learning rate"),
        ([2.0, 1e308, 1e308], "the loss rises from 2 to 1e+308 within 20 steps: take a tenth of the learning rate"),
        ([2.0, np.inf, 1.0], "the loss rises from 2 to inf within 20 steps: take a tenth of the learning rate"),
        ([2.0, 1.0, np.nan], "the loss rises from 2 to nan within 20 steps: take a tenth of the learning rate"),
    ],
)
def test_the_first_steps_may_not_throw_the_loss_too_far(losses, text):
    model, X, y = Planned([*losses[:1] * 18, *losses[1:]]), np.zeros((20, 1)), np.zeros(20, np.int64)
    subject = SimpleNamespace(replica=lambda: model, images=lambda count: (X[:count], y[:count]))
    found = preflight._first_steps(subject, 20, lambda w, dw, config: (w, config), {"W1": {}}, None, [1.0] * 20)
    assert found.text == text
    assert found.passed == ("goes" in text)


def test_first_steps_follow_the_schedule_and_the_rule_of_the_training(digits):
    net = make_net("two-layer", rng=0)
    assert first_steps(net, digits, "adam", 1000.0, schedule=lambda step: 1e-6).passed
    taken = []

    def rule(w, dw, config):
        taken.append((config["learning_rate"], dw.shape))
        return w - config["learning_rate"] * dw, config

    assert first_steps(net, digits, rule, 1e-3, schedule=lambda step: 1 - step / 100).passed
    assert [rate for rate, _ in taken[::4]] == pytest.approx([1e-3 * (1 - step / 100) for step in range(20)])
    assert {shape for _, shape in taken} == {w.shape for w in net.params.values()}


@pytest.mark.parametrize("schedule", [warmup(100, cosine(1000)), warmup(21), step_decay(30, 3.0)])
def test_the_largest_learning_rate_of_a_schedule_is_tried(digits, schedule):
    taken = []

    def rule(w, dw, config):
        taken.append(config["learning_rate"])
        return w, config

    net = TwoLayerNet(input_dim=64, rng=0)
    first_steps(net, digits, rule, 1.0, schedule=schedule, num_steps=200)
    rates = taken[:: len(net.params)]
    assert len(rates) == 20
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (schedule(0), max(schedule(step) for step in range(200)))


def test_too_large_a_learning_rate_fails_behind_a_warm_up(digits):
    data = {**digits.splits(), "X_train": digits.X_train[:200], "y_train": digits.y_train[:200]}
    solver = Solver(
        make_net("two-layer", rng=0),
        data,
        optim_config={"learning_rate": 1000.0},
        schedule=warmup(40_000),
        batch_size=50,
        num_epochs=10_400,
        verbose=False,
        preflight=True,
        rng=0,
    )
    with pytest.raises(PreflightError, match=r"first steps: .* take a tenth of the learning rate \(it is 1000\)"):
        solver.train()


# ---- in a training


@pytest.mark.parametrize("where", ["numpy", "array_api_strict:device1"])
@pytest.mark.parametrize("rng", [3, None])
def test_training_has_the_same_bits_with_the_checks_and_without(digits, where, rng):
    """Compare parameters, running statistics, the rule's memory, histories, streams and the global state."""
    left = []
    for wanted in (False, True):
        np.random.seed(5)
        net = FullyConnectedNet(
            [20],
            input_dim=64,
            normalization="batchnorm",
            keep_prob=0.8,
            rng=rng,
            reg=1e-3,
            backend=find_backend(where),
            preprocessing=Preprocessing(128.0, 64.0),
        )
        solver = Solver(
            net,
            {**digits.splits(), "X_train": digits.X_train[:60], "y_train": digits.y_train[:60]},
            update_rule="adam",
            batch_size=20,
            num_epochs=2,
            num_val_samples=20,
            verbose=False,
            rng=rng,
            augment=parse_augmentation("crop-flip"),
            preflight=wanted,
        )
        solver.train()
        stores = [*solver.current(), solver.best_params, *solver.optim_configs.values()]
        arrays = [
            net.backend.to_host(value) if hasattr(value, "shape") else value
            for store in stores
            for value in store.values()
        ]
        histories = [solver.loss_history, solver.train_acc_history, solver.val_acc_history, solver.health_history]
        streams = [state_of(stream) for stream in (*solver.streams.values(), net.seed_stream)]
        left.append((arrays, histories, streams, np.random.rand()))
    (plain, *rest), (checked, *other) = left
    assert rest == other
    for value, again in zip(plain, checked, strict=True):
        np.testing.assert_array_equal(value, again, strict=True)


def test_checks_change_no_random_draw_of_the_courses_nets(digits):
    data = {**digits.splits(), "X_train": digits.X_train[:60], "y_train": digits.y_train[:60]}
    losses = []
    for wanted in (False, True):
        np.random.seed(5)
        net = CourseNet([20], 64, dropout_keep_ratio=0.8, dtype=np.float64)
        solver = CourseSolver(net, data, num_epochs=1, batch_size=20, verbose=False)
        if wanted:
            check_training(net, data["X_train"], data["y_train"])
        solver.train()
        losses.append(solver.loss_history)
    assert losses[0] == losses[1]


def test_a_failed_check_raises_before_the_first_iteration(digits, capsys):
    net = TwoLayerNet(input_dim=64, weight_scale=10.0, rng=0)
    before = {name: w.copy() for name, w in net.params.items()}
    solver = Solver(net, digits, preflight=True, rng=0)
    with pytest.raises(PreflightError, match="checks before training failed:\ninitial loss: "):
        solver.train()
    assert (solver.iteration, solver.loss_history) == (0, [])
    for name, w in before.items():
        np.testing.assert_array_equal(net.params[name], w)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"passed  {name}" for name in [*CHECKS[1:], "first steps"]]


def test_a_resumed_training_is_not_checked_again(digits, tmp_path, capsys):
    def solver(**options):
        return Solver(TwoLayerNet(input_dim=64, rng=0), digits, num_epochs=1, rng=0, **options)

    solver(verbose=False).train(lambda solver: solver.iteration == 3 and solver.save(tmp_path / "checkpoint"))
    resumed = solver(preflight=True)
    resumed.resume(tmp_path / "checkpoint")
    resumed.train()
    assert "initial loss" not in capsys.readouterr().out


def test_command_checks_before_it_trains(tmp_path):
    words = ["train", "--preflight", "--num-train", "200", "--epochs", "1"]
    words += ["--model", "fc", "--augment", "none"]
    result = call(*words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    shown = [line.split(":")[0] for line in result.output.splitlines() if line.startswith("passed")]
    assert shown == [f"passed  {name}" for name in [*CHECKS, "first steps"]]
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_command_refuses_too_large_a_learning_rate(tmp_path):
    words = ["train", "--preflight", "--num-train", "200", "--epochs", "1", "--learning-rate", "1000"]
    result = call(*words, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "xpconv: error: 1 of 5 checks before training failed:\nfirst steps: the loss rises from" in result.stderr
    assert result.output.count("first steps") == 1
    assert max(map(len, result.output.splitlines())) < 140
    assert not (tmp_path / "run").exists()
