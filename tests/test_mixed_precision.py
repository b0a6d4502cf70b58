"""Mixed precision: float16 activations on CuPy, with parameters, sums and updates in float32."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest

from benchmarks import airbench
from tests.helpers import assert_array, find_backend
from tests.solvers import assert_same_results, results_of, saving_at
from xpconv import Solver, get_backend, nn
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, CheckpointError, NonFiniteLossError
from xpconv.training import _loss_scale

gpu = pytest.mark.gpu
IMAGE = (2, 8, 8)


def layers():
    return [
        nn.Conv(4, padding="same", bias=False),
        nn.BatchNorm(),
        nn.Relu(),
        nn.MaxPool(),
        nn.Residual([nn.Conv(4, padding="same"), nn.GroupNorm(groups=2), nn.Dropout(0.9)]),
        nn.AvgPool(2),
        nn.Affine(6),
        nn.Relu(),
        nn.Affine(3),
    ]


@pytest.fixture
def backend():
    if os.environ.get("XPCONV_ACCELERATE") == "0":
        pytest.skip("the portable versions have no mixed precision")
    return find_backend("cupy")


def make_model(backend, precision="mixed", net=None):
    return nn.Sequential(net or layers(), input_shape=IMAGE, rng=0, reg=1e-3, backend=backend, precision=precision)


def make_data(count=48):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((count, *IMAGE)).astype(np.float32), rng.integers(0, 3, count)
    X[np.arange(count), 0, 2 * y] += 2
    return X, y


def make_solver(backend, precision="mixed", net=None, **options):
    X, y = make_data()
    data = {"X_train": X, "y_train": y, "X_val": X[:8], "y_val": y[:8]}
    options = {"num_epochs": 4, "batch_size": 8, "optim_config": {"learning_rate": 0.01}, "verbose": False} | options
    return Solver(make_model(backend, precision, net), data, rng=0, num_train_samples=8, **options)


@pytest.mark.parametrize("spec", ["numpy", "array_api_strict"])
def test_elsewhere_the_error_names_the_backend(spec):
    with pytest.raises(
        ArgumentError, match=r"precision is 'mixed', but the model is on .*; expected 'full', or the cupy"
    ):
        make_model(get_backend(spec))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ArgumentError, match="precision is 'half'; expected full or mixed"):
        make_model(get_backend("numpy"), "half")


@gpu
def test_float64_and_portable_versions_have_no_mixed_precision(backend, monkeypatch):
    with pytest.raises(ArgumentError, match="precision is 'mixed', but dtype is 'float64'; expected 'float32'"):
        nn.Sequential([nn.Affine(2)], input_shape=(3,), dtype="float64", backend=backend, precision="mixed")
    monkeypatch.setenv("XPCONV_ACCELERATE", "0")
    with pytest.raises(ArgumentError, match="do not set XPCONV_ACCELERATE to 0"):
        make_model(backend)


@dataclass(frozen=True, repr=False)
class Note(nn.Layer):
    """Note the dtypes of activations and their gradients."""

    found: list = None

    def forward(self, x, p, *, train, seed):
        self.found.append(str(x.dtype))
        return x, None

    def backward(self, dout, cache, *, need_dx):
        self.found.append(str(dout.dtype))
        return dout, {}


@gpu
@pytest.mark.parametrize("size", [1.0, 1e4], ids=["ordinary", "large"])
def test_gradients_are_near_those_of_float32(backend, size):
    X, y = make_data()
    found = []
    net = [layer for each in layers() for layer in (each, Note(found))][:-1]
    mixed, full = (make_model(backend, precision, net) for precision in ("mixed", "full"))
    mixed.seed = full.seed = 0
    expected_loss, expected = full.loss(size * X, y)
    found.clear()
    loss, grads = mixed.loss(size * X, y)
    assert found == ["float16"] * 16
    assert str(loss.dtype) == "float32"
    np.testing.assert_allclose(to_host(loss), to_host(expected_loss), rtol=0.01)
    for (name, grad), reference in zip(grads.items(), expected.values(), strict=True):
        assert str(grad.dtype) == "float32"
        reference = to_host(reference)
        np.testing.assert_allclose(to_host(grad), reference, rtol=0, atol=0.02 * np.abs(reference).max(), err_msg=name)
    found.clear()
    mixed.loss(X)
    assert found == ["float32"] * 8


@gpu
@pytest.mark.parametrize("layer", [nn.Conv(5, 2, stride=2), nn.ConvTranspose(5, 2, stride=2), nn.Affine(5)])
def test_large_gradients_of_biases_are_summed_in_float32(backend, layer):
    """The largest number of float16 is 65504."""
    x = backend.xp.ones((16, *IMAGE), dtype=backend.xp.float16)
    for fixed in ("", "W"):
        trained = replace(layer, fixed=fixed)
        p = {name: backend.xp.ones(shape, dtype="float32") for name, (shape, _) in trained.parameters(IMAGE).items()}
        out, cache = trained.forward(x, p, train=True, seed=0)
        db = trained.backward(backend.xp.full(out.shape, 6000, dtype=x.dtype), cache, need_dx=False)[1]["b"]
        count = np.prod(out.shape) / 5
        assert_array(db, np.full(5, 6000 * count), backend, "float32")


@gpu
def test_the_losses_of_200_iterations_follow_those_of_float32(backend):
    mixed, full = (make_solver(backend, precision, num_epochs=34) for precision in ("mixed", "full"))
    for solver in (mixed, full):
        solver.train()
    averages = [np.reshape(solver.loss_history[:200], (10, 20)).mean(1) for solver in (mixed, full)]
    np.testing.assert_allclose(*averages, rtol=0.02)
    assert averages[0][-1] < averages[0][0] / 2


@gpu
def test_the_losses_of_airbench_follow_those_of_float32(backend):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 128, (48, 3, 13, 13)).astype(np.uint8), np.arange(48) % 3
    X[np.arange(48), y] += 100
    data = {f"{kind}_{split}": backend.asarray(a) for split in ("train", "val") for kind, a in {"X": X, "y": y}.items()}
    losses = []
    for precision in ("mixed", "full"):
        options = {"epochs": 1.5, "batch_size": 8, "widths": [26, 28], "num_classes": 3, "precision": precision}
        solver = airbench.build_solver(data, 0, backend=backend, preprocessing=nn.Preprocessing(100.0, 60.0), **options)
        if precision == "mixed":
            solver._loss_scale.arrays["scale"][...] = 64  # which no gradient of this sum over a minibatch overflows
        solver.train(airbench.freeze_first_convolution)
        losses.append(solver.loss_history)
    assert len(losses[0]) == 9
    np.testing.assert_allclose(*losses, rtol=0.02)


@gpu
def test_an_overflow_skips_the_step_and_halves_the_scale(backend):
    solver = make_solver(backend)
    solver._loss_scale.arrays["scale"][...] = 2.0**30
    scales, first = [], []

    def note(solver):
        scales.append(float(to_host(solver._loss_scale.arrays["scale"])))
        first.append(to_host(solver.model.params["W1"]).copy())

    before = to_host(solver.model.params["W1"]).copy()
    solver.train(note)
    halvings = scales.index(scales[-1]) + 1
    assert scales[: halvings + 1] == [*(2.0 ** (29 - k) for k in range(halvings)), scales[-1]]
    assert 1 < halvings < 20
    for changed in first[:halvings]:
        np.testing.assert_array_equal(changed, before)
    assert (first[halvings] != before).any()
    assert np.isfinite(solver.loss_history).all()
    assert solver.skipped == 0


@gpu
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_gradient_that_is_not_finite_at_scale_1_is_no_overflow(backend, on_nonfinite):
    solver = make_solver(backend, on_nonfinite=on_nonfinite, num_epochs=1)
    solver._loss_scale.arrays["scale"][...] = 1
    solver.X_train[...] = np.nan
    if on_nonfinite == "stop":
        with pytest.raises(NonFiniteLossError, match="the loss became nan at iteration 1"):
            solver.train()
    else:
        solver.train()
        assert solver.skipped == 6


@gpu
def test_the_scale_doubles_after_enough_good_steps(backend, monkeypatch):
    monkeypatch.setattr(_loss_scale, "GROWTH_INTERVAL", 3)
    solver = make_solver(backend)
    solver._loss_scale.arrays["scale"][...] = 4
    scales = []
    solver.train(lambda solver: scales.append(float(to_host(solver._loss_scale.arrays["scale"]))))
    assert scales[:10] == [4, 4, 8, 8, 8, 16, 16, 16, 32, 32]


@gpu
@pytest.mark.parametrize("rule", ["sgd_nesterov", "adam", "muon"])
def test_captured_and_resumed_steps_have_the_same_bits(backend, monkeypatch, tmp_path, rule):
    results = []
    for capture in "01":
        monkeypatch.setenv("XPCONV_CAPTURE", capture)
        solver = make_solver(backend, update_rule=rule, ema=0.9, microbatches=1 + int(rule == "muon"))
        solver._loss_scale.arrays["scale"][...] = 2.0**28
        solver.train(saving_at(10, tmp_path / capture))
        results.append(results_of(solver))
    assert_same_results(*results)
    resumed = make_solver(backend, update_rule=rule, ema=0.9, microbatches=1 + int(rule == "muon"))
    resumed.resume(tmp_path / "0")
    resumed.train()
    assert_same_results(results_of(resumed), results[0])


@pytest.mark.parametrize("spec", ["numpy", pytest.param("cupy", marks=gpu)])
def test_a_precision_that_changes_after_the_solver_was_made_is_refused(spec, monkeypatch):
    backend = find_backend(spec)
    solver = make_solver(backend, "full", num_epochs=1)
    monkeypatch.setattr(solver.model, "_precision", "mixed")  # NumPy has no mixed precision
    with pytest.raises(
        ArgumentError, match=r"model.precision is 'mixed', but was 'full' when .*: make a new Solver for"
    ):
        solver.train()
    assert (solver.iteration, solver.resumable) == (0, True)
    monkeypatch.undo()
    with pytest.raises(ArgumentError, match=r"model.precision is 'mixed', but was 'full' when the Solver was made"):
        solver.train(lambda solver: setattr(solver.model, "_precision", "mixed"))
    assert solver.iteration == 1


@gpu
def test_a_checkpoint_of_another_precision_is_refused(backend, tmp_path):
    make_solver(backend, num_epochs=1).train(saving_at(3, tmp_path / "checkpoint"))
    with pytest.raises(CheckpointError, match="precision = mixed, but this one has full"):
        make_solver(backend, "full", num_epochs=1).resume(tmp_path / "checkpoint")
