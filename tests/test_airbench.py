"""The net and the recipe of airbench: each part against its published formula, and whole trainings against PyTorch."""

import json
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import airbench
from tests.helpers import find_backend
from xpconv import Preprocessing, Solver, load_model, save_model
from xpconv.backend import copy_arrays, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn import Affine, Airbench, BatchNorm, Conv, Relu, Residual, Scale, Sequential, whitening_filters
from xpconv.training import Lookahead
from xpconv.training.optim import UPDATE_RULES
from xpconv.training.schedules import one_cycle, polynomial


def correlated_images(count=40, size=13, dtype="float64"):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, 3, size, size)) + rng.standard_normal((count, 1, size, size))
    return (noise + np.roll(noise, 1, axis=-1) + 0.5 * np.roll(noise, 1, axis=-2)).astype(dtype)


def small_net(**options):
    return Airbench([26, 28], input_dim=(3, 13, 13), num_classes=3, rng=0, **options)


# ---- the first convolution


def patches_of(x, height, width):
    """Return all patches of images as rows."""
    N, _, H, W = x.shape
    return np.array(
        [
            x[n, :, i : i + height, j : j + width].ravel()
            for n in range(N)
            for i in range(H - height + 1)
            for j in range(W - width + 1)
        ]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel_size", [2, (1, 3)])
def test_whitened_patches_have_the_identity_as_covariance(backend, dtype, kernel_size):
    x = correlated_images(6, dtype=dtype)
    filters = whitening_filters(backend.asarray(x), kernel_size, eps=0)
    assert str(filters.dtype).endswith(dtype)
    host = to_host(filters)
    patches = patches_of(x, *host.shape[2:])
    half = host.shape[0] // 2
    outputs = patches @ host[:half].reshape(half, -1).T
    np.testing.assert_allclose(
        outputs.T @ outputs / len(outputs), np.eye(half), atol=1e-8 if dtype == "float64" else 1e-3
    )
    np.testing.assert_array_equal(host[half:], -host[:half])


def test_filters_have_the_same_signs_on_every_backend(backend):
    x = correlated_images(7, dtype="float32")
    expected = whitening_filters(x)
    filters = to_host(whitening_filters(backend.asarray(x)))
    np.testing.assert_allclose(filters, expected, rtol=0, atol=1e-4 * abs(expected).max())
    assert (filters[:12].reshape(12, -1) @ np.arange(1, 13) > 0).all()


def test_eps_limits_how_much_the_smallest_components_grow():
    x, eps = correlated_images(6), 0.3
    patches = patches_of(x, 2, 2)
    eigenvalues = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    norms = (whitening_filters(x, 2, eps=eps) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(norms, np.tile(1 / (eigenvalues + eps), 2), rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3, 8), (0, 3, 8, 8), (4, 3, 1, 8)])
def test_whitening_needs_images_of_the_size_of_a_patch(shape):
    with pytest.raises(ArgumentError, match=r"expected images .* of at least 2 by 2 pixels"):
        whitening_filters(np.zeros(shape))


