"""Non-finite losses and gradients are detected, named and never saved; large and constant inputs stay finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.commands import SHORT, call
from tests.helpers import find_backend
from tests.solvers import make_solver
from xpconv import layers as F
from xpconv.backend import Backend, to_host
from xpconv.cs231n import layers as course
from xpconv.errors import ArgumentError, NonFiniteLossError
from xpconv.ops.finite import largest_finite
from xpconv.training._nonfinite import all_finite
from xpconv.training.solver import Solver

BACKENDS = ["numpy", "array_api_strict", "array_api_strict:device1"]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 1, 4, 4)), rng.integers(0, 3, 60)
    return {"X_train": X, "y_train": y, "X_val": X[:20], "y_val": y[:20]}


def make_nonfinite(solver, iteration, value=np.inf, where="W1"):
    """Set one gradient element, or scale the loss, by `value` at an iteration; return that iteration's gradients."""
    model, seen = solver.model, {}
    plain, calls = model.loss, []

    def loss(X, y=None):
        if y is None:
            return plain(X)
        calls.append(1)
        loss, grads = plain(X, y)
        if len(calls) == iteration:
            if where == "loss":
                return loss * value, grads
            bad = np.zeros(grads[where].shape)
            bad.flat[0] = value
            grads[where] = grads[where] + model.backend.asarray(bad, model.dtype)
            seen.update({name: to_host(grad).copy() for name, grad in grads.items()})
        return loss, grads

    model.loss = loss
    return seen


# ---- stop


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_nonfinite_gradient_is_named_with_its_iteration_and_largest_value(data, backend_name, value):
    solver = make_solver(data, backend=find_backend(backend_name), optim_config={"learning_rate": 1e-3}, lr_decay=1.0)
    seen = make_nonfinite(solver, 5, value)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError) as caught:
        solver.train()
    largest = np.abs(seen["W1"].reshape(-1)[1:]).max()
    assert str(caught.value) == (
        f"the gradient of W1 stopped being finite at iteration 5 (its largest finite value is {largest:.2e}): take a "
        "smaller learning_rate (it is 0.001), a smaller weight_scale, or images of a smaller range"
    )
    assert all(np.isfinite(to_host(w)).all() for w in solver.model.params.values())


def test_on_the_host_training_stops_before_the_nonfinite_update(data):
    solver = make_solver(data)
    make_nonfinite(solver, 5)
    kept = {}

    def keep(solver):
        kept.update({name: w.copy() for name, w in {**solver.model.params, **solver.model.state}.items()})

    with pytest.raises(NonFiniteLossError):
        solver.train(keep)
    params, state = solver.current()
    for name, w in {**params, **state}.items():
        np.testing.assert_array_equal(w, kept[name])


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_a_nonfinite_loss_is_reported_with_the_largest_gradient(data, backend_name):
    solver = make_solver(data, backend=find_backend(backend_name))
    make_nonfinite(solver, 3, where="loss")
    with pytest.raises(
        NonFiniteLossError,
        match=r"the loss became inf at iteration 3 \(the largest gradient is that "
        r"of (W|b|gamma|beta)\d, up to \d\.\d\de[+-]\d\d\): take a smaller",
    ):
        solver.train()
    assert len(solver.loss_history) >= 3


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_the_last_good_checkpoint_stays(data, tmp_path, backend_name):
    """A training that saves after each iteration writes nothing after the non-finite one."""
    path = tmp_path / "checkpoint"
    solver, again = (make_solver(data, backend=find_backend(backend_name)) for _ in range(2))
    make_nonfinite(solver, 6, np.nan, "b1")
    with pytest.raises(NonFiniteLossError, match="the gradient of b1 stopped being finite at iteration 6"):
        solver.train(lambda solver: solver.save(path))
    again.resume(path)
    assert again.iteration == 5
    assert not solver.resumable


def test_the_error_names_the_default_rate_of_the_rule_and_reg(data):
    solver = make_solver(data, optim_config={})
    solver.model.reg = 0.5
    make_nonfinite(solver, 1, np.nan)
    with pytest.raises(
        NonFiniteLossError, match=r"learning_rate \(it is 0\.001\), a smaller weight_scale, a smaller r"
    ):
        solver.train()


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_an_infinite_memory_of_the_rule_is_named(data, backend_name, on_nonfinite):
    """A finite gradient of 1e30 in float32 makes Adam's average of squares infinite, so that W1 never moves again."""
    solver = make_solver(data, backend=find_backend(backend_name), dtype="float32", on_nonfinite=on_nonfinite)
    make_nonfinite(solver, 5, 1e30)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError) as caught:
        solver.train()
    assert str(caught.value) == (
        "v of W1, in the memory of adam, stopped being finite by iteration 8, because a gradient was too "
        "large to square: take a smaller learning_rate (it is 0.02), a smaller weight_scale, or images of a smaller "
        "range"
    )
    assert not solver.resumable


