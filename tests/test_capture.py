"""Captured steps on a GPU: the same bits as ordinary ones, and no waits. tests/captured proves them without a GPU."""

import gc
import importlib
import os
from itertools import product

import numpy as np
import pytest

from tests.helpers import find_backend
from tests.solvers import assert_same_results, results_of, saving_at
from xpconv import Solver, capture, get_backend, nn
from xpconv.backend import to_host
from xpconv.data.augment import parse_augmentation
from xpconv.errors import ArgumentTypeError
from xpconv.training.optim import UPDATE_RULES, sgd
from xpconv.training.schedules import cosine, warmup

gpu = pytest.mark.gpu
IMAGE = (3, 12, 12)
NETS = {
    "affine": lambda: [nn.Affine(20), nn.Relu(), nn.Affine(3)],
    "batch norm": lambda: [
        nn.Conv(8, padding="same", bias=False),
        nn.BatchNorm(),
        nn.Relu(),
        nn.MaxPool(),
        nn.Conv(12, padding="same"),
        nn.AvgPool(3, 2, padding=1),
        nn.Affine(3),
    ],
    "group norm": lambda: [nn.Conv(8, padding="same"), nn.GroupNorm(groups=4), nn.Gelu(), nn.AvgPool(2), nn.Affine(3)],
    "dropout": lambda: [nn.Conv(6, 3), nn.Relu(), nn.Dropout(0.7), nn.GlobalAvgPool(), nn.Dropout(0.9), nn.Affine(3)],
    "residual": lambda: [
        nn.Conv(6, padding="same"),
        nn.Residual(
            [nn.BatchNorm(), nn.Dropout(0.8), nn.Conv(8, stride=2, padding=1)], shortcut=[nn.Conv(8, 1, stride=2)]
        ),
        nn.LayerNorm(),
        nn.Affine(3),
    ],
}
OPTIONS = [
    {"lr_decay": 0.7, "augment": "crop-flip"},
    {"schedule": warmup(5, cosine(90)), "augment": "reflect-cutout-brightness", "clip_norm": 0.5},
    {"augment": "alternate-contrast", "sampling": "epoch", "ema": 0.9, "on_nonfinite": "skip"},
    {"augment": "crop-mixup", "lookahead": 3},
    {"augment": "none", "lookahead": 4, "ema": 0.8, "microbatches": 2},
]


@pytest.fixture
def backend():
    if os.environ.get("XPCONV_ACCELERATE") == "0":
        pytest.skip("the portable versions use CuPy's own matrix products, which cannot be captured")
    return find_backend("cupy")


def make_solver(net="batch norm", rule="adam", on_host=False, **options):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 255, (120, *IMAGE)).astype(np.uint8), rng.integers(0, 3, 120)
    X[np.arange(120), :, 4 * y] //= 4
    data = {"X_train": X, "y_train": y, "X_val": X[:30], "y_val": y[:30]}
    model = nn.Sequential(
        NETS[net](), input_shape=IMAGE, rng=0, reg=1e-3, backend="cupy", preprocessing=nn.Preprocessing(100.0, 60.0)
    )
    rate = {"sgd": 0.1, "muon": 0.02, "lion": 0.003}.get(rule, 0.01)
    defaults = {"optim_config": {"learning_rate": rate}, "batch_size": 4, "num_epochs": 3, "verbose": False, "rng": 1}
    if "augment" in options:
        options["augment"] = parse_augmentation(options["augment"])
    place = to_host if on_host else model.backend.asarray
    return Solver(model, {name: place(a) for name, a in data.items()}, update_rule=rule, **{**defaults, **options})


def train(monkeypatch, solver, *, capture, callback=None):
    """Train, and return the number of replays."""
    monkeypatch.setenv("XPCONV_CAPTURE", "1" if capture else "0")
    replays, reasons = [], []

    def note(solver):
        captured = solver._captured
        if captured is not None:
            replays.append(captured._used > 0)
            reasons.append(captured.failed)
        if callback is not None:
            callback(solver)

    solver.train(note)
    assert not any(reasons)
    return sum(replays)


def check_same(monkeypatch, make, callback=None, replays=40):
    solvers = make(), make()
    assert train(monkeypatch, solvers[0], capture=True, callback=callback) >= replays
    assert train(monkeypatch, solvers[1], capture=False, callback=callback) == 0
    assert_same_results(*map(results_of, solvers))


@gpu
@pytest.mark.parametrize(
    ("rule", "net", "options"),
    [(rule, net, OPTIONS[k % len(OPTIONS)]) for k, (net, rule) in enumerate(product(NETS, UPDATE_RULES))],
)
def test_captured_steps_have_the_same_bits(backend, monkeypatch, rule, net, options):
    check_same(monkeypatch, lambda: make_solver(net, rule, **options))


