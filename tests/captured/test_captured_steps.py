"""Captured steps without a GPU: trainings on the emulated CuPy in cupy/, which records CUDA graphs and replays them.

Each training runs twice, with captured steps and without, and must have the same bits. `nox -s kernels` puts the
emulated CuPy on the path.
"""

import copy
import gc
import os
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

try:
    import cupy
except ImportError:
    cupy = None
if not hasattr(cupy, "emulated_graphs"):
    pytest.skip("CuPy is not the one with emulated graphs: run nox -s kernels", allow_module_level=True)

from benchmarks import airbench
from tests.solvers import assert_same_results, results_of, saving_at
from xpconv import Preprocessing, Solver, get_backend, nn, set_tf32
from xpconv.data.augment import parse_augmentation
from xpconv.errors import NonFiniteLossError, OutOfMemoryError
from xpconv.ops.cupy import _gemm, _graph
from xpconv.training import Lookahead, _capture, metrics
from xpconv.training import solver as solver_module
from xpconv.training.optim import UPDATE_RULES
from xpconv.training.schedules import cosine, polynomial, warmup

IMAGE = (2, 6, 6)
NETS = {
    "affine": lambda: [nn.Affine(6), nn.Relu(), nn.Affine(3)],
    "batch norm": lambda: [
        nn.Conv(3, padding="same", bias=False),
        nn.BatchNorm(),
        nn.Relu(),
        nn.MaxPool(),
        nn.Affine(3),
    ],
    "group norm": lambda: [nn.Conv(4, padding="same"), nn.GroupNorm(groups=2), nn.Gelu(), nn.AvgPool(2), nn.Affine(3)],
    "dropout": lambda: [nn.Conv(3, 3), nn.Relu(), nn.Dropout(0.7), nn.GlobalAvgPool(), nn.Dropout(0.9), nn.Affine(3)],
    "fixed parameters": lambda: [
        nn.Conv(16, 2, fixed="W", init="uniform"),
        nn.Gelu(),
        nn.Conv(20, padding="same", bias=False, init="dirac"),
        nn.MaxPool(2),
        nn.BatchNorm(momentum=0.6, eps=1e-12, fixed="gamma"),
        nn.Gelu(),
        nn.Scale(0.5),
        nn.Affine(3, bias=False, init="uniform"),
    ],
    "residual": lambda: [
        nn.Conv(3, padding="same"),
        nn.Residual(
            [nn.BatchNorm(), nn.Dropout(0.8), nn.Conv(4, stride=2, padding=1)], shortcut=[nn.Conv(4, 1, stride=2)]
        ),
        nn.LayerNorm(),
        nn.Affine(3),
    ],
}
SCHEDULES = {
    "constant": {},
    "decay": {"lr_decay": 0.7},
    "cosine": {"schedule": warmup(4, cosine(30))},
}
AUGMENTATIONS = ["none", "crop-flip", "reflect-cutout-brightness", "alternate-contrast", "crop-mixup"]
OTHERS = [
    {},
    {"clip_norm": 0.5},
    {"ema": 0.9, "on_nonfinite": "skip"},
    {"lookahead": 3},
    {"lookahead": 4, "ema": 0.8, "clip_norm": 0.3, "param_options": {"b*": {"learning_rate": 0.001}}},
    {"on_nonfinite": "skip", "lookahead": 3, "clip_norm": 1.0},
    {"microbatches": 2},
    {"lookahead": Lookahead(5, polynomial(30, 3, start=0, final=0.8), statistics=True), "on_nonfinite": "skip"},
    {"lookahead": Lookahead(2, polynomial(30, 3, start=0, final=0.8), statistics=True), "num_epochs": 2.5},
]
RATES = {"sgd": 0.1, "sgd_momentum": 0.05, "sgd_nesterov": 0.05, "lion": 0.005, "muon": 0.02}


