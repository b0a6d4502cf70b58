"""Minibatches that are cut into micro-batches: gradients against those of the whole, memory, and whole trainings."""

from dataclasses import replace

import numpy as np
import pytest

from tests.helpers import assert_array
from tests.nets import IMAGE, NETS
from tests.solvers import assert_same, make_solver
from xpconv import Sequential, Solver, get_backend, nn
from xpconv.backend._memory import peak_bytes
from xpconv.cli._run import build_solver, load_data
from xpconv.cli._settings import settings_for
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError, NonFiniteLossError
from xpconv.training._microbatches import MicroBatches, combine_in_tree

RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((16, *IMAGE)), RNG.integers(0, 5, 16)
IMAGES = {
    "X_train": RNG.integers(0, 256, (24, 1, 4, 4)).astype(np.uint8),
    "y_train": np.arange(24) % 3,
    "X_val": RNG.integers(0, 256, (12, 1, 4, 4)).astype(np.uint8),
    "y_val": np.arange(12) % 3,
}


def cut(count, norm_sync="whole", model=None, batch_size=16):
    return MicroBatches(model or NETS["two"](rng=0), count, norm_sync, batch_size)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [2, 8])
def test_parts_add_up_to_the_whole(name, count, backend):
    """With the penalty once, batch norm over the whole minibatch, and the masks of the whole minibatch."""
    whole, parts = (NETS[name](rng=0, dtype="float64", backend=backend, reg=0.1) for _ in range(2))
    loss, grads = whole.loss(X, Y)
    part_loss, part_grads = cut(count, model=parts).loss(parts, backend.asarray(X), backend.asarray(Y))
    assert_array(part_loss, backend.to_host(loss), backend, "float64")
    assert part_grads.keys() == grads.keys()
    for stored, expected in ((part_grads, grads), (parts.state, whole.state)):
        for key, value in expected.items():
            assert_array(stored[key], backend.to_host(value), backend, "float64")


@pytest.mark.parametrize("name", ["residual", "every layer"])
def test_parts_in_float32_are_as_accurate_as_the_whole(name):
    far = X + 1000
    exact = NETS[name](rng=0, dtype="float64")
    _, expected = exact.loss(far, Y)
    net = NETS[name](rng=0)
    _, grads = cut(4, model=net).loss(net, far, Y)
    for key, grad in grads.items():
        np.testing.assert_allclose(grad, expected[key], atol=2e-3 * np.abs(expected[key]).max() + 1e-6)


@pytest.mark.parametrize("y", [Y, np.eye(5)[Y]], ids=["labels", "probabilities"])
@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": [0.5, 2, 1, 0, 3], "label_smoothing": 0.1},
        {"class_weights": [0.5, 2, 1, 0, 3], "reduction": "sum"},
        {"reduction": "sum"},
        {"class_weights": [1, 0, 0, 0, 0], "label_smoothing": 0.0},
    ],
    ids=str,
)
def test_options_of_the_loss_are_those_of_the_whole_minibatch(y, options):
    """Class weights are divided by those of the whole minibatch; in parts without weight nothing is divided by 0."""
    labels = np.where(np.arange(16)[:, None] < 12, y[:1], y) if y.ndim == 2 else np.where(np.arange(16) < 12, 1, y)
    net = NETS["conv batchnorm"](rng=0, dtype="float64", loss_options=options)
    loss, grads = net.loss(X, labels)
    part_loss, part_grads = cut(8, model=net).loss(net, X, labels)
    np.testing.assert_allclose(part_loss, loss, rtol=1e-12)
    for key, grad in grads.items():
        np.testing.assert_allclose(part_grads[key], grad, atol=1e-12)


def test_ghost_batch_norm_takes_the_statistics_of_each_part(backend):
    """The gradient is the mean over the parts, and so are the running statistics after the step."""
    make = NETS["residual"]
    net, nets = make(rng=0, dtype="float64", backend=backend), [make(rng=0, dtype="float64") for _ in range(4)]
    results = [part.loss(X[4 * k : 4 * k + 4], Y[4 * k : 4 * k + 4]) for k, part in enumerate(nets)]
    losses, grads = zip(*results, strict=True)
    loss, means = cut(4, "ghost", net).loss(net, backend.asarray(X), backend.asarray(Y))
    assert_array(loss, np.mean(losses), backend, "float64")
    for key, mean in means.items():
        assert_array(mean, np.mean([grad[key] for grad in grads], axis=0), backend, "float64")
    for key, mean in net.state.items():
        assert_array(mean, np.mean([part.state[key] for part in nets], axis=0), backend, "float64")


def test_frozen_batch_norm_keeps_its_statistics():
    net = NETS["conv batchnorm"](rng=0)
    net.freeze("batchnorm1")
    before = {key: a.copy() for key, a in net.state.items()}
    cut(4, model=net).loss(net, X, Y)
    assert [key for key, a in net.state.items() if not np.array_equal(a, before[key])] == [
        "running_mean2",
        "running_var2",
        "num_batches2",
    ]


