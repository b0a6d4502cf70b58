"""The known errors of circulating solutions of the assignment, each with the test that this library lacks it."""

from pathlib import Path

import numpy as np
import pytest

import xpconv
from tests.helpers import assert_array
from tests.layer_table import ROWS
from xpconv import FullyConnectedNet, Solver, layers
from xpconv.training.metrics import Evaluation
from xpconv.training.optim import adam

# ---- layers


@pytest.mark.parametrize("scores", [[1000.0, 0.0], [-1000.0, -2000.0], [1e30, -1e30]])
def test_softmax_shifts_by_the_maximum_so_that_nothing_overflows(backend, scores):
    loss, dx = layers.softmax_loss(backend.asarray([scores]), backend.asarray([0]))
    assert_array(loss, 0.0, backend, "float64")
    assert_array(dx, [[0.0, 0.0]], backend, "float64")


def test_conv_backward_without_padding_keeps_its_pixels(backend):
    """A slice ``pad:-pad`` is empty for pad 0."""
    x, w = backend.asarray(np.ones((1, 1, 3, 3))), backend.asarray(np.ones((1, 1, 2, 2)))
    out, cache = layers.conv_forward(x, w, None, padding=0)
    dx, dw, _ = layers.conv_backward(backend.xp.ones_like(out), cache)
    assert_array(dx, [[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]], backend, "float64")
    assert_array(dw, [[[[4, 4], [4, 4]]]], backend, "float64")


@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_running_variance_takes_no_eps_in(backend, eps):
    x = backend.asarray(np.array([[1.0, 10.0], [3.0, 30.0]]))
    ones, zeros = backend.asarray(np.ones(2)), backend.asarray(np.zeros(2))
    _, cache = layers.batchnorm_forward(
        x, ones, zeros, layers.RunningStats(zeros, zeros), train=True, momentum=0.9, eps=eps
    )
    assert_array(cache.running.var, [0.1 * 1, 0.1 * 100], backend, "float64", tolerance=1e-14)
    assert_array(cache.running.mean, [0.1 * 2, 0.1 * 20], backend, "float64", tolerance=1e-14)


def test_max_pool_adds_gradients_where_windows_overlap(backend):
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1.0
    out, cache = layers.max_pool_forward(backend.asarray(x), kernel_size=2, stride=1)
    dx = layers.max_pool_backward(backend.xp.ones_like(out), cache)
    assert_array(dx, 4 * x, backend, "float64")


def test_max_pool_gives_the_gradient_to_the_first_of_tied_maxima(backend):
    out, cache = layers.max_pool_forward(backend.asarray(np.full((1, 1, 2, 2), 7.0)), kernel_size=2)
    dx = layers.max_pool_backward(backend.xp.ones_like(out), cache)
    assert_array(dx, [[[[1, 0], [0, 0]]]], backend, "float64")


def test_relu_passes_no_gradient_at_exactly_zero(backend):
    _, cache = layers.relu_forward(backend.asarray(np.array([-1.0, -0.0, 0.0, 1.0])))
    assert_array(layers.relu_backward(backend.asarray(np.ones(4)), cache), [0, 0, 0, 1], backend, "float64")


def test_affine_gives_dx_in_the_shape_of_x(backend):
    x, w, b = (backend.asarray(np.ones(shape)) for shape in ((2, 3, 4, 5), (60, 7), (7,)))
    out, cache = layers.affine_forward(x, w, b)
    dx, _, _ = layers.affine_backward(backend.xp.ones_like(out), cache)
    assert_array(dx, np.full((2, 3, 4, 5), 7.0), backend, "float64")


def test_group_norm_divides_by_the_size_of_a_group(backend):
    """Not by N: the gradient of a group's sum is 0 for every number of samples."""
    rng = np.random.default_rng(0)
    x, gamma, dout = rng.standard_normal((3, 4, 2, 5)), rng.standard_normal(4), rng.standard_normal((3, 4, 2, 5))
    out, cache = layers.groupnorm_forward(*map(backend.asarray, (x, np.ones(4), np.zeros(4))), groups=2)
    groups = backend.to_host(out).reshape(3, 2, -1)
    assert np.allclose(groups.mean(axis=2), 0, atol=1e-14)
    assert np.allclose(groups.var(axis=2), 1, atol=1e-4)
    dx, _, _ = layers.groupnorm_backward(backend.asarray(dout * gamma[:, None, None]), cache)
    dx = backend.to_host(dx).reshape(3, 2, -1)
    assert np.allclose(dx.sum(axis=2), 0, atol=1e-12)
    assert np.allclose((dx * x.reshape(3, 2, -1)).sum(axis=2), 0, atol=1e-3)  # scale, too, changes nothing (but eps)