@pytest.fixture(autouse=True)
def products_may_be_captured(monkeypatch):
    """Let products be captured, as those of our own handle of cuBLAS, which tests/emulated/test_gemm.py tests."""

    def multiply(a, b, out, beta):
        product = cupy._device._run(np.matmul, a, b)
        if out is None:
            return product
        out[...] = product if beta == 0 else product + beta * out
        return out

    monkeypatch.setattr(_gemm, "load", lambda: (object(), "13.0"))
    monkeypatch.setattr(_gemm, "_plan", lambda *arguments: None)
    monkeypatch.setattr(_gemm, "_multiply_by_cupy", multiply)
    monkeypatch.setattr(cupy._device, "PRODUCTS_MAY_BE_CAPTURED", os.environ.get("XPCONV_ACCELERATE") == "0")


class Reasons(list):
    """A list that prints what is appended."""

    def append(self, reason):
        print(reason)
        super().append(reason)


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """Return the list of reasons why steps are not captured."""
    reasons, plain = Reasons(), _capture.captured_steps
    monkeypatch.setattr(
        solver_module, "captured_steps", lambda solver, batches, tell: plain(solver, batches, reasons.append)
    )
    return reasons


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (40, *IMAGE)).astype(np.uint8)
    y = rng.integers(0, 3, 40)
    X[np.arange(40), :, 2 * y] //= 4
    return {"X_train": X, "y_train": y, "X_val": X[:10], "y_val": y[:10]}


def make_solver(data, net="batch norm", rule="adam", place=True, dtype="float32", **options):
    backend = get_backend("cupy")
    model = nn.Sequential(
        NETS[net]() if isinstance(net, str) else net,
        input_shape=IMAGE,
        rng=0,
        reg=1e-3,
        backend=backend,
        dtype=dtype,
        preprocessing=nn.Preprocessing(100.0, 60.0),
    )
    defaults = {
        "optim_config": {"learning_rate": RATES.get(rule, 0.01)},
        "batch_size": 4,
        "num_epochs": 3,
        "num_train_samples": 10,
        "verbose": False,
        "rng": 1,
    }
    arrays = {name: backend.asarray(a) for name, a in data.items()} if place else data
    return Solver(model, arrays, update_rule=rule, **{**defaults, **options})


def train(monkeypatch, solver, callback=None, *, capture):
    """Train, with or without captured steps, and return the number of replays."""
    monkeypatch.setenv("XPCONV_CAPTURE", "1" if capture else "0")
    before = cupy.cuda.Graph.launches
    solver.train(callback)
    return cupy.cuda.Graph.launches - before


def check_same(monkeypatch, make, callback=None, replays=1):
    """Check that a training with captured steps has the results of one without; return both Solvers."""
    solvers = make(), make()
    assert train(monkeypatch, solvers[0], callback, capture=True) >= replays
    assert train(monkeypatch, solvers[1], callback, capture=False) == 0
    assert_same_results(*map(results_of, solvers))
    return solvers


def options_of(schedule, augmentation, others):
    return {**SCHEDULES[schedule], "augment": parse_augmentation(augmentation), **others}


COMBINATIONS = [
    (rule, net, [*SCHEDULES][k % 3], AUGMENTATIONS[k % 5], OTHERS[k % 9], ("replacement", "epoch")[k % 2])
    for k, (rule, net) in enumerate(product(UPDATE_RULES, NETS))
]


@pytest.mark.parametrize(("rule", "net", "schedule", "augmentation", "others", "sampling"), COMBINATIONS)
def test_captured_steps_have_the_same_bits(
    monkeypatch, told, data, rule, net, schedule, augmentation, others, sampling
):
    options = options_of(schedule, augmentation, others)
    check_same(monkeypatch, lambda: make_solver(data, net, rule, sampling=sampling, **options), replays=15)
    assert told == ["steps are not captured: XPCONV_CAPTURE is 0"]


