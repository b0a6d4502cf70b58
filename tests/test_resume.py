"""A resumed training ends with the same bits as one that never stopped; checkpoints that do not fit are refused."""

import json
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest

from tests.helpers import assert_copies, find_backend
from tests.solvers import HISTORIES, assert_same, make_solver, saving_at
from xpconv import FullyConnectedNet, Preprocessing, Solver
from xpconv.cs231n.classifiers.fc_net import FullyConnectedNet as CourseNet
from xpconv.cs231n.solver import Solver as CourseSolver
from xpconv.errors import CheckpointError, NonFiniteLossError
from xpconv.io._safetensors import ArrayFile, write_arrays
from xpconv.training.checkpoint import FILE_FORMAT, CheckpointFolder
from xpconv.training.schedules import cosine, warmup


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = rng.standard_normal((90, 1, 4, 4))
    X[np.arange(90), 0, y] += 2
    return {"X_train": X[:60], "y_train": y[:60], "X_val": X[60:], "y_val": y[60:]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam"])
@pytest.mark.parametrize("stop", [1, 8, 11, 24])
def test_a_resumed_training_ends_with_the_same_bits(data, tmp_path, rule, dtype, stop):
    path = tmp_path / "checkpoint"
    whole = make_solver(data, update_rule=rule, dtype=dtype)
    whole.train(saving_at(stop, path))
    resumed = make_solver(data, update_rule=rule, dtype=dtype, rng=99)
    resumed.resume(path)
    assert resumed.iteration == len(resumed.loss_history) == stop
    steps = []
    resumed.train(lambda solver: steps.append(solver.iteration))
    assert steps == list(range(stop + 1, 25))
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "epoch"},
        {"lr_decay": 1.0, "schedule": lambda step: 0.9**step},
        {"augment": None, "num_train_samples": None},
        {"on_nonfinite": "skip"},
        {"patience": 1, "num_epochs": 30},
        {"patience": 1, "num_epochs": 30, "patience_on": "loss"},
    ],
)
def test_trainings_with_other_options_resume(data, tmp_path, options):
    whole, resumed = make_solver(data, **options), make_solver(data, **options)
    whole.train(saving_at(5, tmp_path / "checkpoint"))
    resumed.resume(tmp_path / "checkpoint")
    resumed.train()
    assert_same(resumed, whole)


def test_a_training_resumed_many_times_ends_with_the_same_bits(data, tmp_path):
    whole = make_solver(data)
    whole.train()
    part = make_solver(data)
    for stop in (2, 3, 9, 17):
        part.train(lambda solver, stop=stop: solver.iteration == stop and signal.raise_signal(signal.SIGINT))
        assert part.interrupted
        assert part.iteration == stop
        part.save(tmp_path / "checkpoint")
        part = make_solver(data)
        part.resume(tmp_path / "checkpoint")
    part.train()
    assert_same(part, whole)


def test_an_interrupted_solver_continues_where_it_stopped(data):
    whole, part = make_solver(data), make_solver(data)
    whole.train()
    for stop in (2, 9, 10):
        part.train(lambda solver, stop=stop: solver.iteration == stop and signal.raise_signal(signal.SIGINT))
        if stop > 8:  # an epoch has ended
            assert_copies(part.model.params, part.best_params)
    part.train()
    assert not part.interrupted
    assert_same(part, whole)
    part.train()  # a finished training starts another round
    assert part.iteration == 48


def test_ctrl_c_stops_after_the_iteration_and_a_second_one_at_once(data, tmp_path):
    solver = make_solver(data)
    plain, calls = solver.model.loss, []

    def loss(X, y=None, interrupts=1):
        calls.append(y is None)
        for _ in range(1 if calls.count(False) == 4 else 2 if calls.count(False) == 7 else 0):
            signal.raise_signal(signal.SIGINT)
        return plain(X, y)

    solver.model.loss = loss
    solver.train()
    assert (solver.iteration, solver.interrupted, solver.resumable) == (4, True, True)
    solver.save(tmp_path / "checkpoint")
    solver.train()
    assert (solver.iteration, solver.interrupted, solver.resumable) == (6, True, False)
    with pytest.raises(CheckpointError, match="ended in the middle of an iteration, or failed: it cannot be saved"):
        solver.save(tmp_path / "checkpoint")


