"""Draw the pictures of the documentation with matplotlib while it is built."""

import re
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

COLOURS = (
    "tab:blue",
    "tab:orange",
    "tab:green",
    "tab:red",
    "tab:purple",
    "tab:brown",
    "tab:pink",
    "tab:olive",
    "tab:cyan",
)
CELL = 0.42  # inches


def grid(axes, values, title="", colours=None, marked=()):
    """Draw a small matrix as squares; `colours` tints them (None: white), `marked` squares get a heavy frame."""
    values = np.atleast_2d(values)
    rows, columns = values.shape
    for i in range(rows):
        for j in range(columns):
            tint = None if colours is None else colours[i][j]
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=tint or "white", alpha=0.35 if tint else 1, linewidth=0))
            axes.add_patch(Rectangle((j, i), 1, 1, fill=False, edgecolor="0.6", linewidth=0.8))
            axes.text(j + 0.5, i + 0.5, f"{values[i, j]:g}", ha="center", va="center", fontsize=10)
    for i, j in marked:
        axes.add_patch(Rectangle((j + 0.06, i + 0.06), 0.88, 0.88, fill=False, edgecolor="black", linewidth=2))
    axes.set(xlim=(-0.05, columns + 0.05), ylim=(rows + 0.05, -0.05), aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def row_of_grids(*grids, between=()):
    """Draw matrices side by side on one scale, with the signs of `between`, such as "=", between them."""
    shapes = [np.atleast_2d(options["values"]).shape for options in grids]
    widths = [columns for _, columns in shapes]
    titles = max(options.get("title", "").count("\n") + 1 for options in grids)
    tallest, gap = max(rows for rows, _ in shapes), 1.6
    total = sum(widths) + gap * (len(grids) - 1)
    figure = plt.figure(figsize=(CELL * total + 0.3, CELL * tallest + 0.25 * titles + 0.2))
    left, usable = 0.0, CELL * tallest / figure.get_figheight()
    for k, (options, (rows, columns)) in enumerate(zip(grids, shapes, strict=True)):
        height = usable * rows / tallest
        axes = figure.add_axes((left / total, (usable - height) / 2 + 0.02, columns / total, height))
        grid(axes, **options)
        left += columns
        if k < len(grids) - 1:
            sign = between[k] if k < len(between) else ""
            figure.text((left + gap / 2) / total, usable / 2 + 0.02, sign, ha="center", va="center", fontsize=16)
            left += gap
    return figure


def window_colours(image_shape, size, stride=1):
    """Return the colour and the top left pixel of each window of an image."""
    starts = [
        (i, j) for i in range(0, image_shape[0] - size + 1, stride) for j in range(0, image_shape[1] - size + 1, stride)
    ]
    return list(zip(COLOURS, starts, strict=False))


def draw_windows(image, size, stride=1):
    """Draw an image once for each of its windows, with that window tinted."""
    panels = []
    for number, (colour, (top, left)) in enumerate(window_colours(image.shape, size, stride)):
        tints = [
            [colour if top <= i < top + size and left <= j < left + size else None for j in range(image.shape[1])]
            for i in range(image.shape[0])
        ]
        panels.append({"values": image, "title": f"window {number}", "colours": tints})
    return row_of_grids(*panels)


def draw_columns(cols, colours, title):
    """Draw a matrix with one colour for each column."""
    return row_of_grids({"values": cols, "title": title, "colours": [list(colours)] * len(cols)})


def draw_product(rows, cols, colours):
    """Draw a matrix of filters, a matrix of columns, and their product."""
    tint = [list(colours)]
    return row_of_grids(
        {"values": rows, "title": "filters, one per row"},
        {"values": cols, "title": "windows, one per column", "colours": tint * len(cols)},
        {"values": rows @ cols, "title": "outputs", "colours": tint * len(rows)},
        between=("@", "="),
    )


def draw_images(images, titles=(), columns=8, width=1.1, cmap="gray"):
    """Draw images (H, W) in rows, each scaled to its own range of values."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(columns * width, rows * (width + 0.2 * bool(len(titles)))),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for k, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image, cmap=cmap)
        if k < len(titles):
            axis.set_title(titles[k], fontsize=9)
    return figure


def draw_shared_statistics():
    """Draw which values share a mean and a variance in each norm, for 4 samples of 4 channels."""
    kinds = {
        "batch norm": lambda n, c: c,
        "layer norm": lambda n, c: n,
        "group norm, 2 groups": lambda n, c: (n, c // 2),
    }
    figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
    for axis, (name, owner) in zip(axes, kinds.items(), strict=True):
        owners = list(dict.fromkeys(owner(n, c) for n in range(4) for c in range(4)))
        for n in range(4):
            for c in range(4):
                colour = COLOURS[owners.index(owner(n, c)) % len(COLOURS)]
                axis.add_patch(Rectangle((c, n), 1, 1, facecolor=colour, alpha=0.5, edgecolor="white", linewidth=2))
        axis.set(
            xlim=(0, 4),
            ylim=(4, 0),
            aspect="equal",
            title=name,
            xlabel="channels",
            ylabel="samples",
            xticks=[],
            yticks=[],
        )
    return figure


KINDS = {  # what a floor may use, and its colour in the picture
    "no array library": "#cfe8cf",
    "any array library": "#f6d9b8",
    "NumPy, on the host": "#d5e0f3",
}
NEUTRAL, LIBRARY, HOST = KINDS
FLOORS = {  # name: (kind, what it holds)
    "cli": (HOST, "commands and run folders"),
    "cs231n": (HOST, "the course's names and signatures"),
    "parallel": (HOST, "workers that train one model together: MPI, NCCL, threads"),
    "training": (HOST, "Solver, update rules, schedules, checkpoints, preflight checks"),
    "viz": (HOST, "curves, filters, confusion matrix, mistakes"),
    "io": (HOST, "model files, ONNX, PyTorch state dicts"),
    "data": (HOST, "data sets, sampling, augmentation"),
    "testing": (LIBRARY, "gradient checks, comparison of backends, layer checks"),
    "nn": (NEUTRAL, "layer objects, Sequential, models"),
    "layers": (NEUTRAL, "forward and backward functions; reference.py as plain loops"),
    "ops": (LIBRARY, "operations beyond the array standard, with fast versions for NumPy and CuPy"),
    "backend": (LIBRARY, "selecting an array library and device, moving arrays"),
    "random": (HOST, "random streams drawn on the host"),
    "_deferred": (HOST, "numbers without a value while a step is captured"),
    "_validation": (HOST, "checks of arguments"),
    "_html": (HOST, "tables in HTML"),
    "errors": (HOST, "exceptions"),
    "_version": (HOST, "the version"),
}


def floors():
    """Return the floors from the bottom up, as pyproject.toml orders them: a list of names for each row."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [[name.strip(" ()") for name in re.split("[:|]", row)] for row in reversed(layers)]


def draw_architecture():
    """Draw the floors of the package, one above the other: each imports only from itself and the floors below."""
    rows = floors()
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 0.8), layout="constrained")
    for row, names in enumerate(rows):
        width = 1 / len(names)
        for column, name in enumerate(names):
            kind, text = FLOORS[name]
            axes.add_patch(Rectangle((column * width, row), width, 0.86, facecolor=KINDS[kind], edgecolor="0.4"))
            axes.text(column * width + 0.015, row + 0.43, name, va="center", fontsize=10, weight="bold")
            axes.text(column * width + 0.15, row + 0.43, text, va="center", fontsize=9)
    axes.annotate(
        "", (1.03, 0), (1.03, len(rows) - 0.14), arrowprops={"arrowstyle": "-|>", "color": "0.4"}, annotation_clip=False
    )
    axes.text(1.045, len(rows) / 2, "imports", rotation=270, va="center", ha="left", fontsize=9, color="0.4")
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="0.4", label=kind) for kind, colour in KINDS.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False, title="may use")
    axes.set(xlim=(-0.01, 1.08), ylim=(-0.05, len(rows)))
    axes.set_axis_off()
    return figure
