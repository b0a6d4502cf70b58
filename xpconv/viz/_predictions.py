"""Pictures of a model's predictions: a confusion matrix, and the images with the least likely labels."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, to_host
from xpconv.data.rows import Rows
from xpconv.errors import ArgumentError
from xpconv.viz._figure import as_host_array, new_figure, set_title, write_figure

__all__ = ["save_confusion_matrix", "save_mistakes"]

MAX_CLASS_NAMES = 50  # more names would overlap
MAX_COUNTED_CLASSES = 30  # numbers in the cells of more classes would overlap
MAX_COLUMNS = 5


def save_confusion_matrix(y: Array, predicted: Array, class_names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw how often images of each class were predicted to be of each class, as a PNG.

    Parameters
    ----------
    y, predicted : Array (N,) of integers
        Labels and predicted classes.
    class_names : sequence of str
        One name for each class.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If `y` and `predicted` differ in shape, are empty or are out of range.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_confusion_matrix(
    ...         [0, 0, 1],
    ...         [0, 1, 1],
    ...         ["cat", "dog"],
    ...         os.path.join(folder, "confusion.png"),
    ...     )
    ...     os.listdir(folder)
    ['confusion.png']
    """
    y, predicted = (np.asarray(as_host_array(labels), np.int64) for labels in (y, predicted))
    num_classes = len(class_names)
    if y.shape != predicted.shape or y.size == 0 or not _are_labels(np.stack([y, predicted]), num_classes):
        raise ArgumentError(
            f"y has shape {y.shape} and predicted {predicted.shape}; expected labels (N,) from 0 to "
            f"{num_classes - 1} in both, N at least 1"
        )
    counts = np.bincount(y * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * num_classes, 4.5), 16)
    figure = new_figure((side + 1.3, side), "constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    ticks = range(0, num_classes, -(-num_classes // MAX_CLASS_NAMES))
    names = [_short_name(class_names[i]) for i in ticks]
    axes.set_xticks(ticks, names, **({"rotation": 45, "ha": "right"} if max(map(len, names)) > 2 else {}))
    axes.set_yticks(ticks, names)
    set_title(axes, f"{int(np.trace(counts))} of {len(y)} images correct")
    axes.set(xlabel="predicted class", ylabel="true class")
    if num_classes <= MAX_COUNTED_CLASSES:
        _draw_counts(axes, counts, fractions)
    write_figure(figure, path)


def _are_labels(values: np.ndarray, num_classes: int) -> bool:
    return bool(values.min() >= 0 and values.max() < num_classes)


def _draw_counts(axes: Any, counts: np.ndarray, fractions: np.ndarray) -> None:
    """Write each count into its cell, white on dark cells."""
    for i, j in zip(*np.nonzero(counts), strict=True):
        color = "white" if fractions[i, j] > 0.5 else "black"
        axes.text(j, i, counts[i, j], ha="center", va="center", fontsize=9, color=color)


def save_mistakes(
    X: Array,
    y: Array,
    probabilities: Array,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    count: int = 20,
) -> None:
    """Draw the images whose true classes have the lowest probabilities, as a PNG.

    Above each image are its true class, the predicted class and the predicted class's probability, in bold if the
    prediction is wrong.

    Parameters
    ----------
    X : Array
        Images (N, C, H, W) with values from 0 to 255 and 1 or 3 channels.
    y : Array (N,) of integers
        Labels.
    probabilities : Array (N, K)
        The model's probability of each class.
    class_names : sequence of str
        K names.
    path : str or path
        Where to write.
    count : int
        Number of images to draw; all are drawn if there are fewer.

    Raises
    ------
    ArgumentError
        If shapes do not match, there are no images, or `count` is below 1.
    ArgumentTypeError
        If `count` is not an integer.

    Examples
    --------
    >>> import os, tempfile
    >>> X, y, probabilities = (
    ...     np.zeros((2, 1, 8, 8), np.uint8),
    ...     [0, 1],
    ...     [[0.9, 0.1], [0.7, 0.3]],
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_mistakes(
    ...         X, y, probabilities, ["cat", "dog"], os.path.join(folder, "mistakes.png")
    ...     )
    ...     os.listdir(folder)
    ['mistakes.png']
    """
    X = X if isinstance(X, Rows) else to_host(X)
    y, probs = np.asarray(as_host_array(y), np.int64), np.asarray(to_host(probabilities))
    if X.ndim != 4 or X.shape[1] not in (1, 3) or probs.shape != (len(X), len(class_names)) or y.shape != (len(X),):
        raise ArgumentError(
            f"X has shape {X.shape}, y {y.shape} and probabilities {probs.shape}; expected images "
            f"(N, 1 or 3, H, W), labels (N,) and (N, {len(class_names)})"
        )
    if not len(X):
        raise ArgumentError(f"X has shape {X.shape}; expected one image or more")
    predicted = probs.argmax(axis=1)
    wrong = int(np.sum(predicted != y))
    chosen = np.argsort(probs[np.arange(len(y)), y], kind="stable")[: check_count("count", count)]
    num_columns = min(len(chosen), MAX_COLUMNS)
    num_rows = -(-len(chosen) // num_columns)
    width, height = 2 * num_columns, 2.35 * num_rows + 0.6
    figure = new_figure((width, height))
    figure.suptitle(
        f"Least likely true classes: true → predicted (probability)\n"
        f"{wrong} of {len(y)} images wrong{', in bold' * bool(wrong)}",
        fontsize=11,
        y=1 - 0.1 / height,
    )
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images, in inches: axes for each would take seconds
    for place, i in enumerate(chosen):
        row, column = divmod(place, num_columns)
        centre, bottom = 2 * column + 1, height - 0.6 - 2.35 * (row + 1)
        _draw_image(axes, X[i], centre, bottom + 0.9)
        true_name, predicted_name = _short_name(class_names[y[i]]), _short_name(class_names[predicted[i]])
        axes.text(
            centre,
            bottom + 1.8,
            f"{true_name}\n→ {predicted_name} ({probs[i, predicted[i]]:.2f})",
            ha="center",
            fontsize=10,
            fontweight="bold" if predicted[i] != y[i] else "normal",
        )
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    write_figure(figure, path)


def _draw_image(axes: Any, image: np.ndarray, x: float, y: float) -> None:
    """Draw an image (C, H, W) around a point; its longer side is 1.7 wide."""
    pixels = np.clip(image.transpose(1, 2, 0), 0, 255).astype(np.uint8)
    height, width = 0.85 * np.array(pixels.shape[:2]) / max(pixels.shape[:2])
    axes.imshow(
        pixels if pixels.shape[2] == 3 else pixels[:, :, 0],
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(x - width, x + width, y - height, y + height),
        aspect="auto",
    )


def _short_name(name: str) -> str:
    """Return the name, cut before it would overlap its neighbours, with dollars escaped: Matplotlib reads TeX there."""
    return (name if len(name) <= 13 else name[:12] + "…").replace("$", r"\$")