@pytest.fixture
def _handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_handler_installed_during_training_stays(data):
    def mine(number, frame):
        pass

    before = signal.getsignal(signal.SIGTERM)
    make_solver(data).train(lambda solver: solver.iteration == 3 and signal.signal(signal.SIGINT, mine))
    assert signal.getsignal(signal.SIGINT) is mine
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("_handlers")
def test_handlers_get_the_frame_that_the_signal_interrupted(data):
    def interrupt(solver):
        if solver.iteration == 3:
            signal.raise_signal(signal.SIGTERM)

    frames = []
    signal.signal(signal.SIGTERM, lambda number, frame: frames.append(frame.f_code.co_name))
    make_solver(data).train(interrupt)
    assert frames == ["interrupt"]


def test_a_solver_trains_in_any_thread(data):
    """Only the main thread receives signals and can postpone them."""
    solver, other = make_solver(data), make_solver(data)
    solver.train()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(other.train).result()
    assert_same(other, solver)


def test_a_finished_training_resumes_only_with_more_epochs(data, tmp_path):
    path = tmp_path / "checkpoint"
    first, longer = make_solver(data), make_solver(data, num_epochs=4)
    first.train()
    first.save(path)
    longer.train()
    again, more = make_solver(data), make_solver(data, num_epochs=4)
    for solver in (again, more):
        solver.resume(path)
        solver.train()
    assert_same(again, first)
    assert_same(more, longer)


@pytest.mark.parametrize("saved_on", ["numpy", "other"])
def test_a_training_resumes_on_another_backend(data, tmp_path, backend, saved_on):
    whole = make_solver(data)
    whole.train()
    names = ["numpy", backend] if saved_on == "numpy" else [backend, "numpy"]
    first, second = (make_solver(data, backend=name) for name in names)
    first.train(saving_at(10, tmp_path / "checkpoint"))
    second.resume(tmp_path / "checkpoint")
    second.train()
    np.testing.assert_allclose(second.loss_history, whole.loss_history, rtol=1e-8)
    assert second.val_acc_history == whole.val_acc_history


def test_the_courses_solver_resumes_with_numpys_global_state(data, tmp_path):
    def solver():
        net = CourseNet([8], 16, 3, normalization="batchnorm", dropout_keep_ratio=0.8, weight_scale=0.1)
        return CourseSolver(
            net, data, update_rule="adam", num_epochs=3, batch_size=7, num_train_samples=20, verbose=False
        )

    np.random.seed(231)
    whole = solver()
    whole.train(saving_at(13, tmp_path / "checkpoint"))
    drawn = np.random.rand()
    np.random.seed(1)
    resumed = solver()
    resumed.resume(tmp_path / "checkpoint")
    resumed.train()
    assert_same(resumed, whole)
    assert np.random.rand() == drawn


def test_a_custom_rule_resumes_with_its_memory(data, tmp_path):
    def rule(w, dw, config):
        config = {"rate": np.float64(0.1), "steps": 0, "mean": np.zeros_like(w), "name": "mine", **config}
        mean = 0.9 * config["mean"] + dw
        return (w - config["rate"] * mean).astype(w.dtype), {**config, "steps": config["steps"] + 1, "mean": mean}

    whole, resumed = (make_solver(data, update_rule=rule, lr_decay=1, dtype="float32") for _ in range(2))
    whole.train(saving_at(4, tmp_path / "checkpoint"))
    resumed.resume(tmp_path / "checkpoint")
    assert type(resumed.optim_configs["W1"]["rate"]) is np.float64
    resumed.train()
    assert_same(resumed, whole)


class Linear:
    """A custom model without state and streams, whose losses are Python floats."""

    def __init__(self, bias=False):
        self.params = {"W": np.zeros((16, 3)), **({"b": np.zeros(3)} if bias else {})}

    def loss(self, X, y=None):
        scores = X.reshape(len(X), -1) @ self.params["W"]
        if y is None:
            return scores
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        p[np.arange(len(y)), y] -= 1
        return float(loss), {"W": X.reshape(len(X), -1).T @ p / len(y), "b": p.mean(axis=0)}


