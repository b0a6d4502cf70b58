"""A training that a launcher starts on several workers: ``mpiexec -n 2 python -m tests.mpi_training FOLDER [FAULT]``.

Rank 0 prints each iteration, writes a checkpoint after every second one, and at the end ``results.npz``. A fault is
``raise`` or ``memory``: an error on rank 1 at iteration 5.
"""

import sys
from pathlib import Path

import numpy as np

from tests.solvers import make_solver, results_of
from xpconv.parallel import Mpi
from xpconv.training.checkpoint import CheckpointFolder

ERRORS = {"raise": ValueError("a broken disk"), "memory": MemoryError("no memory left")}


def main(folder, fault=""):
    rng, communicator = np.random.default_rng(5), Mpi()
    images = {f"X_{split}": rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8) for split, count in SPLITS.items()}
    labels = {f"y_{split}": np.arange(count) % 3 for split, count in SPLITS.items()}
    solver = make_solver(images | labels, batch_size=8, microbatches=4, num_epochs=20, communicator=communicator)
    checkpoints = CheckpointFolder(Path(folder, "checkpoints"))
    if (newest := checkpoints.newest(print)) is not None:
        solver.resume(newest)

    def each_iteration(solver):
        if communicator.rank == 1 and solver.iteration == 5 and fault:
            raise ERRORS[fault]
        if communicator.rank == 0:
            print("iteration", solver.iteration, flush=True)
            if solver.iteration % 2 == 0:
                checkpoints.save(solver)

    solver.train(each_iteration)
    if communicator.rank == 0 and not solver.interrupted:
        np.savez(Path(folder, "results.npz"), **results_of(solver))


SPLITS = {"train": 24, "val": 12}

if __name__ == "__main__":
    main(*sys.argv[1:])