def test_values_are_combined_in_a_binary_tree():
    """Each pair as soon as both values are there, so at most log2(8) + 1 of them wait."""
    log = []

    def values():
        for value in "abcdefgh":
            log.append(value)
            yield value

    def combine(a, b):
        log.append(f"{a}+{b}")
        return f"({a}{b})"

    assert combine_in_tree(values(), combine) == "(((ab)(cd))((ef)(gh)))"
    assert log[:7] == ["a", "b", "a+b", "c", "d", "c+d", "(ab)+(cd)"]


def peak_memory(count, norm_sync):
    net = Sequential(
        [[nn.Conv(8, padding="same"), nn.BatchNorm(), nn.Relu()] * 6, nn.GlobalAvgPool(), nn.Affine(5)],
        input_shape=(3, 16, 16),
        rng=0,
    )
    x, y = np.ones((64, 3, 16, 16), np.float32), np.arange(64) % 5
    microbatches = MicroBatches(net, count, norm_sync, 64)
    microbatches.loss(net, x, y)  # scratch memory, which is kept
    return peak_bytes(get_backend("numpy"), lambda: microbatches.loss(net, x, y))


def test_memory_falls_with_the_number_of_microbatches():
    whole, *parts = (peak_memory(count, "ghost") for count in (1, 2, 8))
    assert parts[0] < 0.6 * whole
    assert parts[1] < 0.2 * whole


@pytest.mark.parametrize("norm_sync", ["whole", "ghost"])
@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_a_training_in_parts_ends_close_to_that_of_whole_minibatches(sampling, norm_sync):
    """Minibatches, masks and augmentation are the same; only sums and, for ghost, statistics differ."""
    options = {"batch_size": 8, "sampling": sampling, "norm_sync": norm_sync, "update_rule": "sgd"}
    whole, parts = (make_solver(IMAGES, microbatches=count, **options) for count in (1, 4))
    for solver in (whole, parts):
        solver.train()
    tolerance = 1e-9 if norm_sync == "whole" else 0.5
    np.testing.assert_allclose(parts.loss_history, whole.loss_history, rtol=tolerance)
    assert (parts.loss_history == whole.loss_history) is False
    assert parts.health_history["dead_relu_1"] == whole.health_history["dead_relu_1"] or norm_sync == "ghost"


def test_a_training_in_parts_continues_from_its_checkpoint_to_the_bit(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    first, second, other = (make_solver(IMAGES, batch_size=8, microbatches=count) for count in (4, 4, 2))
    first.train(lambda solver: solver.iteration == 4 and solver.save(path))
    second.resume(path)
    second.train()
    assert_same(second, first)
    with pytest.raises(CheckpointError, match="microbatches = 4, but this one has 2"):
        other.resume(path)


def one_infinite_image(X, seed):
    """Make an image of the second micro-batch infinite in about every second minibatch."""
    X = X.astype(np.float64)
    X[3] = np.inf if seed % 2 else X[3]
    return X


def test_an_infinite_value_in_one_part_stops_the_training_or_skips_the_minibatch():
    options = {"batch_size": 8, "microbatches": 4, "augment": one_infinite_image}
    with np.errstate(all="ignore"):
        with pytest.raises(NonFiniteLossError, match=r"the loss became nan at iteration \d"):
            make_solver(IMAGES, **options).train()
        skipping = make_solver(IMAGES, on_nonfinite="skip", **options)
        skipping.train()
    assert 0 < skipping.skipped < len(skipping.loss_history)
    assert all(np.isfinite(a).all() for a in (skipping.model.params | skipping.model.state).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatches": 3}, "microbatches is 3; expected a power of two"),
        ({"microbatches": 0}, "microbatches is 0; expected"),
        ({"microbatches": 16, "batch_size": 24}, "microbatches is 16, which does not divide the batch_size of 24"),
        ({"norm_sync": "part"}, "norm_sync is 'part'; expected whole or ghost"),
    ],
)
def test_impossible_cuts_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        make_solver(IMAGES, **options)


def test_models_whose_layers_cannot_be_cut_are_refused():
    class Model:
        params = {"W1": np.ones(3)}  # noqa: RUF012

    with pytest.raises(ArgumentTypeError, match="microbatches is 2, but the model is a Model; expected a Sequential"):
        Solver(Model(), IMAGES, batch_size=8, microbatches=2)


def test_the_settings_of_a_run_hold_how_minibatches_are_cut():
    settings = settings_for("digits", model="convnet", microbatches=2, norm_sync="ghost", num_train=60)
    solver = build_solver(settings, load_data(settings))
    assert (solver.microbatches, solver.norm_sync) == (2, "ghost")
    assert "--microbatches 2 --norm-sync ghost" in settings.command()
    with pytest.raises(ArgumentError, match=r"microbatches is 4, .* batch_size of 50: .* as 52"):
        build_solver(replace(settings, microbatches=4), load_data(settings))