def test_a_custom_model_resumes(data, tmp_path):
    whole, resumed = (Solver(Linear(), data, batch_size=7, num_epochs=2, verbose=False, rng=0) for _ in range(2))
    whole.train(saving_at(4, tmp_path / "checkpoint"))
    resumed.resume(tmp_path / "checkpoint")
    resumed.train()
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    "make_rng",
    [
        np.random.RandomState,
        lambda seed: np.random.Generator(np.random.MT19937(seed)),
        lambda seed: np.random.Generator(np.random.Philox(seed)),
    ],
)
def test_every_kind_of_random_stream_resumes(data, tmp_path, make_rng):
    solvers = []
    for seed in (1, 2):
        solver = make_solver(data, augment=None)
        solver.streams["checks"] = make_rng(seed)
        solver.sampler.stream = make_rng(seed)
        solvers.append(solver)
    solvers[0].train(saving_at(4, tmp_path / "checkpoint"))
    solvers[1].resume(tmp_path / "checkpoint")
    solvers[1].train()
    assert_same(*solvers)


@pytest.mark.parametrize("copied", [deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
@pytest.mark.parametrize("sampling", ["epoch", "replacement"])
def test_a_copy_made_during_training_ends_with_the_same_bits(data, copied, sampling):
    options = {"lr_decay": 1.0, "schedule": warmup(3, cosine(24)), "sampling": sampling}
    solver, copies = make_solver(data, **options), []
    solver.train(lambda solver: solver.iteration in (5, 8) and copies.append(copied(solver)))
    for copy in (*copies, copied(solver)):
        if copy.iteration < 24:
            copy.train()
        assert_same(copy, solver)


def test_one_state_dict_resumes_several_solvers(data):
    """Continuing a training changes neither the state nor another Solver with it."""
    whole, states = make_solver(data), []
    whole.train(lambda solver: solver.iteration == 10 and states.append(solver.state_dict()))
    state = {"arrays": states[0]["arrays"], "description": json.loads(json.dumps(states[0]["description"]))}
    for _ in range(2):
        resumed = make_solver(data, rng=99)
        resumed.load_state_dict(state)
        resumed.train()
        assert_same(resumed, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("arrays"), "the state does not describe a training"),
        (lambda state: state["arrays"].update(extra=[1.0]), "the state does not describe a training"),
        (
            lambda state: state["arrays"].pop("params.b1"),
            r"the state has params\.b1 = nothing; expected float64 \(3,\)",
        ),
        (lambda state: state["description"].update(sampler={}), "the state does not describe a training"),
        (
            lambda state: state["description"]["configuration"].update(patience=3),
            "with patience = 3, but this one has N",
        ),
    ],
)
def test_a_malformed_state_dict_is_refused_and_changes_nothing(data, change, message):
    solver, plain = make_solver(data), make_solver(data)
    state = make_solver(data, rng=7).state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        solver.load_state_dict(state)
    solver.train()
    plain.train()
    assert_same(solver, plain)


@pytest.mark.parametrize("name", ["numpy", "array_api_strict:device1"])
def test_a_state_refused_during_training_changes_no_draw_and_loses_no_loss(data, name):
    """The sampler fails after its stream has been restored, and losses since the last check are not read yet."""
    solver, plain, other = (
        make_solver(data, backend=find_backend(name), sampling="epoch", rng=seed) for seed in (5, 5, 99)
    )
    state = other.state_dict()
    del state["description"]["sampler"]["done"]

    def load(solver):
        if solver.iteration in (3, 8):
            with pytest.raises(CheckpointError, match="does not describe a training"):
                solver.load_state_dict(state)

    solver.train(load)
    plain.train()
    assert_same(solver, plain)


def test_the_best_running_statistics_are_copies(data):
    solver, shared = make_solver(data), []
    solver.train(
        lambda solver: shared.extend(a is b for a in solver.best_state.values() for b in solver.model.state.values())
    )
    assert shared
    assert not any(shared)
    assert_copies(solver.model.state, solver.best_state)


# ---- checkpoints that are refused


