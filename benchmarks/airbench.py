"""Train the net that learns CIFAR-10 to 94 % in seconds (Jordan, 2024), and print its accuracy and the seconds.

python -m benchmarks.airbench [--backend cupy] [--seeds 5] [--precision full] [--tf32] [--epochs 9.9] [--json FILE]

CIFAR-10 is read from the folder that XPCONV_DATA names. Timing starts with the images on the device and ends with the
trained parameters. The first training of a process also compiles kernels and captures steps, so a short training comes
first; its time is printed separately.
Published: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.
"""

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Mapping, Sequence
from math import ceil, inf
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import device
from xpconv import Preprocessing, Solver, get_backend, set_tf32
from xpconv._validation import check_count
from xpconv.backend import Array, Backend
from xpconv.data import load_cifar10
from xpconv.data._fingerprint import channel_statistics
from xpconv.data.augment import parse_augmentation
from xpconv.nn import Airbench
from xpconv.training import Lookahead
from xpconv.training.metrics import MirrorAveraged, evaluate
from xpconv.training.schedules import one_cycle, polynomial

BATCH_SIZE, EPOCHS = 1024, 9.9
LEARNING_RATE, WEIGHT_DECAY = 11.5, 0.0153  # as published, per 1024 images
MOMENTUM = 0.85
NORM_RATE = 64  # multiplies the learning rate of the norms' betas, and divides their weight decay
BIAS_EPOCHS = 3  # in which the bias of the first convolution is trained
WARM_UP_STEPS = 12


