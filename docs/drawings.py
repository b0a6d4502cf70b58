"""The pictures of the documentation, drawn with matplotlib from real arrays while it is built."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

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
    """Write a small matrix into squares; `colours` tints them (None: white), `marked` places get a heavy frame."""
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
    """Draw matrices beside each other on one scale, with a sign such as "=" after each but the last."""
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
    """Return, for each window of an image, its colour and the pixels (top, left) where it starts."""
    starts = [
        (i, j) for i in range(0, image_shape[0] - size + 1, stride) for j in range(0, image_shape[1] - size + 1, stride)
    ]
    return list(zip(COLOURS, starts, strict=False))


def draw_windows(image, size, stride=1):
    """Draw an image once for each of its windows, the window tinted."""
    panels = []
    for number, (colour, (top, left)) in enumerate(window_colours(image.shape, size, stride)):
        tints = [
            [colour if top <= i < top + size and left <= j < left + size else None for j in range(image.shape[1])]
            for i in range(image.shape[0])
        ]
        panels.append({"values": image, "title": f"window {number}", "colours": tints})
    return row_of_grids(*panels)


def draw_columns(cols, colours, title):
    """Draw a matrix whose columns have a colour each."""
    return row_of_grids({"values": cols, "title": title, "colours": [list(colours)] * len(cols)})


def draw_product(rows, cols, colours):
    """Draw a matrix of filters times a matrix of columns, and what it gives."""
    tint = [list(colours)]
    return row_of_grids(
        {"values": rows, "title": "filters, one a row"},
        {"values": cols, "title": "windows, one a column", "colours": tint * len(cols)},
        {"values": rows @ cols, "title": "outputs", "colours": tint * len(rows)},
        between=("@", "="),
    )


def draw_images(images, titles=(), columns=8, width=1.1, cmap="gray"):
    """Draw images (H, W) in rows, each stretched to its own range."""
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
    """Draw, for 4 samples of 4 channels, which values each norm takes one mean and one variance of."""
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


KINDS = {  # what a part of the package may know, and its colour in the picture
    "names no array library": "#cfe8cf",
    "knows the array libraries": "#f6d9b8",
    "works on the host, may use NumPy": "#d5e0f3",
    "outside xpconv": "#e8e8e8",
}
NEUTRAL, LIBRARY, HOST, OUTSIDE = KINDS
BOXES = {  # name: (column, row, kind, what it is)
    "cli.py": (1, 0, HOST, "the commands"),
    "cs231n/": (3, 0, HOST, "the course's\nnames"),
    "reference.py": (4, 0, HOST, "loops, to\ntest against"),
    "data/": (0, 1, HOST, "images, labels,\nminibatches"),
    "solver.py": (1, 1, HOST, "the training\nloop"),
    "sequential.py": (2, 1, NEUTRAL, "model.loss,\nparameters"),
    "layers/": (3, 1, NEUTRAL, "forward and\nbackward passes"),
    "primitives/": (4, 1, LIBRARY, "windows, tiles,\nfast versions"),
    "array library": (5, 1, OUTSIDE, "NumPy, CuPy,\ntorch, ..."),
    "checkpoint.py": (0, 2, HOST, "models\nas files"),
    "optim.py": (1, 2, NEUTRAL, "update rules"),
    "nn.py, models.py": (2, 2, NEUTRAL, "layers as objects,\nnets as lists"),
    "testing.py": (3, 2, LIBRARY, "gradient and\nequivalence checks"),
    "backend.py": (4, 2, LIBRARY, "the only door\nto the device"),
}
FLOW = ["data/", "solver.py", "sequential.py", "layers/", "primitives/", "array library"]
USES = [
    ("cli.py", "solver.py"),
    ("solver.py", "optim.py"),
    ("sequential.py", "nn.py, models.py"),
    ("cs231n/", "layers/"),
    ("testing.py", "layers/"),
]
WIDTH, HEIGHT, STEP_X, STEP_Y = 2.3, 1.1, 3.1, 2.1


def draw_architecture():
    """Draw how data flows through the package, and which part may know what."""
    figure, axes = plt.subplots(figsize=(11, 4.8), layout="constrained")

    def corner(name):
        column, row, *_ = BOXES[name]
        return column * STEP_X, row * STEP_Y

    def arrow(start, end, **style):
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, **style))

    for name, (_, _, kind, text) in BOXES.items():
        left, top = corner(name)
        axes.add_patch(Rectangle((left, top), WIDTH, HEIGHT, facecolor=KINDS[kind], edgecolor="0.4"))
        axes.text(left + WIDTH / 2, top + 0.25, name, ha="center", va="center", fontsize=9.5, weight="bold")
        axes.text(left + WIDTH / 2, top + 0.73, text, ha="center", va="center", fontsize=8.5)
    for here, there in pairwise(FLOW):
        (left, top), (right, _) = corner(here), corner(there)
        arrow((left + WIDTH, top + 0.35), (right, top + 0.35), color="tab:blue", linewidth=1.6)
        if here != "data/":
            arrow((right, top + 0.75), (left + WIDTH, top + 0.75), color="tab:red", linewidth=1.6, linestyle="--")
    for user, used in USES:
        (left, top), (_, other) = corner(user), corner(used)
        ends = (top + HEIGHT, other) if other > top else (top, other + HEIGHT)
        arrow((left + WIDTH / 2, ends[0]), (left + WIDTH / 2, ends[1]), color="0.4", linewidth=1)
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="0.4", label=kind) for kind, colour in KINDS.items()]
    handles += [
        Line2D([], [], color="tab:blue", label="data"),
        Line2D([], [], color="tab:red", linestyle="--", label="gradients"),
        Line2D([], [], color="0.4", linewidth=1, label="uses"),
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False, fontsize=9)
    axes.set(xlim=(-0.1, 5 * STEP_X + WIDTH + 0.1), ylim=(2 * STEP_Y + HEIGHT + 0.15, -0.15))
    axes.set_axis_off()
    return figure