@pytest.fixture
def saved(data, tmp_path):
    solver = make_solver(data)
    solver.train(saving_at(5, tmp_path / "checkpoint"))
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "batch_size = 7, but this one has 8"),
        ({"lr_decay": 0.5}, "lr_decay = 0.9, but this one has 0.5"),
        ({"update_rule": "sgd"}, "update_rule = adam, but this one has sgd"),
        ({"optim_config": {"learning_rate": 0.1}}, r"optim_config.learning_rate = 0.02, but this one has 0.1"),
        ({"sampling": "epoch"}, "sampling = replacement, but this one has epoch"),
        ({"augment": None}, "augment = crop-flip, but this one has None"),
        ({"filters": 4}, r"model.layers\[0\].filters = 3, but this one has 4"),
        ({"dtype": "float32"}, "model.dtype = float64, but this one has float32"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused_with_the_difference(data, saved, options, message):
    solver = make_solver(data, **options)
    with pytest.raises(CheckpointError, match=f"comes from a training with {message}: make the Solver"):
        solver.resume(saved)
    assert solver.iteration == 0


def test_a_checkpoint_of_other_data_is_refused(data, saved):
    X, y = data["X_train"].copy(), data["y_train"]
    X[[3, 5], 0, 1, 1] += 1
    for other, message in (
        ({"X_train": X}, rf"training images \(X_train\): 2 of {len(X)} differ"),
        ({"X_train": X, "y_train": y[::-1]}, rf"training images \(X_train\): 2 of {len(X)} differ"),
        ({"X_train": data["X_train"][::-1]}, rf"training images \(X_train\): the same {len(X)} in another order"),
        ({"X_train": data["X_train"] + 1}, rf"training images \(X_train\): {len(X)} of {len(X)} differ"),
        (
            {"X_train": X.astype(np.float32)},
            r"training images \(X_train\): they were float64 of .*, and are float32 of .*",
        ),
        ({"y_train": (y + 1) % 3}, rf"training labels \(y_train\): {len(y)} of {len(y)} differ"),
        ({"y_train": y[::-1]}, rf"training labels \(y_train\): the same {len(y)} in another order"),
        (
            {"X_val": np.concat([data["X_val"][1:], X[3:4], X[5:6]]), "y_val": np.append(data["y_val"], 0)},
            r"validation images \(X_val\): they were 30, and are 31, of which 29 are the same",
        ),
    ):
        with pytest.raises(CheckpointError, match=f"comes from a training with other {message}: resume with the same"):
            make_solver({**data, **other}).resume(saved)
    make_solver({**data, "y_train": y.astype(np.uint8)}).resume(saved)


@pytest.mark.parametrize("checksums", [None, "nothing", np.zeros(2, np.uint32), np.zeros((2, 2))])
def test_other_data_are_refused_without_their_checksums(data, checksums):
    state, solver = make_solver(data).state_dict(), make_solver({**data, "X_train": data["X_train"] + 1})
    state["arrays"]["checksums.X_train"] = checksums
    with pytest.raises(CheckpointError, match=r"other training images \(X_train\): their checksums differ: resume"):
        solver.load_state_dict(state)


def test_a_checkpoint_of_other_parameters_is_refused(data, tmp_path):
    solver = Solver(Linear(), data, batch_size=60, verbose=False)
    solver.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"has params\.b = nothing; expected float64 \(3,\)"):
        Solver(Linear(bias=True), data, batch_size=60, verbose=False).resume(tmp_path / "checkpoint")


def rewrite(path, change):
    """Change the description or the arrays of a checkpoint, and keep its checksum valid."""
    file = ArrayFile(path, FILE_FORMAT)
    arrays = file.read(file.specs, allow_nonfinite=HISTORIES)
    change(file.description, arrays)
    write_arrays(path, FILE_FORMAT, file.description, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda description, _: description.pop("streams"), "does not describe a training"),
        (lambda description, _: description.update(iteration=-1), "does not describe a training"),
        (
            lambda description, _: description.update(iteration=6),
            "has learning_rate_history = float64 .5,.; expected float64 .6,.",
        ),
        (lambda description, _: description.update(epoch="two"), "does not describe a training"),
        (lambda description, _: description.update(best_val_acc=None), "does not describe a training"),
        (
            lambda description, _: description["streams"]["checks"].update(bit_generator="MT19937"),
            "does not describe a training",
        ),
        (
            lambda description, _: description["streams"]["layers"]["state"].update(state="many"),
            "does not describe a training",
        ),
        (lambda description, _: description.update(sampler={}), "does not describe a training"),
        (lambda description, _: description["memory"].pop("W1"), "expected nothing"),
        (lambda description, _: description["memory"]["W1"].update(values=7), "does not describe a training"),
        (lambda _, arrays: arrays.pop("best_params.b1"), "has best_params.b1 = nothing"),
        (
            lambda _, arrays: arrays.update({"memory.m.W1": np.zeros(3)}),
            "W1 = float64 .3,.; expected float64 .3, 1, 3, 3.",
        ),
        (
            lambda _, arrays: arrays["memory.v.W1"].__setitem__((0, 0, 0, 0), np.nan),
            "NaN or infinite values in memory.v",
        ),
    ],
)
def test_a_malformed_checkpoint_is_refused_and_changes_nothing(data, saved, change, message):
    rewrite(saved, change)
    solver, plain = make_solver(data), make_solver(data)
    with pytest.raises(CheckpointError, match=message):
        solver.resume(saved)
    solver.train()
    plain.train()
    assert_same(solver, plain)