@pytest.mark.parametrize(
    ("x", "eps", "message"),
    [
        (None, 1.0, "x is None; expected images"),
        ([[1.0]], 1.0, "x is a list; expected an array"),
        (np.ones((2, 3, 4, 4), np.uint8), 1.0, "x has dtype uint8; expected a floating-point dtype"),
        (np.ones((2, 3, 4, 4)) * 1j, 1.0, "x has dtype complex128; expected a floating-point dtype"),
        (np.full((2, 3, 4, 4), np.nan), 1.0, "x has values that are NaN, infinite, or too large to be squared"),
        (np.zeros((2, 3, 4, 4)), 0, "eps is 0.0, but the patches of x do not span their space"),
    ],
)
def test_whitening_refuses_images_without_finite_filters(x, eps, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        whitening_filters(x, eps=eps)


def test_failed_whitening_leaves_the_filters_unchanged():
    net = small_net()
    before = net.params["W1"].copy()
    with pytest.raises(ArgumentError, match="NaN"):
        net.whiten(correlated_images() * np.nan)
    np.testing.assert_array_equal(net.params["W1"], before)


def test_sums_over_float16_images_do_not_overflow():
    x = 100 * correlated_images(64)
    np.testing.assert_allclose(
        whitening_filters(x.astype(np.float16)),
        whitening_filters(x),
        rtol=0,
        atol=0.01 * abs(whitening_filters(x)).max(),
    )


def test_a_net_is_whitened_by_its_preprocessed_images(backend):
    x = correlated_images() * 50 + 100
    net = small_net(backend=backend, dtype="float64", preprocessing=Preprocessing(100.0, 50.0))
    net.whiten(x)
    np.testing.assert_allclose(to_host(net.params["W1"]), whitening_filters((x - 100) / 50), rtol=1e-7, atol=1e-9)


# ---- initial values, fixed parameters and scores


@pytest.mark.parametrize("size", [1, 2, 3, (3, 5)])
@pytest.mark.parametrize("filters", [2, 3, 7])
def test_dirac_filters_pass_the_first_channels_through(backend, size, filters):
    net = Sequential(
        [Conv(filters, size, padding="same", init="dirac", bias=False), Affine(2)],
        input_shape=(3, 6, 7),
        rng=0,
        backend=backend,
    )
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 7)).astype("float32")
    out, channels = to_host(net.features(x, "conv1")), min(filters, 3)
    np.testing.assert_allclose(out[:, :channels], x[:, :channels], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init", ["uniform", "dirac"])
def test_other_weights_are_uniform_as_in_pytorch(init):
    net = Sequential(
        [Conv(500, 3, init=init), Affine(40, init="uniform")], input_shape=(2, 9, 9), weight_scale=1e-9, rng=0
    )
    for W, fan_in in ((net.params["W1"][2:], 18), (net.params["W2"], 500 * 49)):
        assert abs(W).max() <= fan_in**-0.5
        assert W.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)


def test_dirac_filters_need_one_group():
    with pytest.raises(ArgumentError, match="init is 'dirac', with groups 2; expected 1"):
        Conv(4, groups=2, init="dirac")
    with pytest.raises(ArgumentError, match="init is 'zeros'; expected normal or uniform or dirac"):
        Conv(4, init="zeros")


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_training_keeps_fixed_parameters(rule):
    layers = [
        Conv(3, 2, fixed="W"),
        Residual([Conv(3, padding="same"), BatchNorm(fixed="gamma|beta")]),
        Relu(),
        Affine(2),
    ]
    net = Sequential(layers, input_shape=(3, 5, 5), rng=0, reg=0.1)
    x = correlated_images(20, 5)
    data = {"X_train": x, "y_train": np.arange(20) % 2, "X_val": x, "y_val": np.arange(20) % 2}
    before = {name: w.copy() for name, w in net.params.items()}
    solver = Solver(net, data, update_rule=rule, batch_size=5, num_epochs=2, lookahead=2, verbose=False, rng=0)
    solver.train()
    same = {name for name, w in solver.current()[0].items() if np.array_equal(w, before[name])}
    assert same == {"W1", "gamma2", "beta2"}
    assert sorted(net.loss(x, data["y_train"])[1]) == ["W2", "W3", "b1", "b2", "b3"]


@pytest.mark.parametrize("layer", [Conv(3, bias=False, fixed="b"), Residual([BatchNorm(fixed="b")]), Relu(fixed="b")])
def test_only_parameters_of_a_layer_can_be_fixed(layer):
    with pytest.raises(ArgumentError, match=r"fixed has 'b'; expected names of parameters among (W|gamma, beta|none)"):
        Sequential([layer, Affine(2)], input_shape=(3, 5, 5))


def test_fixed_parameters_are_named_by_text():
    with pytest.raises(ArgumentTypeError, match="fixed is None; expected text, such as W or"):
        Sequential([Conv(3, fixed=None), Affine(2)], input_shape=(3, 5, 5))


def test_scores_are_scaled():
    x = correlated_images()
    plain, scaled = (small_net(score_scale=scale, dtype="float64").loss(x) for scale in (1, 1 / 9))
    np.testing.assert_allclose(scaled, plain / 9, rtol=1e-10)
    with pytest.raises(ArgumentError, match="factor is 0; expected a finite number above 0"):
        Scale(0)


def test_a_model_file_keeps_the_net(tmp_path):
    net = small_net()
    net.whiten(correlated_images())
    save_model(net, tmp_path / "net.safetensors")
    loaded = load_model(tmp_path / "net.safetensors")
    assert loaded.layers == net.layers
    assert loaded.layers[0].fixed == "W"
    np.testing.assert_array_equal(loaded.loss(correlated_images()), net.loss(correlated_images()))


# ---- lookahead and schedules