def test_the_recipe_of_airbench_has_the_same_bits_also_after_its_first_convolution_is_frozen(monkeypatch, told):
    backend, rng = get_backend("cupy"), np.random.default_rng(0)
    data = {
        f"{kind}_{split}": backend.asarray(a)
        for split in ("train", "val")
        for kind, a in {"X": rng.integers(0, 255, (96, 3, 13, 13)).astype(np.uint8), "y": np.arange(96) % 3}.items()
    }
    options = {"epochs": 4.4, "batch_size": 8, "widths": [26, 28], "num_classes": 3}
    options |= {"backend": backend, "preprocessing": Preprocessing(128.0, 60.0)}
    solvers = check_same(
        monkeypatch,
        lambda: airbench.build_solver(data, 0, **options),
        airbench.freeze_first_convolution,
        replays=45,
    )
    assert solvers[0].iteration == 53
    assert not solvers[0].model.layers[0].trainable
    assert told == ["steps are not captured: XPCONV_CAPTURE is 0"]


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_captured_steps_in_double_precision_have_the_same_bits(monkeypatch, data, rule):
    options = options_of("decay", "crop-mixup", {"on_nonfinite": "skip"} if rule == "adam" else {"ema": 0.9})
    check_same(monkeypatch, lambda: make_solver(data, "dropout", rule, dtype="float64", **options), replays=15)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "net"), list(product(UPDATE_RULES, NETS)))
def test_captured_steps_have_the_same_bits_in_all_combinations(monkeypatch, data, rule, net):
    for schedule, augmentation, others in product(SCHEDULES, AUGMENTATIONS, OTHERS):
        options = options_of(schedule, augmentation, others)
        check_same(monkeypatch, lambda options=options: make_solver(data, net, rule, **options), replays=15)


@pytest.mark.parametrize("forgotten", ["learning_rate", "t"])
def test_a_number_that_is_not_written_before_each_replay_shows_as_other_bits(monkeypatch, data, forgotten):
    changing = tuple(name for name in _capture.CHANGING if name != forgotten)
    monkeypatch.setattr(_capture, "CHANGING", changing)
    plain = _capture.CapturedSteps._dependencies

    def without(self):
        numbers = [config.get(forgotten) for config in self.solver.optim_configs.values()]
        return [x for x in plain(self) if not any(x is number for number in numbers)]

    monkeypatch.setattr(_capture.CapturedSteps, "_dependencies", without)
    with pytest.raises(AssertionError):
        check_same(monkeypatch, lambda: make_solver(data, lr_decay=0.5))


def test_results_that_are_not_copied_back_show_as_other_bits(monkeypatch, data):
    plain = _capture.write_back
    monkeypatch.setattr(
        _capture,
        "write_back",
        lambda real, old, new: plain(real, old, {k: old[k] if k.startswith("running") else v for k, v in new.items()}),
    )
    with pytest.raises(AssertionError):
        check_same(monkeypatch, lambda: make_solver(data))


def test_pinned_memory_is_not_written_before_the_device_has_read_it(monkeypatch, data):
    monkeypatch.setattr(cupy.cuda.Event, "synchronize", lambda self: None)
    with pytest.raises((AssertionError, NonFiniteLossError)):
        check_same(monkeypatch, lambda: make_solver(data, "affine", "sgd"))


def test_images_in_host_memory_are_copied_to_where_captured_steps_read_them(monkeypatch, data):
    augment = parse_augmentation("alternate-crop")
    check_same(monkeypatch, lambda: make_solver(data, place=False, augment=augment), replays=20)


def test_more_steps_than_the_device_keeps_losses_for(monkeypatch, data):
    monkeypatch.setattr(_capture, "RING", 5)
    check_same(monkeypatch, lambda: make_solver(data, batch_size=2, num_epochs=2), replays=30)