def test_a_model_is_not_read_as_a_checkpoint_or_the_reverse(data, saved, tmp_path):
    from xpconv import load_model, save_model

    with pytest.raises(CheckpointError, match=r"has format 'xpconv-checkpoint', version \d+; expected 'xpconv-model'"):
        load_model(saved)
    solver = make_solver(data)
    save_model(solver.model, tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"has format 'xpconv-model', version \d+; expected 'xpconv-checkpoint'"):
        solver.resume(tmp_path / "model")


def test_equal_trainings_write_equal_bytes(data, tmp_path):
    for name in "ab":
        make_solver(data).train(saving_at(12, tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    header = (tmp_path / "a").read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert list(json.loads(header[8 : 8 + size])["__metadata__"]) == ["xpconv"]


def test_nonfinite_parameters_are_never_written(data, tmp_path):
    path = tmp_path / "checkpoint"
    solver = make_solver(data)
    solver.train(saving_at(3, path))
    before = path.read_bytes()
    solver.current()[0]["W1"][0, 0, 0, 0] = np.inf
    with pytest.raises(
        NonFiniteLossError, match=r"params\.W1 has NaN or infinite values after iteration 24, so nothing"
    ):
        solver.save(path)
    assert path.read_bytes() == before


# ---- a folder of checkpoints


def numbers(folder):
    return [int(path.stem.partition("-")[2]) for path in folder.files()]


def test_the_newest_two_checkpoints_are_kept(data, tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    kept = []
    make_solver(data, num_epochs=1).train(lambda solver: (folder.save(solver), kept.append(numbers(folder))))
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 8]]
    assert folder.newest() == folder.files()[-1]


def test_older_checkpoints_are_removed_only_after_the_new_one_is_read_back(data, tmp_path, monkeypatch):
    folder, solver = CheckpointFolder(tmp_path / "checkpoints"), make_solver(data)
    solver.train(lambda solver: solver.iteration <= 2 and folder.save(solver))

    def damage(path, plain=solver.save):
        plain(path)
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))

    monkeypatch.setattr(solver, "save", damage)
    with pytest.raises(CheckpointError, match="is damaged"):
        folder.save(solver)
    assert numbers(folder) == [1, 2, 24]
    notes = []
    assert folder.newest(notes.append) == folder.files()[1]
    assert len(notes) == 1
    assert notes[0].startswith("skipping a checkpoint: ")
    monkeypatch.undo()
    solver.iteration = 12  # as after resuming the older checkpoint
    folder.save(solver)
    assert numbers(folder) == [2, 12]


def test_on_a_full_disk_the_older_checkpoints_stay(data, tmp_path, monkeypatch):
    folder, solver = CheckpointFolder(tmp_path / "checkpoints"), make_solver(data)
    solver.train(lambda solver: solver.iteration <= 2 and folder.save(solver))
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write \(No space left on device\): .*iteration-000000024"):
        folder.save(solver)
    assert numbers(folder) == [1, 2]
    assert len(list(folder.path.iterdir())) == 2


def test_dropout_resumes_on_every_backend(data, tmp_path):
    """Dropout draws its seeds from a stream of the model, which the checkpoint holds."""
    path = tmp_path / "checkpoint"
    for name in ("numpy", "array_api_strict:device1"):
        nets = [
            FullyConnectedNet(
                [9], input_dim=16, num_classes=3, keep_prob=0.5, dtype="float64", rng=0, backend=find_backend(name)
            )
            for _ in range(2)
        ]
        first, second = (Solver(net, data, batch_size=7, num_epochs=2, verbose=False, rng=3) for net in nets)
        first.train(saving_at(6, path))
        second.resume(path)
        second.train()
        assert second.loss_history == first.loss_history


