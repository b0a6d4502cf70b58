"""Several workers: the same bits for any number of them, and an end for all if one fails."""

import numpy as np
import pytest

from tests.nets import IMAGE, NETS
from tests.solvers import assert_same_results, make_solver, results_of
from xpconv import Solver
from xpconv.cs231n.solver import Solver as CourseSolver
from xpconv.data.augment import parse_augmentation
from xpconv.errors import ArgumentError, NonFiniteLossError, WorkerError
from xpconv.parallel import Communicator, Threads, find_communicator
from xpconv.parallel._launcher import SIZES
from xpconv.training.optim import UPDATE_RULES

RNG = np.random.default_rng(5)
IMAGES = {
    "X_train": RNG.integers(0, 256, (24, 1, 4, 4)).astype(np.uint8),
    "y_train": np.arange(24) % 3,
    "X_val": RNG.integers(0, 256, (12, 1, 4, 4)).astype(np.uint8),
    "y_val": np.arange(12) % 3,
}
OF_NETS = {
    "X_train": RNG.standard_normal((16, *IMAGE)).astype(np.float32),
    "y_train": np.arange(16) % 5,
    "X_val": RNG.standard_normal((5, *IMAGE)).astype(np.float32),
    "y_val": np.arange(5),
}


def train_on(workers, make, **options):
    """Train with a number of workers, and return the results, which must be the same for each worker."""

    def train(communicator):
        solver = make(communicator=communicator, **options)
        solver.train()
        return results_of(solver)

    first, *others = Threads.run(workers, train)
    for other in others:
        assert_same_results(other, first)
    return first


def make(**options):
    return make_solver(IMAGES, **{"batch_size": 8, "microbatches": 8, "num_epochs": 2, **options})


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("norm_sync", ["whole", "ghost"])
@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_any_number_of_workers_gives_the_same_bits(workers, norm_sync, sampling):
    """With dropout and augmentation; the results include the histories, averages and the update rule's memory."""
    options = {"norm_sync": norm_sync, "sampling": sampling, "ema": 0.5, "clip_norm": 1.0}
    assert_same_results(train_on(workers, make, **options), train_on(1, make, **options))


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_every_update_rule_gives_the_same_bits(rule):
    options = {"update_rule": rule, "optim_config": {"learning_rate": 1e-3}, "dtype": "float32"}
    assert_same_results(train_on(4, make, **options), train_on(1, make, **options))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_every_net_gives_the_same_bits(name, backend):
    def make(communicator):
        net = NETS[name](rng=0, reg=0.1, backend=backend)
        options = {"batch_size": 8, "microbatches": 4, "num_epochs": 1, "verbose": False, "rng": 1}
        return Solver(net, OF_NETS, communicator=communicator, **options)

    assert_same_results(train_on(4, make), train_on(1, make))


@pytest.mark.parametrize("spec", ["none", "mixup", "alternate-cutout2"])
def test_every_augmentation_gives_the_same_bits(spec):
    options = {"augment": parse_augmentation(spec), "num_epochs": 1}
    assert_same_results(train_on(2, make, **options), train_on(1, make, **options))


@pytest.mark.parametrize("after", [1, 2, 8])
def test_a_training_goes_on_with_another_number_of_workers(after, tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    def start(communicator):
        make(communicator=communicator).train(
            lambda solver: communicator.rank == 0 and solver.iteration == 4 and solver.save(path)
        )

    def go_on(communicator):
        solver = make(communicator=communicator)
        solver.resume(path)
        solver.train()
        return results_of(solver)

    Threads.run(4, start)
    assert_same_results(Threads.run(after, go_on)[-1], train_on(1, make))


@pytest.mark.parametrize("error", [ValueError("a broken disk"), MemoryError("no memory left")])
def test_all_workers_end_with_an_error_that_names_the_worker_that_failed(error):
    texts = []

    def fail(solver):
        if solver._workers.communicator.rank == 2 and solver.iteration == 3:
            raise error

    def train(communicator):
        try:
            make(communicator=communicator).train(fail)
        except WorkerError as problem:
            texts.append(str(problem))
            raise

    with pytest.raises(type(error)):
        Threads.run(4, train)
    assert texts == [f"rank 2 failed at iteration 3: {error}"] * 3


def test_a_silent_worker_is_named(monkeypatch):
    monkeypatch.setenv("XPCONV_WORKER_TIMEOUT", "0.3")

    def train(communicator):
        if communicator.rank == 1:
            communicator.timeout = 30
            return make(communicator=communicator).train(lambda solver: solver.iteration == 2 and wait(communicator))
        return make(communicator=communicator).train()

    def wait(communicator):
        with communicator._mail.changed:
            communicator._mail.changed.wait_for(lambda: communicator._mail.failure)

    with pytest.raises(WorkerError, match=r"rank 1 sent nothing for 0\.3 s at iteration 3: it was stopped or killed"):
        Threads.run(2, train)


def test_a_loss_that_is_not_finite_stops_all_workers_at_the_same_iteration():
    def infinite(X, seed):
        X = X.astype(np.float64)
        X[7] = np.inf
        return X

    def train(communicator):
        with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError, match="at iteration 1 ") as caught:
            make(communicator=communicator, augment=infinite).train()
        return str(caught.value)

    assert len({*Threads.run(4, train)}) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"batch_size": 16}, "batch_size at iteration|batch_size before"),
        ({"rng": 6}, r"rng\.\w+\.state"),
        ({"num_epochs": 3}, "num_epochs"),
        ({"filters": 4}, "model"),
    ],
)
def test_workers_that_start_differently_are_refused(change, field):
    def train(communicator):
        make(communicator=communicator, **(change if communicator.rank == 1 else {})).train()

    with pytest.raises(WorkerError, match=f"rank 1 differs from rank 0 in .*({field}).*: start all workers with"):
        Threads.run(2, train)


def test_replicas_that_drift_apart_stop_the_training():
    def drift(solver):
        if solver._workers.communicator.rank == 3 and solver.iteration == 2:
            solver.model.params["W1"][...] += 1e-12

    with pytest.raises(WorkerError, match="rank 3 differs from rank 0 in parameters at iteration 3"):
        Threads.run(4, lambda communicator: make(communicator=communicator).train(drift))


def test_workers_that_cannot_share_the_micro_batches_are_refused():
    with pytest.raises(ArgumentError, match="microbatches is 2, which 4 workers cannot share equally"):
        Threads.run(4, lambda communicator: make(communicator=communicator, microbatches=2))


def test_the_courses_solver_takes_no_workers():
    with pytest.raises(ArgumentError, match='Unrecognized arguments "communicator"'):
        CourseSolver(NETS["two"](rng=0), OF_NETS, communicator=Communicator())


def test_only_rank_0_shows_progress(capsys):
    Threads.run(2, lambda communicator: make(communicator=communicator, verbose=True, print_every=1).train())
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("(Iteration ")]) == 6


@pytest.mark.parametrize("size", ["0", "1", "", "many"])
def test_a_launcher_of_one_worker_needs_no_mpi(monkeypatch, size):
    for name in SIZES:
        monkeypatch.setenv(name, size)
    assert find_communicator().size == 1