@gpu
def test_images_in_host_memory_give_the_same_bits(backend, monkeypatch):
    check_same(monkeypatch, lambda: make_solver(on_host=True, augment="crop-flip"))


@gpu
def test_a_change_of_the_learning_rate_has_its_effect(backend, monkeypatch):
    def change(solver):
        if solver.iteration == 50:
            for config in solver.optim_configs.values():
                config["learning_rate"] *= 0.1

    check_same(monkeypatch, make_solver, change)


@gpu
def test_a_resumed_training_has_the_same_bits(backend, monkeypatch, tmp_path):
    first, second = (make_solver("dropout", ema=0.9, augment="crop-flip") for _ in range(2))
    train(monkeypatch, first, capture=True, callback=saving_at(50, tmp_path / "checkpoint"))
    second.resume(tmp_path / "checkpoint")
    train(monkeypatch, second, capture=True)
    assert_same_results(results_of(second), results_of(first))


@gpu
def test_two_solvers_that_take_turns_do_not_disturb_each_other(backend, monkeypatch):
    def nested(solver):
        if solver.iteration == 40:
            make_solver("dropout", "sgd_momentum").train()

    check_same(monkeypatch, make_solver, nested)


@gpu
def test_all_memory_is_freed_at_the_end_of_train(backend, monkeypatch):
    pool, graphs, used = backend.xp.get_default_memory_pool(), importlib.import_module("xpconv.ops.cupy._graph"), []
    pointers, freed, runtime = [], [], backend.xp.cuda.runtime

    class Noted(graphs._Block):
        def __init__(self, size):
            super().__init__(size)
            pointers.append(self.pointer)

    monkeypatch.setattr(graphs, "_Block", Noted)
    free = runtime.free
    monkeypatch.setattr(runtime, "free", lambda pointer: (freed.append(pointer), free(pointer)))
    for _ in range(3):
        train(monkeypatch, make_solver(), capture=True)
        gc.collect()
        used.append(pool.used_bytes())
    assert pointers
    assert sorted(freed) == sorted(pointers)
    assert used[1] == used[2]


@gpu
@pytest.mark.parametrize("net", NETS)
def test_a_captured_loss_has_the_same_bits(backend, net):
    rng = np.random.default_rng(0)
    minibatches = [(rng.standard_normal((6, *IMAGE), np.float32), rng.integers(0, 3, 6)) for _ in range(6)]

    def results(make_function):
        model = nn.Sequential(NETS[net](), input_shape=IMAGE, rng=0, reg=1e-3, backend="cupy")
        function, found = make_function(model), []
        for X, y in minibatches:
            loss, grads = function(X, y)
            found += [to_host(loss), *map(to_host, grads.values())]
            for name, grad in grads.items():
                sgd(model.params[name], grad, {"learning_rate": 0.05}, in_place=True)
        return [*found, *map(to_host, [*model.params.values(), *model.state.values()])]

    captured, plain = results(lambda model: checked(capture(model, *minibatches[0]))), results(lambda model: model.loss)
    for actual, expected in zip(captured, plain, strict=True):
        np.testing.assert_array_equal(actual, expected)


def checked(captured):
    assert captured.obstacle == ""
    return captured


@pytest.mark.parametrize("spec", ["numpy", "array_api_strict"])
def test_elsewhere_a_captured_loss_is_that_of_the_model(spec):
    model = nn.Sequential(NETS["affine"](), input_shape=IMAGE, rng=0, backend=spec)
    X, y = np.ones((4, *IMAGE), np.float32), np.arange(4) % 3
    with capture(model, X, y) as loss_and_gradients:
        loss, grads = loss_and_gradients(X, y)
    assert loss_and_gradients.obstacle == f"{get_backend(spec).library} has no CUDA graphs"
    assert float(loss) == float(model.loss(X, y)[0])
    assert list(grads) == ["W2", "b2", "W1", "b1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "model is a NoneType; expected a Sequential"),
        ({"model": len}, "model is a builtin_function_or_method; expected a Sequential"),
        ({"X": None}, "X is a NoneType; expected an array"),
        ({"y": 3}, "y is a int; expected an array"),
    ],
)
def test_only_models_and_minibatches_are_captured(arguments, message):
    net = nn.TwoLayerNet(input_dim=4, num_classes=3, rng=0, backend="numpy")
    with pytest.raises(ArgumentTypeError, match=message):
        capture(**{"model": net, "X": np.ones((2, 4)), "y": np.zeros(2, int), **arguments})