@pytest.mark.parametrize("backend_name", [name for name in BACKENDS if name not in ("numpy", "array_api_strict")])
@pytest.mark.parametrize("loss_options", [{}, {"label_smoothing": 0.1}])
def test_a_label_out_of_range_on_a_device_is_named_as_the_cause(data, backend_name, loss_options):
    """The host cannot check labels on a device without a wait, so their loss is NaN, and the next read tells."""
    solver = make_solver(data, backend=find_backend(backend_name), dtype="float32")
    solver.model.loss_options = loss_options
    step = solver._step

    def wrong(X, y):
        step(X, y + 3 if solver.iteration == 4 else y)

    solver._step = wrong
    with pytest.raises(
        NonFiniteLossError,
        match=r"the loss became nan at iteration 5 \(all gradients are finite, so a label may be out of range\): "
        "check that labels are 0 to the number of classes - 1, or take a smaller learning_rate",
    ):
        solver.train()


# ---- skip


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule", ["sgd", "sgd_nesterov", "rmsprop", "adam", "lion", "muon"])
@pytest.mark.parametrize("where", ["W1", "gamma1", "loss"])
def test_a_skipped_iteration_changes_nothing(data, backend_name, rule, where):
    """Parameters, running statistics and the memory of the rule, with the step count of Adam, do not change."""
    solver, without = (
        make_solver(
            data, backend=find_backend(backend_name), update_rule=rule, on_nonfinite="skip", ema=0.9, lookahead=2
        )
        for _ in range(2)
    )
    make_nonfinite(solver, 4, np.nan, where)
    plain = without._step

    def step(X, y):
        if without.iteration == 3:  # its random numbers are drawn all the same
            state = dict(without.model.state)
            without.model.loss(X, y)
            without.model.state = state
            without.iteration += 1
        else:
            plain(X, y)

    without._step = step
    solver.train()
    without.train()
    assert (solver.skipped, without.skipped) == (1, 0)
    tolerance = {"rtol": 1e-12, "atol": 1e-14}
    averages = (training._averages.arrays.values() for training in (solver, without))
    for store, other in [*zip(solver.current(), without.current(), strict=True), *zip(*averages, strict=True)]:
        for name, w in other.items():
            np.testing.assert_allclose(to_host(store[name]), to_host(w), **tolerance)
    for name, config in without.optim_configs.items():
        for key, value in config.items():
            np.testing.assert_allclose(to_host(solver.optim_configs[name][key]), to_host(value), **tolerance)
    assert solver.val_acc_history == without.val_acc_history


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_finite_checks_do_not_wait_for_the_device(data, monkeypatch, on_nonfinite):
    backend = find_backend("array_api_strict:device1")
    solver = make_solver(
        data, backend=backend, on_nonfinite=on_nonfinite, augment=None, clip_norm=0.1, ema=0.9, lookahead=2
    )
    batch = backend.asarray(data["X_train"][:7]), backend.asarray(data["y_train"][:7])
    solver._step(*batch)
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        strict = type(backend.xp.zeros(1))
        for name in ("__float__", "__bool__", "__int__"):
            patch.setattr(strict, name, lambda *_: pytest.fail("waited for the device"))
        patch.setattr(Backend, "to_host", lambda *_: pytest.fail("waited for the device"))
        bad = backend.asarray(np.inf)
        plain = solver.model.loss
        solver.model.loss = lambda X, y: (lambda pair: (pair[0], {**pair[1], "b1": pair[1]["b1"] * bad}))(plain(X, y))
        for _ in range(2):
            solver._step(*batch)


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_a_custom_rule_is_not_called_for_a_skipped_iteration(data, backend_name):
    called = []

    def rule(w, dw, config):
        called.append(1)
        return w - 0.01 * dw, config

    solver = make_solver(data, backend=find_backend(backend_name), update_rule=rule, on_nonfinite="skip", lr_decay=1.0)
    make_nonfinite(solver, 4)
    solver.train()
    assert solver.skipped == 1
    assert len(called) == (solver.iteration - 1) * len(solver.model.params)


def test_resumed_trainings_keep_counting_skipped_iterations(data, tmp_path):
    solver, again = make_solver(data, on_nonfinite="skip"), make_solver(data, on_nonfinite="skip")
    make_nonfinite(solver, 2)
    make_nonfinite(again, 1)
    solver.train(lambda solver: solver.iteration == 5 and solver.save(tmp_path / "checkpoint"))
    again.resume(tmp_path / "checkpoint")
    assert again.skipped == 1
    again.train()
    assert again.skipped == 2