def test_captured_steps_end_with_train_and_free_all_memory(monkeypatch, data):
    alive, used, before = [], [], dict(cupy._device._allocated)
    monkeypatch.setattr(_graph.GraphMemory, "__init__", noting(_graph.GraphMemory.__init__, alive))
    pool = cupy.get_default_memory_pool()
    for _ in range(3):
        solver = make_solver(data)
        gc.disable()  # CuPy's pools cannot be collected from a cycle
        try:
            train(monkeypatch, solver, capture=True)
            assert not any(reference() for reference in alive)
        finally:
            gc.enable()
        assert solver._captured is None
        del solver
        gc.collect()
        used.append(pool.used_bytes())
        assert cupy._device._allocated == before
    assert used[0] == used[1] == used[2]
    assert len(alive) == 3
    assert not any(reference() for reference in alive)


def noting(method, references):
    def wrapped(self, *args):
        references.append(weakref.ref(self))
        method(self, *args)

    return wrapped


# ---- what happens between steps


def at(iteration, function):
    return lambda solver: function(solver) if solver.iteration == iteration else None


def change_rate(solver):
    for config in solver.optim_configs.values():
        config["learning_rate"] *= 0.25


def change_momentum(solver):
    for config in solver.optim_configs.values():
        config["beta1"] = 0.5


def replace_parameter(solver):
    solver.model.params["W1"] = 2 * solver.model.params["W1"]


def change_in_place(solver):
    solver.model.params["W1"][...] = 0.5 * solver.model.params["W1"]


def freeze(solver):
    solver.model.freeze("conv1")


def change_penalty(solver):
    solver.model.reg = 0.1


def change_smoothing(solver):
    solver.model.loss_options = {"label_smoothing": 0.2}


def change_clipping(solver):
    solver.clip_norm = 0.05


def change_preprocessing(solver):
    solver.model.preprocessing = nn.Preprocessing(90.0, 30.0)


def change_stream(solver):
    solver.streams["augment"] = np.random.default_rng(9)


def copy_solver(solver):
    solver.copied = copy.deepcopy(solver)


def evaluate(solver):
    solver.check_accuracy(solver.X_val, solver.y_val)


