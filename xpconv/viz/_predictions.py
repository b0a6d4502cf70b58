"""Pictures of what a model takes for what: a confusion matrix and the images it knows least."""

import os
from collections.abc import Sequence

import numpy as np

from xpconv.backend import Array, to_host
from xpconv.errors import ArgumentError
from xpconv.viz._figure import new_figure, numbers, write_figure

__all__ = ["save_confusion_matrix", "save_mistakes"]


def save_confusion_matrix(y: Array, predicted: Array, class_names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw how often images of each class were taken for each class and write a PNG.

    Parameters
    ----------
    y, predicted : Array (N,) of integers
        Labels and the classes that a model told.
    class_names : sequence of str
        One name for each class.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If `y` and `predicted` differ in shape or name other classes.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_confusion_matrix([0, 0, 1], [0, 1, 1], ["cat", "dog"], os.path.join(folder, "confusion.png"))
    ...     os.listdir(folder)
    ['confusion.png']
    """
    y, predicted = (np.asarray(labels, np.int64) for labels in (numbers(y), numbers(predicted)))
    C = len(class_names)
    if (
        y.shape != predicted.shape
        or y.size == 0
        or min(y.min(), predicted.min()) < 0
        or (max(y.max(), predicted.max()) >= C)
    ):
        raise ArgumentError(
            f"y has shape {y.shape} and predicted {predicted.shape}; expected labels (N,) from 0 to "
            f"{C - 1} in both, N at least 1"
        )
    counts = np.bincount(y * C + predicted, minlength=C * C).reshape(C, C)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * C, 4.5), 16)
    figure = new_figure((side + 1.3, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.8)
    ticks = range(0, C, -(-C // 50))
    names = [_short(class_names[i]) for i in ticks]
    axes.set_xticks(ticks, names, **({"rotation": 45, "ha": "right"} if max(map(len, names)) > 2 else {}))
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{int(np.trace(counts))} of {len(y)} images correct")
    if C <= 30:
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(
                j,
                i,
                counts[i, j],
                ha="center",
                va="center",
                fontsize=9,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    write_figure(figure, path)


def save_mistakes(
    X: Array,
    y: Array,
    probabilities: Array,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    count: int = 20,
) -> None:
    """Draw the images whose own class a model holds least likely and write a PNG.

    Above each stand its class and what the model took it for, with the probability of that: bold if it is wrong.

    Parameters
    ----------
    X : Array
        Images (N, C, H, W), uint8 or from 0 to 255, of 1 or 3 channels.
    y : Array (N,) of integers
        Labels.
    probabilities : Array (N, K)
        What the model gives each class.
    class_names : sequence of str
        K names.
    path : str or path
        Where to write.
    count : int
        How many images to draw.

    Raises
    ------
    ArgumentError
        If the shapes do not fit each other.

    Examples
    --------
    >>> import os, tempfile
    >>> X, y, p = np.zeros((2, 1, 8, 8), np.uint8), [0, 1], [[0.9, 0.1], [0.7, 0.3]]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_mistakes(X, y, p, ["cat", "dog"], os.path.join(folder, "mistakes.png"))
    ...     os.listdir(folder)
    ['mistakes.png']
    """
    X, y, p = to_host(X), np.asarray(numbers(y), np.int64), np.asarray(to_host(probabilities))
    if X.ndim != 4 or X.shape[1] not in (1, 3) or p.shape != (len(X), len(class_names)) or y.shape != (len(X),):
        raise ArgumentError(
            f"X has shape {X.shape}, y {y.shape} and probabilities {p.shape}; expected images "
            f"(N, 1 or 3, H, W), labels (N,) and (N, {len(class_names)})"
        )
    if not len(X) or count < 1:
        raise ArgumentError(f"there are {len(X)} images and count is {count}; expected one or more to draw")
    predicted = p.argmax(axis=1)
    chosen = np.argsort(p[np.arange(len(y)), y], kind="stable")[:count]
    columns = min(len(chosen), 5)
    figure = new_figure((2 * columns, 2.35 * -(-len(chosen) // columns) + 0.6))
    figure.suptitle(
        f"Least likely under their own class: true → predicted (probability)\n"
        f"{np.sum(predicted != y)} of {len(y)} images wrong, in bold",
        fontsize=11,
    )
    grid = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, chosen, strict=False):
        image = np.clip(X[i].transpose(1, 2, 0), 0, 255).astype(np.uint8)
        axes.imshow(image if X.shape[1] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=255)
        true, told = _short(class_names[y[i]]), _short(class_names[predicted[i]])
        axes.set_title(
            f"{true}\n→ {told} ({p[i, predicted[i]]:.2f})",
            fontsize=10,
            fontweight="bold" if predicted[i] != y[i] else "normal",
        )
    write_figure(figure, path)


def _short(name: str) -> str:
    """Return the name, cut where it would run into its neighbours; Matplotlib takes what is between dollars as TeX."""
    return (name if len(name) <= 13 else name[:12] + "…").replace("$", r"\$")
