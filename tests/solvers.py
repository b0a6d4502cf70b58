"""Solvers that several test modules share, and the comparison of their results."""

import numpy as np

from xpconv import Solver
from xpconv.backend import to_host
from xpconv.data.augment import parse_augmentation
from xpconv.nn import Affine, BatchNorm, Conv, Dropout, Relu, Sequential

HISTORIES = ("loss_history", "learning_rate_history", "train_acc_history", "val_acc_history", "val_loss_history")


def make_solver(data, *, backend="numpy", dtype="float64", filters=3, **options):
    """Return a Solver with everything that has a state: running statistics, masks, samples of checks, augmentation."""
    net = Sequential(
        [Conv(filters, padding="same"), BatchNorm(), Relu(), Dropout(0.8), Affine(3)],
        input_shape=(1, 4, 4),
        rng=0,
        dtype=dtype,
        backend=backend,
    )
    defaults = {
        "update_rule": "adam",
        "optim_config": {"learning_rate": 0.02},
        "lr_decay": 0.9,
        "batch_size": 7,
        "num_epochs": 3,
        "num_train_samples": 20,
        "num_val_samples": 10,
        "verbose": False,
        "rng": 5,
        "augment": parse_augmentation("crop-flip"),
    }
    return Solver(net, data, **{**defaults, **options})


def saving_at(iteration, path):
    """Return a callback that saves a checkpoint after one iteration."""
    return lambda solver: solver.iteration == iteration and solver.save(path)


def results_of(solver):
    """Return copies of all results of a training by name, in host memory."""
    params, state = solver.current()
    stores = {
        "params": params,
        "state": state,
        "best": solver.best_params,
        "best_state": solver.best_state,
        "health": solver.health_history,
        **solver._averages.arrays,
        "loss_scale": solver._loss_scale.arrays,
        **{f"memory of {name}": config for name, config in solver.optim_configs.items()},
    }
    results = {f"{kind} {name}": value for kind, store in stores.items() for name, value in store.items()}
    results |= {name: getattr(solver, name) for name in (*HISTORIES, "epoch", "iteration", "skipped", "best_val_acc")}
    return {name: np.array(to_host(value)) for name, value in results.items()}


def assert_same(solver, other):
    """Check that two trainings have the same results, to the bit."""
    assert_same_results(results_of(solver), results_of(other))


def assert_same_results(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, strict=True, err_msg=name)
