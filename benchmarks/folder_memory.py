"""Measure the peak memory of training on a folder of many images.

python -m benchmarks.folder_memory [--images 100000] [--files 1000] [--side 64] [--iterations 300]

The images are hard links to a smaller number of files in a temporary folder. The training runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

LIMIT = 500  # MiB
CLASSES = ("stripes", "noise")
TRAIN = """
import json, resource, sys, time
from xpconv import Solver, ThreeLayerConvNet
from xpconv.data import load_folder
from xpconv.data._fingerprint import channel_statistics
from xpconv.nn import Preprocessing

folder, iterations, max_memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
data = load_folder(folder, max_memory=max_memory)
read = time.perf_counter() - start
mean, std = (values[:, None, None] for values in channel_statistics(data.X_train))
net = ThreeLayerConvNet(input_dim=data.input_shape, num_classes=2, rng=0, preprocessing=Preprocessing(mean, std))
solver = Solver(net, data, update_rule="adam", batch_size=50, num_epochs=1, num_val_samples=1000, rng=0, verbose=False)

def stop(solver):
    if solver.iteration == iterations:
        solver.state_dict()
        raise KeyboardInterrupt

start = time.perf_counter()
solver.train(stop)
print(json.dumps({
    "images": len(data.y_train) + len(data.y_val) + len(data.y_test),
    "kind": type(data.X_train).__name__,
    "decoded_mib": sum(X.nbytes for X in (data.X_train, data.X_val, data.X_test)) / 2**20,
    "reading_s": read,
    "iteration_ms": 1000 * (time.perf_counter() - start) / solver.iteration,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def make_folder(root: Path, num_images: int, num_files: int, side: int) -> None:
    """Make a folder of two classes whose images are hard links to `num_files` JPEG files."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        originals = []
        for i in range(num_files // len(CLASSES)):
            pixels = rng.normal(128, 60, (side, side, 3))
            if name == "stripes":
                pixels += 80 * np.sin(np.arange(side) * rng.uniform(0.3, 1.0))[:, None]
            originals.append(root / name / f"{i:06d}.jpg")
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(originals[-1])
        for i in range(len(originals), num_images // len(CLASSES)):
            os.link(originals[i % len(originals)], root / name / f"{i:06d}.jpg")


def main(
    images: Annotated[int, typer.Option(help="Images in the folder.")] = 100_000,
    files: Annotated[int, typer.Option(help="Files that differ; the other images are hard links to them.")] = 1000,
    side: Annotated[int, typer.Option(help="Height and width of the files in pixels.")] = 64,
    iterations: Annotated[int, typer.Option(help="Iterations to train.")] = 300,
    max_memory: Annotated[int, typer.Option(help="As for xpconv train.")] = 256,
) -> None:
    """Print the peak memory as JSON, and exit with 1 if it reaches 500 MiB."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        make_folder(Path(folder), images, files, side)
        print(f"made {images} images in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        command = [sys.executable, "-c", TRAIN, folder, str(iterations), str(max_memory)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(result, indent=2))
    if result["peak_mib"] >= LIMIT:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