@pytest.mark.parametrize("layer", ["conv", "max_pool", "avg_pool"])
def test_strides_need_not_tile_the_image(backend, layer):
    x = backend.asarray(np.ones((1, 1, 6, 7)))
    if layer == "conv":
        out, cache = layers.conv_forward(x, backend.asarray(np.ones((1, 1, 3, 3))), None, stride=2)
        dx = layers.conv_backward(out, cache)[0]
    else:
        out, cache = getattr(layers, f"{layer}_forward")(x, kernel_size=3, stride=2)
        dx = getattr(layers, f"{layer}_backward")(out, cache)
    assert tuple(out.shape) == (1, 1, 2, 3)
    assert tuple(dx.shape) == (1, 1, 6, 7)
    assert not backend.to_host(dx)[..., 5, :].any()  # the row that no window covers


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_float32_in_gives_float32_out(row, backend):
    def move(value):
        return tuple(map(backend.asarray, value)) if isinstance(value, tuple) else backend.asarray(value)

    inputs = {name: None if value is None else move(value) for name, value in row.draw("float32").items()}
    out, cache = row.forward(**inputs, **row.options)
    gradients = row.backward(backend.xp.ones_like(backend.xp.asarray(out)), cache)
    running = getattr(cache, "running", None) or ()
    assert all(a.dtype == backend.dtype("float32") for a in (out, *gradients, *running) if a is not None)


def test_fast_pool_works_for_windows_that_do_not_tile(backend):
    x = np.arange(25.0).reshape(1, 1, 5, 5)
    out, _ = layers.max_pool_forward(backend.asarray(x), kernel_size=(2, 3), stride=(2, 1), padding=(1, 0))
    assert_array(out, [[[[2, 3, 4], [12, 13, 14], [22, 23, 24]]]], backend, "float64")


def test_no_layer_needs_a_compiler():
    package = Path(xpconv.__file__).parent
    compiled = {".c", ".cpp", ".pyx", ".so", ".pyd"}  # CUDA kernels are compiled by the driver library where they run
    assert not [path for path in package.rglob("*") if path.suffix in compiled]


# ---- update rules


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_adam_counts_its_steps_from_one(backend, size):
    """A first step is the learning rate long, whatever the gradient's size; from t = 1e5 three times that."""
    w = backend.asarray(np.zeros(2))
    next_w, config = adam(w, backend.asarray(np.array([size, -size])), {"learning_rate": 0.25})
    assert config["t"] == 1
    assert_array(next_w, [-0.25, 0.25], backend, "float64", tolerance=1e-4)


def test_adam_leaves_the_learning_rate_in_its_config(backend):
    w, config = backend.asarray(np.zeros(2)), {"learning_rate": 0.25}
    for _ in range(3):
        w, config = adam(w, backend.asarray(np.ones(2)), config)
        assert config["learning_rate"] == 0.25
    assert_array(w, [-0.75, -0.75], backend, "float64", tolerance=1e-6)


def test_adam_adds_eps_to_the_root_and_not_under_it(backend):
    w, dw = backend.asarray(np.zeros(1)), backend.asarray(np.array([3e-8]))
    next_w, _ = adam(w, dw, {"learning_rate": 1.0, "epsilon": 1e-8})
    assert_array(next_w, [-3e-8 / (3e-8 + 1e-8)], backend, "float64")


# ---- nets and the Solver


def test_regularisation_adds_each_weight_to_its_gradient(backend):
    """The gradient of 0.5 * reg * sum(W * W) is reg * W, not reg * sum(W)."""
    net = FullyConnectedNet([4], input_dim=3, num_classes=2, weight_scale=0.5, dtype="float64", rng=0, backend=backend)
    X, y = np.ones((5, 3)), np.array([0, 1, 0, 1, 1])
    loss, grads = net.loss(X, y)
    net.reg = 0.7
    regularised, with_reg = net.loss(X, y)
    squares = 0.0
    for name, w in net.params.items():
        w = backend.to_host(w)
        part = 0.7 * w if name.startswith("W") else 0 * w
        assert_array(with_reg[name], backend.to_host(grads[name]) + part, backend, "float64")
        squares += 0.35 * np.sum(w * w) if name.startswith("W") else 0
    assert_array(regularised, backend.to_host(loss) + squares, backend, "float64")


def test_best_parameters_come_back_with_the_running_statistics_of_their_time(backend):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3)), rng.integers(0, 2, 20)
    net = FullyConnectedNet([4], input_dim=3, num_classes=2, normalization="batchnorm", rng=0, backend=backend)
    solver = Solver(
        net, {"X_train": X, "y_train": y, "X_val": X, "y_val": y}, num_epochs=3, batch_size=10, verbose=False, rng=0
    )
    accuracies, kept = iter([0.5, 0.2, 0.5, 0.9, 0.5, 0.1, 0.5, 0.3]), []

    def evaluate(*arguments, **options):
        accuracy = next(accuracies)
        if accuracy == 0.9:
            kept.append({name: backend.to_host(a).copy() for name, a in {**net.params, **net.state}.items()})
        return Evaluation(accuracy, 1.0)

    solver.evaluate = evaluate
    solver.train()
    assert solver.best_val_acc == 0.9
    (expected,) = kept
    assert {"running_mean1", "running_var1"} <= set(expected)
    for name, a in {**net.params, **net.state}.items():
        assert_array(a, expected[name], backend, "float32", tolerance=0)