def test_the_schedules_are_the_published_ones():
    total = 476
    options = airbench.recipe(total)
    rise = int(0.23 * total)
    rates = [0.2 + 0.8 * t / rise if t < rise else 1 - 0.93 * (t - rise) / (total - rise) for t in range(total)]
    np.testing.assert_allclose([options["schedule"](t) for t in range(total)], rates, atol=0.8 / rise + 1e-12)
    shares = 0.95**5 * (np.arange(total + 1) / total) ** 3
    np.testing.assert_allclose([options["lookahead"].decay(t) for t in range(total + 1)], shares, rtol=1e-12)
    rate = 11.5 / (1024 * (1 + 1 / (1 - 0.85)))
    assert options["optim_config"]["learning_rate"] == pytest.approx(rate)
    assert options["optim_config"]["weight_decay"] == pytest.approx(0.0153 * 1024 / 11.5)
    norms = options["param_options"]["beta*"]
    assert norms["learning_rate"] * norms["weight_decay"] == pytest.approx(rate * 0.0153 * 1024 / 11.5)


@pytest.mark.parametrize(
    ("arguments", "text"), [((0,), "total is 0"), ((4, -1), "power is -1"), ((4, float("nan")), "power")]
)
def test_polynomial_refuses_bad_numbers(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        polynomial(*arguments)


class Slope:
    """A model whose gradient is constant, with a running statistic that counts the steps."""

    def __init__(self, backend):
        self.backend, self.params = backend, {"w": backend.asarray(np.array([1.0, -2.0]))}
        self.state = {"count": backend.asarray(np.zeros(1)), "seen": backend.asarray(np.zeros(1, np.int64))}

    def loss(self, X, y=None):
        xp = self.backend.xp
        if y is None:
            return xp.zeros((X.shape[0], 3), device=self.backend.device)
        self.state = {"count": self.state["count"] + 1, "seen": self.state["seen"] + 1}
        return xp.sum(self.params["w"]), {"w": self.params["w"] * 0 + 1}


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("statistics", [False, True])
def test_lookahead_follows_its_formula_with_a_schedule(backend, statistics, on_nonfinite):
    decay = polynomial(12, 2, start=0.1, final=0.9)
    X, y = np.zeros((12, 2)), np.zeros(12, np.int64)
    solver = Solver(
        Slope(backend),
        {"X_train": X, "y_train": y, "X_val": X, "y_val": y},
        optim_config={"learning_rate": 0.25},
        batch_size=1,
        num_epochs=1,
        lookahead=Lookahead(3, decay, statistics=statistics),
        on_nonfinite=on_nonfinite,
        verbose=False,
    )
    seen, w, slow, count, slow_count = [], *2 * [np.array([1.0, -2.0])], 0.0, 0.0
    solver.train(lambda solver: seen.append(copy_arrays({**solver.model.params, **solver.model.state})))
    for step, weights in enumerate(seen, start=1):
        w, count = w - 0.25, count + 1
        if step % 3 == 0:
            kept = 0.1 + 0.8 * (step / 12) ** 2
            w = slow = kept * slow + (1 - kept) * w
            if statistics:
                count = slow_count = kept * slow_count + (1 - kept) * count
        np.testing.assert_allclose(to_host(weights["w"]), w, rtol=1e-12)
        assert to_host(weights["count"]).item() == pytest.approx(count, rel=1e-12)
        assert to_host(weights["seen"]).item() == step
    evaluated, statistics_evaluated = solver._averages.evaluated(*solver.current())
    np.testing.assert_allclose(to_host(evaluated["w"]), slow, rtol=1e-12)
    assert to_host(statistics_evaluated["count"]).item() == pytest.approx(
        slow_count if statistics else count, rel=1e-12
    )


def test_a_checkpoint_records_the_options_of_lookahead(tmp_path):
    x = correlated_images(12, 4)
    data = {"X_train": x, "y_train": np.arange(12) % 3, "X_val": x, "y_val": np.arange(12) % 3}

    def make(lookahead):
        net = Sequential([Conv(3), BatchNorm(), Affine(3)], input_shape=(3, 4, 4), rng=0)
        return Solver(net, data, batch_size=4, num_epochs=2, lookahead=lookahead, verbose=False, rng=0)

    scheduled = Lookahead(2, polynomial(6, 3, start=0, final=0.8), statistics=True)
    first, second, other = make(scheduled), make(scheduled), make(2)
    first.train(lambda solver: solver.iteration == 3 and solver.save(tmp_path / "checkpoint"))
    second.resume(tmp_path / "checkpoint")
    second.train()
    assert second.loss_history == first.loss_history
    with pytest.raises(Exception, match=r"lookahead = .*polynomial.*but this one has 2"):
        other.resume(tmp_path / "checkpoint")
    assert make(Lookahead(2))._configuration()["lookahead"] == 2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ArgumentError, "lookahead is 0; expected an int, 1 or more"),
        ((5, 1.5), ArgumentError, "decay is 1.5; expected a number from 0 to 1"),
        ((5, 0.5, 1), ArgumentTypeError, "statistics is 1; expected True or False"),
    ],
)
def test_lookahead_refuses_bad_options(arguments, error, text):
    with pytest.raises(error, match=text):
        Lookahead(*arguments)