def recipe(steps: int, batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Return the published options of a Solver for a training of `steps` steps."""
    rate = LEARNING_RATE / (1024 * (1 + 1 / (1 - MOMENTUM)))
    decay = WEIGHT_DECAY * batch_size / LEARNING_RATE
    return {
        "update_rule": "sgd_nesterov",
        "optim_config": {"learning_rate": rate, "momentum": MOMENTUM, "weight_decay": decay},
        "param_options": {"beta*": {"learning_rate": NORM_RATE * rate, "weight_decay": decay / NORM_RATE}},
        "schedule": one_cycle(steps, peak=0.23, start=0.2, final=0.07, shape="linear"),
        "lookahead": Lookahead(5, polynomial(steps, 3, start=0, final=0.95**5), statistics=True),
        "sampling": "epoch",
        "batch_size": batch_size,
    }


def build_solver(
    data: Mapping[str, Array],
    seed: int,
    *,
    backend: Backend,
    epochs: float = EPOCHS,
    batch_size: int = BATCH_SIZE,
    widths: Sequence[int] = (64, 256, 256),
    preprocessing: Preprocessing | None = None,
    schedule_steps: int | None = None,
    **options: Any,
) -> Solver:
    """Return a Solver that is ready to train the net by the recipe; `options` are those of the net.

    `data` holds training and validation images and labels on the device. The schedules end after `schedule_steps`
    steps, by default at the end of the training.
    """
    rng = np.random.default_rng(seed)
    net = Airbench(
        widths,
        input_dim=data["X_train"].shape[1:],
        preprocessing=preprocessing,
        loss_options={"label_smoothing": 0.2, "reduction": "sum"},
        backend=backend,
        rng=rng,
        **options,
    )
    net.whiten(data["X_train"][:5000, ...])
    steps = ceil(round(epochs * max(data["X_train"].shape[0] // batch_size, 1), 6))
    return Solver(
        net,
        data,
        **recipe(schedule_steps or steps, batch_size),
        augment=parse_augmentation("reflect2-alternate", seed),
        num_epochs=epochs,
        check_every=ceil(epochs) + 1,  # only after the last epoch
        num_train_samples=100,
        verbose=False,
        rng=rng,
    )


def freeze_first_convolution(solver: Solver) -> None:
    """Freeze the first convolution after BIAS_EPOCHS epochs; the callback of `Solver.train`."""
    if solver.iteration == BIAS_EPOCHS * (solver.X_train.shape[0] // solver.batch_size):
        solver.model.freeze("conv1")


def train_seed(data: Mapping[str, Array], seed: int, **options: Any) -> tuple[float, Solver]:
    """Train with one seed; return the seconds and the Solver."""
    start = perf_counter()
    solver = build_solver(data, seed, **options)
    solver.train(freeze_first_convolution)  # waits for the device at its end, to read the accuracy
    return perf_counter() - start, solver


def warm_up(data: Mapping[str, Array], *, backend: Backend, batch_size: int = BATCH_SIZE, **options: Any) -> float:
    """Take a few steps of the same shapes at a low learning rate, which compiles and captures; return the seconds."""
    few = {name: a[: batch_size * (WARM_UP_STEPS if name.endswith("train") else 1), ...] for name, a in data.items()}
    options |= {"epochs": 1, "schedule_steps": 100 * WARM_UP_STEPS}
    return train_seed(few, 0, backend=backend, batch_size=batch_size, **options)[0]


def load(backend: Backend, num_images: int | None = None) -> tuple[dict[str, Array], dict[str, Array], Preprocessing]:
    """Return the training data, which include the validation images, the test data, and the preprocessing."""
    dataset = load_cifar10(download=False)
    X = np.concatenate([dataset.X_train, dataset.X_val])[:num_images]
    y = np.concatenate([dataset.y_train, dataset.y_val])[:num_images]
    average, deviation = (values[:, None, None] for values in channel_statistics(X))
    train = {"X_train": X, "y_train": y, "X_val": X[-100:], "y_val": y[-100:]}
    test = {"X": dataset.X_test[:num_images], "y": dataset.y_test[:num_images]}
    train, test = ({name: backend.asarray(a) for name, a in arrays.items()} for arrays in (train, test))
    return train, test, Preprocessing(average, deviation)


def measure(
    train: Mapping[str, Array], test: Mapping[str, Array], seed: int, *, backend: Backend, **options: Any
) -> dict[str, float]:
    """Train with one seed and evaluate; return the results."""
    seconds, solver = train_seed(train, seed, backend=backend, **options)
    start = perf_counter()
    plain = evaluate(solver.model, test["X"], test["y"], backend, 2000).accuracy
    averaged = evaluate(MirrorAveraged(solver.model, shift=1), test["X"], test["y"], backend, 2000).accuracy
    return {
        "seed": seed,
        "accuracy": averaged,
        "accuracy_of_one_view": plain,
        "seconds": seconds,
        "evaluation_seconds": perf_counter() - start,
        "last_loss": solver.loss_history[-1],
    }


def main(
    *,
    backend: str = "cupy",
    seeds: int = 5,
    precision: str = "full",
    tf32: bool = False,
    epochs: float = EPOCHS,
    batch_size: int = BATCH_SIZE,
    widths: str = "64,256,256",
    num_images: int | None = None,
    min_accuracy: float = 0.0,
    max_seconds: float = inf,
    json_file: Path | None = None,
) -> None:
    """Train with each seed; print the accuracy on the test images and the seconds."""
    seeds = check_count("seeds", seeds)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the trainings
    chosen = get_backend(backend)
    set_tf32(tf32)
    train, test, preprocessing = load(chosen, num_images)
    options: dict[str, Any] = {
        "backend": chosen,
        "epochs": epochs,
        "batch_size": batch_size,
        "widths": [int(width) for width in widths.split(",")],
        "preprocessing": preprocessing,
        **({} if precision == "full" else {"precision": precision}),
    }
    first = warm_up(train, **options)
    print(f"compilation and first capture: {first:.2f} s", flush=True)
    rows = []
    for seed in range(seeds):
        rows.append(measure(train, test, seed, **options))
        print(
            "seed {seed}: accuracy {accuracy:.4f} (one view {accuracy_of_one_view:.4f}), {seconds:.2f} s".format(
                **rows[-1]
            ),
            flush=True,
        )
    accuracy, seconds = (mean(row[name] for row in rows) for name in ("accuracy", "seconds"))
    print(f"mean: accuracy {accuracy:.4f}, {seconds:.2f} s, with compilation and first capture {seconds + first:.2f} s")
    result = {
        "precision": precision,
        "tf32": tf32,
        "epochs": epochs,
        "batch_size": batch_size,
        "device": device.describe() if chosen.library == "cupy" else {},
        "first_capture_seconds": first,
        "accuracy": accuracy,
        "seconds": seconds,
        "seconds_with_first_capture": seconds + first,
        "seeds": rows,
    }
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if accuracy < min_accuracy or seconds > max_seconds:
        print(f"MISSED: expected an accuracy of {min_accuracy:g} or more in {max_seconds:g} s or less")
        sys.exit(1)


def parse_arguments() -> dict[str, Any]:
    """Return the arguments of `main` on the command line."""
    parser = ArgumentParser(prog="python -m benchmarks.airbench", formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backend", default="cupy", help="the backend, as in XP_BACKEND")
    parser.add_argument("--seeds", type=int, default=5, help="train with this number of seeds: 0, 1, ...")
    parser.add_argument("--precision", choices=("full", "mixed"), default="full", help="mixed computes in float16")
    parser.add_argument("--tf32", action="store_true", help="round the factors of products to TF32")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="length of a training")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images per step")
    parser.add_argument("--widths", default="64,256,256", help="filters of the blocks")
    parser.add_argument("--num-images", type=int, help="use this number of images, for a trial")
    parser.add_argument("--min-accuracy", type=float, default=0.0, help="fail below this mean accuracy")
    parser.add_argument("--max-seconds", type=float, default=inf, help="fail above this mean training time")
    parser.add_argument("--json", type=Path, dest="json_file", help="write the results to this file")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main(**parse_arguments())