CHANGES = [
    *(change_rate, change_momentum, replace_parameter, change_in_place, freeze, change_penalty, change_smoothing),
    *(change_clipping, change_preprocessing, change_stream, copy_solver, evaluate),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_between_steps_have_their_effect(monkeypatch, data, change):
    augment = parse_augmentation("crop")
    check_same(monkeypatch, lambda: make_solver(data, augment=augment), at(14, change), replays=15)


def test_a_copy_made_in_training_continues_with_the_same_bits(monkeypatch, data):
    solver = make_solver(data)
    train(monkeypatch, solver, at(14, copy_solver), capture=True)
    copied = solver.copied
    train(monkeypatch, copied, capture=True)
    del solver.copied
    assert_same_results(results_of(copied), results_of(solver))


@pytest.mark.parametrize(("saving", "resuming"), [(True, True), (True, False), (False, True)])
def test_a_resumed_training_has_the_same_bits(monkeypatch, data, tmp_path, saving, resuming):
    options = {"ema": 0.9, "lookahead": 3, "augment": parse_augmentation("crop-flip")}
    first, second = (make_solver(data, "dropout", **options) for _ in range(2))
    train(monkeypatch, first, saving_at(17, tmp_path / "checkpoint"), capture=saving)
    second.resume(tmp_path / "checkpoint")
    train(monkeypatch, second, capture=resuming)
    assert_same_results(results_of(second), results_of(first))


def test_an_interrupted_training_continues_with_the_same_bits(monkeypatch, data):
    def interrupt(solver):
        if solver.iteration in (7, 15):
            raise KeyboardInterrupt

    solver, expected = make_solver(data), make_solver(data)
    for _ in range(3):
        train(monkeypatch, solver, interrupt, capture=True)
    train(monkeypatch, expected, capture=False)
    results = results_of(solver)
    assert results["iteration"] == 30
    assert_same_results(results, results_of(expected))


def test_another_round_has_the_same_bits(monkeypatch, data):
    solvers = make_solver(data, lookahead=3), make_solver(data, lookahead=3)
    for solver, capture in zip(solvers, (True, False), strict=True):
        for _ in range(2):
            train(monkeypatch, solver, capture=capture)
    assert_same_results(*map(results_of, solvers))


def test_two_solvers_that_take_turns_do_not_disturb_each_other(monkeypatch, data):
    def nested(solver):
        if solver.iteration in (8, 21):
            solver.other = make_solver(data, "dropout", "sgd_momentum", rng=solver.iteration)
            solver.other.train()

    outer, _ = check_same(monkeypatch, lambda: make_solver(data), nested)
    expected = make_solver(data, "dropout", "sgd_momentum", rng=21)
    train(monkeypatch, expected, capture=False)
    assert_same_results(results_of(outer.other), results_of(expected))


def test_two_threads_train_on_one_device(monkeypatch, data):
    expected = [make_solver(data, net, rng=k) for k, net in enumerate(("dropout", "residual"))]
    for solver in expected:
        train(monkeypatch, solver, capture=False)
    monkeypatch.setenv("XPCONV_CAPTURE", "1")
    solvers = [make_solver(data, net, rng=k) for k, net in enumerate(("dropout", "residual"))]
    with ThreadPoolExecutor() as pool:
        list(pool.map(Solver.train, solvers))
    for solver, other in zip(solvers, expected, strict=True):
        assert_same_results(results_of(solver), results_of(other))


def test_ctrl_c_in_a_capture_ends_it(monkeypatch, data):
    plain = _capture.CapturedSteps._keep_row

    def interrupt(self, tape, row, rehearse):
        plain(self, tape, row, rehearse)
        if not rehearse:
            raise KeyboardInterrupt

    solver = make_solver(data)
    with monkeypatch.context() as patch:
        patch.setattr(_capture.CapturedSteps, "_keep_row", interrupt)
        train(patch, solver, capture=True)
    assert solver.interrupted
    assert not solver.resumable
    assert np.isfinite(solver.loss_history).all()
    check_same(monkeypatch, lambda: make_solver(data))


def test_a_graph_whose_memory_is_freed_is_not_replayed():
    backend, memory = get_backend("cupy"), _graph.GraphMemory()
    arrays = [backend.asarray(np.ones(3)) for _ in range(2)]
    graph, _ = memory.capture(lambda: arrays[0].__iadd__(arrays[1]))
    graph.launch()
    assert backend.to_host(arrays[0]).tolist() == [2, 2, 2]
    arrays.pop()
    with pytest.raises(RuntimeError, match="memory that was freed"):
        graph.launch()


# ---- values that are not finite, and little memory


@pytest.mark.parametrize("rule", ["sgd_momentum", "adam"])
def test_minibatches_are_skipped_with_the_same_bits(monkeypatch, data, rule):
    X = data["X_train"].astype(np.float32)
    X[3] = np.nan
    data = {**data, "X_train": X}
    monkeypatch.setattr(solver_module, "check_split", unchecked)
    monkeypatch.setattr(Solver, "check_accuracy", lambda *args, **options: 0.5)
    monkeypatch.setattr(metrics, "evaluate", lambda *args, **options: _Evaluation())
    first, _ = check_same(monkeypatch, lambda: make_solver(data, rule=rule, on_nonfinite="skip", ema=0.9))
    assert first.skipped > 1


class _Evaluation:
    accuracy = loss = 0.5

    def __iter__(self):
        return iter((0.5, 0.5))


def unchecked(splits, name, *args):
    return splits[f"X_{name}"], splits[f"y_{name}"]


def test_the_error_of_a_loss_that_is_not_finite_is_the_same(monkeypatch, data):
    texts = []
    for capture in (True, False):
        solver = make_solver(data, "affine", "sgd", optim_config={"learning_rate": 1e8})
        with pytest.raises(NonFiniteLossError) as info:
            train(monkeypatch, solver, capture=capture)
        texts.append(str(info.value))
    assert texts[0] == texts[1]


def test_steps_are_ordinary_where_memory_is_too_little_for_a_capture(monkeypatch, data, told):
    def full(size):
        raise cupy.OutOfMemoryError(f"Out of memory allocating {size} bytes")

    monkeypatch.setattr(cupy.cuda.runtime, "malloc", full)
    check_same(monkeypatch, lambda: make_solver(data), replays=0)
    assert told[0].startswith("steps are not captured: OutOfMemoryError")


def test_training_goes_on_after_running_out_of_memory(monkeypatch, data):
    def fail(solver):
        if solver.iteration == 12 and not hasattr(solver, "failed"):
            solver.failed = True
            raise OutOfMemoryError("too little")

    solver, expected = make_solver(data), make_solver(data)
    with pytest.raises(OutOfMemoryError):
        train(monkeypatch, solver, fail, capture=True)
    train(monkeypatch, solver, fail, capture=True)
    train(monkeypatch, expected, capture=False)
    assert_same_results(results_of(solver), results_of(expected))


def test_an_error_in_a_capture_leaves_the_stream_usable(monkeypatch, data, told):
    plain = _capture.CapturedSteps._keep_row

    def fail(self, tape, row, rehearse):
        plain(self, tape, row, rehearse)
        if not rehearse:
            float(row[0])

    monkeypatch.setattr(_capture.CapturedSteps, "_keep_row", fail)
    check_same(monkeypatch, lambda: make_solver(data), replays=0)
    assert "D2H transfers are disallowed" in told[0]


# ---- what is not captured


class Own(nn.Relu):
    """A layer of the user's own."""


class CapturableOwn(nn.Relu):
    capturable = True


def shift(X, seed):
    return X


REASONS = {
    "update rule": (
        {"rule": lambda w, dw, config: (w - 0.1 * dw, config)},
        "the update rule is a function of your own",
    ),
    "augment": ({"augment": shift}, "augment is a function of your own: set its attribute capturable to True"),
    "layer": ({"net": [Own(), nn.Affine(3)]}, "layer 0 is a Own of your own: set its attribute capturable to True"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_captured_is_told(monkeypatch, data, told, name):
    options, text = REASONS[name]
    train(monkeypatch, make_solver(data, **{"optim_config": {}, **options}), capture=True)
    assert len(told) == 1
    assert told[0].startswith(f"steps are not captured: {text}")


def test_a_layer_of_ones_own_that_says_so_is_captured(monkeypatch, data):
    check_same(monkeypatch, lambda: make_solver(data, [CapturableOwn(), nn.Affine(3)]), replays=15)


def test_an_augmentation_of_ones_own_that_needs_its_seed_is_not_captured(monkeypatch, data, told):
    def augment(X, seed):
        return X if seed % 2 == 0 else X[..., ::-1]

    augment.capturable = True
    check_same(monkeypatch, lambda: make_solver(data, augment=augment), replays=0)
    assert "the step needs the value of a number that changes from step to step" in told[0]


def test_a_method_of_ones_own_is_not_captured(monkeypatch, data):
    class OwnSolver(Solver):
        def _update(self, grads, where):
            super()._update(grads, where)

    solver = make_solver(data)
    solver.__class__ = OwnSolver
    assert _capture.solver_obstacle(solver) == "OwnSolver overrides _update"


def test_steps_that_differ_in_too_many_ways_are_ordinary(monkeypatch, data, told):
    monkeypatch.setattr(_capture, "MOST_GRAPHS", 1)
    check_same(monkeypatch, lambda: make_solver(data, lookahead=3))
    assert re.search("the steps differ in more than 1 ways", told[0])


def test_tf32_is_captured_anew(monkeypatch, data):
    captures, plain = [], _graph.GraphMemory.capture
    monkeypatch.setattr(_graph.GraphMemory, "capture", lambda self, work: captures.append(1) or plain(self, work))
    try:
        train(monkeypatch, make_solver(data, rule="sgd"), at(14, lambda solver: set_tf32(True)), capture=True)
    finally:
        set_tf32(False)
    assert len(captures) == 2