# ---- fractions of epochs, and checks


@pytest.mark.parametrize(("epochs", "steps"), [(2.5, 10), (1.1, 5), (0.25, 1), (3, 12), (2.25, 9)])
@pytest.mark.parametrize("check_every", [1, 2, 9])
def test_the_last_epoch_may_end_early_and_has_a_check(epochs, steps, check_every):
    x = correlated_images(20, 4)
    data = {"X_train": x, "y_train": np.arange(20) % 3, "X_val": x, "y_val": np.arange(20) % 3}
    net = Sequential([Affine(3)], input_shape=(3, 4, 4), rng=0)
    solver = Solver(net, data, batch_size=5, num_epochs=epochs, check_every=check_every, verbose=False, rng=0)
    checked = []
    solver.train(lambda solver: checked.append(len(solver.val_acc_history)))
    places = {0, steps - 1} | {4 * epoch - 1 for epoch in range(1, steps // 4 + 1) if epoch % check_every == 0}
    assert len(solver.loss_history) == steps
    assert solver.epoch == -(-steps // 4)
    np.testing.assert_array_equal(np.flatnonzero(np.diff([0, *checked])), sorted(places))
    solver.train()
    assert len(solver.loss_history) == 2 * steps


# ---- whole trainings


def make_data(count=96):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, (count, 3, 13, 13)).astype(np.uint8), np.arange(count) % 3
    return {"X_train": X, "y_train": y, "X_val": X[:24], "y_val": y[:24]}


def torch_net(t, start):
    """Return the published net, of two blocks, with initial parameters, its convolutions, norms and last layer."""
    norms = [t.BatchNorm2d(C, eps=1e-12, momentum=0.4) for C in (26, 26, 28, 28)]
    convs = [
        t.Conv2d(3, 24, 2),
        *(t.Conv2d(C, F, 3, padding="same", bias=False) for C, F in ((24, 26), (26, 26), (26, 28), (28, 28))),
    ]
    head = t.Linear(28, 3, bias=False)
    modules = [convs[0], t.GELU()]
    for k in (0, 2):
        modules += [convs[k + 1], t.MaxPool2d(2), norms[k], t.GELU(), convs[k + 2], norms[k + 1], t.GELU()]
    net = t.Sequential(*modules, t.MaxPool2d(3), t.Flatten(), head).double()
    for k, conv in enumerate(convs, start=1):
        conv.weight.data = start[f"W{k}"]
    convs[0].bias.data.zero_()
    head.weight.data = start["W6"].T.contiguous()
    convs[0].weight.requires_grad = False
    for norm in norms:
        norm.weight.requires_grad = False

    return net, convs, norms, head


@pytest.mark.torch
def test_a_training_equals_the_published_one_in_pytorch():
    """The loop of the published script, without its augmentation, in double precision."""
    torch = pytest.importorskip("torch")
    epochs, steps, batches = 4.4, 53, []
    options = {"batch_size": 8, "widths": [26, 28], "num_classes": 3, "dtype": "float64"}
    solver = airbench.build_solver(
        make_data(),
        0,
        epochs=epochs,
        backend=find_backend("numpy"),
        preprocessing=Preprocessing(128.0, 60.0),
        **options,
    )

    def record(minibatch, seed):
        batches.append((minibatch.X, minibatch.y))
        return minibatch

    record.takes_minibatch = True
    solver.augment = record
    start = {name: w.copy() for name, w in solver.model.params.items()}
    solver.train(airbench.freeze_first_convolution)
    assert len(batches) == steps

    net, convs, norms, head = torch_net(torch.nn, {name: torch.tensor(w) for name, w in start.items()})
    scale = 1024 * (1 + 1 / (1 - 0.85))
    rate, wd = 11.5 / scale, 0.0153 * 8 / scale
    betas = [norm.bias for norm in norms]
    others = [p for p in net.parameters() if p.requires_grad and not any(p is beta for beta in betas)]
    groups = [
        {"params": betas, "lr": 64 * rate, "weight_decay": wd / (64 * rate)},
        {"params": others, "lr": rate, "weight_decay": wd / rate},
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.85, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, one_cycle(steps, peak=0.23, start=0.2, final=0.07, shape="linear")
    )
    shares = 0.95**5 * (torch.arange(steps + 1, dtype=torch.float64) / steps) ** 3
    slow = {name: a.clone() for name, a in net.state_dict().items()}

    def look_ahead(decay):
        for name, fast in net.state_dict().items():
            if decay is not None and fast.dtype == torch.float64:
                slow[name].lerp_(fast, 1 - decay)
                fast.copy_(slow[name])

    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none")
    for step, (X, y) in enumerate(batches):
        convs[0].bias.requires_grad = step < 3 * 12
        loss = loss_of(net((torch.tensor(X, dtype=torch.float64) - 128) / 60) / 9, torch.tensor(y)).sum()
        assert loss.item() == pytest.approx(solver.loss_history[step], rel=1e-6)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        look_ahead(shares[step + 1].item() if (step + 1) % 5 == 0 else None)
    look_ahead(1.0)
    params, state = solver._averages.evaluated(*solver.current())
    for k, conv in enumerate(convs, start=1):
        np.testing.assert_allclose(params[f"W{k}"], conv.weight.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(params["b1"], convs[0].bias.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(params["W6"].T, head.weight.detach(), rtol=1e-5, atol=1e-7)
    for k, norm in enumerate(norms, start=2):
        np.testing.assert_allclose(params[f"beta{k}"], norm.bias.detach(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(state[f"running_mean{k}"], norm.running_mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(state[f"running_var{k}"], norm.running_var, rtol=0.05)  # biased here


def test_the_first_convolution_is_frozen_after_its_epochs():
    solver = airbench.build_solver(
        make_data(), 0, backend=find_backend("numpy"), epochs=4.5, batch_size=16, widths=[26, 28], num_classes=3
    )
    biases = []

    def note(solver):
        airbench.freeze_first_convolution(solver)
        biases.append(solver.model.params["b1"].copy())

    solver.train(note)
    changed = [not np.array_equal(a, b) for a, b in pairwise(biases)]
    assert all(changed[:17])
    moved_by_lookahead = {step for step in range(18, 27) if (step + 1) % 5 == 0}
    assert {step + 1 for step, change in enumerate(changed) if change and step >= 17} <= moved_by_lookahead


def test_the_benchmark_writes_accuracies_and_seconds(monkeypatch, tmp_path, capsys):
    data = make_data()
    loaded = data, {"X": data["X_val"], "y": data["y_val"]}, Preprocessing(128.0, 60.0)
    monkeypatch.setattr(airbench, "load", lambda backend, num_images: loaded)
    monkeypatch.setattr(airbench, "WARM_UP_STEPS", 2)
    path = tmp_path / "new" / "airbench.json"
    options = {"backend": "numpy", "precision": "full", "tf32": False, "epochs": 1.5, "batch_size": 32}
    options |= {"widths": "26,28", "num_images": None, "json_file": path}
    airbench.main(seeds=2, min_accuracy=0.0, max_seconds=1e9, **options)
    found = json.loads(path.read_text())
    assert [row["seed"] for row in found["seeds"]] == [0, 1]
    assert found["accuracy"] == np.mean([row["accuracy"] for row in found["seeds"]])
    assert found["seconds_with_first_capture"] == found["seconds"] + found["first_capture_seconds"]
    assert "seed 1: accuracy 0." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        airbench.main(seeds=1, min_accuracy=1.1, max_seconds=1e9, **options)
    assert "MISSED: expected an accuracy of 1.1 or more" in capsys.readouterr().out


def test_the_benchmark_refuses_to_start_if_it_could_not_end(tmp_path):
    with pytest.raises(ArgumentError, match="seeds is 0; expected an int, 1 or more"):
        airbench.main(seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        airbench.main(backend="numpy", json_file=tmp_path / "file" / "airbench.json")