def lookahead(w, dw, config):
    config = dict(config)
    config["params"] = config.get("params", np.array(w)) * 0.5 + 0.5 * w
    return w - 0.01 * dw, config


def test_the_memory_of_a_rule_may_have_any_name(data, tmp_path):
    """An array named params is not mistaken for the parameters."""
    whole, part = (make_solver(data, update_rule=lookahead, optim_config={}) for _ in range(2))
    whole.train(lambda solver: solver.iteration == 5 and solver.save(tmp_path / "checkpoint"))
    part.resume(tmp_path / "checkpoint")
    part.train()
    assert_same(part, whole)


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 7])
def test_the_folder_keeps_the_given_number_of_checkpoints(data, tmp_path, keep):
    folder, counts = CheckpointFolder(tmp_path / "checkpoints", keep=keep), []
    make_solver(data).train(lambda solver: (folder.save(solver), counts.append(len(folder.files()))))
    assert counts == [min(k, keep) for k in range(1, len(counts) + 1)]


def with_preprocessing(mean):
    return lambda solver: setattr(solver.model, "preprocessing", Preprocessing(mean, 1.0))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (with_preprocessing(3.0), "model.preprocessing = None, but this one has some: make the Solver"),
        (lambda solver: setattr(solver.model, "seed", 5), "model.seed"),
        (lambda solver: setattr(solver, "patience", 3), "patience"),
        (
            lambda solver: setattr(solver, "X_train", -solver.X_train),
            r"other training images \(X_train\): \d+ of \d+ differ: resume with the same data in the same order",
        ),
    ],
)
def test_a_checkpoint_of_other_images_or_preprocessing_or_masks_is_refused(data, tmp_path, change, where):
    first, second = make_solver(data), make_solver(data)
    first.train(lambda solver: solver.iteration == 3 and solver.save(tmp_path / "checkpoint"))
    change(second)
    with pytest.raises(CheckpointError, match=f"comes from a training with {where}"):
        second.resume(tmp_path / "checkpoint")


@pytest.mark.parametrize("part", ["X_train", "X_val", "y_train", "y_val"])
def test_one_other_value_anywhere_in_the_data_is_noticed(data, tmp_path, part):
    make_solver(data, num_train_samples=5).save(tmp_path / "checkpoint")
    for position in range(len(data[part])):
        changed = data[part].copy()
        changed.flat[position * (changed.size // len(changed))] = 0 if changed.flat[position] else 1
        if (changed == data[part]).all():
            continue
        with pytest.raises(
            CheckpointError, match=rf"a training with other .* \({part}\): 1 of {len(changed)} differ: resume"
        ):
            make_solver({**data, part: changed}, num_train_samples=5).resume(tmp_path / "checkpoint")


def test_another_preprocessing_is_named_in_words(data, tmp_path):
    first, second = make_solver(data), make_solver(data)
    for mean, solver in enumerate((first, second)):
        solver.model.preprocessing = Preprocessing(float(mean), 1.0)
    first.save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"a training with other values in model\.preprocessing\.mean: make"):
        second.resume(tmp_path / "checkpoint")


@pytest.mark.parametrize("value", [{"a": 1}, (1, 2), [[1]], {1, 2}])
def test_a_memory_that_no_file_can_hold_is_refused(data, tmp_path, value):
    def rule(w, dw, config):
        return w - 0.01 * dw, {"value": value}

    solver = make_solver(data, update_rule=rule)
    with pytest.raises(CheckpointError, match=r"the update rule remembers .*, which a checkpoint cannot hold"):
        solver.train(lambda solver: solver.save(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint").exists()


def test_a_training_with_enough_epochs_in_its_checkpoint_is_finished(data, tmp_path):
    solver, shorter = make_solver(data), make_solver(data, num_epochs=1)
    solver.train(lambda solver: solver.iteration == 9 and solver.save(tmp_path / "checkpoint"))
    shorter.resume(tmp_path / "checkpoint")
    shorter.train()
    assert shorter.iteration == 9