def test_the_command_stops_at_or_skips_nonfinite_losses(tmp_path, monkeypatch):
    plain = Solver._check_finite

    def check_finite(self, loss, grads):
        return plain(self, float("nan") if self.iteration == 3 else loss, grads)

    monkeypatch.setattr(Solver, "_check_finite", check_finite)
    result = call(*SHORT, "--checkpoint-every", 1, "--out", tmp_path / "stop")
    assert result.exit_code == 1
    assert result.stderr.startswith("xpconv: error: the loss became nan at iteration 3 (")
    assert [path.name[-13:] for path in sorted((tmp_path / "stop" / "checkpoints").iterdir())] == [
        "1.safetensors",
        "2.safetensors",
    ]
    result = call(*SHORT, "--on-nonfinite", "skip", "--out", tmp_path / "skip")
    assert result.exit_code == 0, result.output
    assert "skipped 1 iteration whose loss or gradients were not finite\n" in result.stdout


def test_unknown_values_of_on_nonfinite_are_refused(data):
    with pytest.raises(ArgumentError, match="on_nonfinite is 'ignore'; expected stop or skip"):
        make_solver(data, on_nonfinite="ignore")


# ---- finite checks


@given(hnp.arrays(st.sampled_from(["float32", "float64"]), hnp.array_shapes(max_dims=3, max_side=9)))
def test_finite_checks_agree_with_numpy(a):
    finite = np.isfinite(a)
    assert all_finite(0.0, [a]) == finite.all()
    size = np.abs(a[finite]).max(initial=0)
    result = largest_finite(a)
    assert result.dtype == a.dtype
    assert result.tolist() == [size, finite.all()]


@pytest.mark.parametrize("size", [1e25, 3e38])
def test_huge_gradients_count_as_finite(size):
    assert all_finite(1.0, [np.full((300, 300), size, np.float32)])
    assert not all_finite(1.0, [np.full((300, 300), np.inf, np.float32)])


# ---- layers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("size", [1e19, 1e30])
@pytest.mark.parametrize("kind", ["random", "constant", "constant channels"])
def test_norms_and_losses_stay_finite_up_to_1e30(backend_name, dtype, size, kind):
    backend, rng = find_backend(backend_name), np.random.default_rng(0)
    x = {
        "random": rng.choice([-1.0, 1.0, 0.3], (6, 4, 3, 3)),
        "constant": np.ones((6, 4, 3, 3)),
        "constant channels": np.ones((6, 4, 3, 3)) * np.array([1, -1, 0, 0.5])[:, None, None],
    }[kind] * size
    x, dout = (backend.asarray(a, dtype) for a in (x, rng.standard_normal((6, 4, 3, 3))))
    gamma, beta = backend.asarray(np.ones(4), dtype), backend.asarray(np.ones(4), dtype)
    whole = backend.asarray(np.ones((4, 3, 3)), dtype)
    results = []
    with np.errstate(over="ignore", invalid="ignore"):
        for forward, backward, arguments in (
            (lambda *a: F.batchnorm_forward(*a, train=True), F.batchnorm_backward, (x, gamma, beta)),
            (F.layernorm_forward, F.layernorm_backward, (x, whole, whole)),
            (lambda *a: F.groupnorm_forward(*a, groups=2), F.groupnorm_backward, (x, gamma, beta)),
        ):
            out, cache = forward(*arguments)
            results += [out, *backward(dout, cache)]
        scores = backend.xp.reshape(x, (6, 36))
        labels = backend.asarray(np.arange(6))
        results += [*F.softmax_loss(scores, labels), *F.svm_loss(scores, labels)]
    for result in results:
        assert np.isfinite(to_host(result)).all()


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_batch_norm_refuses_one_value_per_channel_in_training(backend, shape):
    x, ones = backend.asarray(np.full(shape, 7.0)), backend.asarray(np.ones(3))
    with pytest.raises(
        ArgumentError,
        match=r"x has shape .*, one value per channel, which in training equals its "
        r"mean; expected a batch of two or more: take a larger one, or ",
    ):
        F.batchnorm_forward(x, ones, ones, train=True)
    out, _ = F.batchnorm_forward(x, ones, ones, train=False)
    assert tuple(out.shape) == shape


def test_every_norm_accepts_a_single_image():
    x = np.random.default_rng(0).standard_normal((1, 4, 3, 3))
    ones, whole = np.ones(4), np.ones((4, 3, 3))
    for out in (
        F.batchnorm_forward(x, ones, ones, train=True)[0],
        F.layernorm_forward(x, whole, whole)[0],
        F.groupnorm_forward(x, ones, ones, groups=4)[0],
    ):
        assert np.isfinite(out).all()


def test_the_courses_batch_norm_accepts_a_single_sample():
    x, gamma, beta = np.array([[1.0, -3.0]]), np.array([2.0, 2.0]), np.array([5.0, 6.0])
    out, cache = course.batchnorm_forward(x, gamma, beta, {"mode": "train"})
    np.testing.assert_array_equal(out, [beta])
    dx, dgamma, dbeta = course.batchnorm_backward_alt(np.ones((1, 2)), cache)
    np.testing.assert_array_equal(dx, [[0, 0]])
    np.testing.assert_array_equal([dgamma, dbeta], [[0, 0], [1, 1]])
