"""Pictures of how trainings went."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xpconv.errors import ArgumentError
from xpconv.viz._figure import new_figure, numbers, write_figure

__all__ = ["save_comparison", "save_curves"]

# Colours of Okabe and Ito, which people with any colour vision can tell apart; lines differ by marker or dash as well.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
BLUE, ORANGE = COLORS[:2]
HEALTH = {"update_ratio_": "Norm of update / norm of weights", "dead_relu_": "Share of dead ReLUs"}
LINES = "-", "--", "-.", ":"
MARKERS = "o", "s", "^", "D", "v", "P", "X"


def save_curves(history: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw loss, accuracy, learning rate and health of a training run and write a PNG.

    Parameters
    ----------
    history : mapping
        ``loss_history``, one value an iteration, and ``train_acc_history`` and ``val_acc_history``, one value
        an epoch, from epoch 0, which may be NaN; ``learning_rate_history``, one value an iteration, may be left out,
        and so may ``health_history``, a dict as `Solver` has it. Each is an array or a sequence of numbers and may be
        empty.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If `history` lacks one of the first three.

    Examples
    --------
    >>> import os, tempfile
    >>> history = {"loss_history": [2.3, 1.9], "train_acc_history": [0.1, 0.4], "val_acc_history": [0.1, 0.3]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_curves(history, os.path.join(folder, "curves.png"))
    ...     os.listdir(folder)
    ['curves.png']
    """
    losses, train, val = _histories(history, "loss_history", "train_acc_history", "val_acc_history")
    rates = numbers(history.get("learning_rate_history", ()))
    health = _health(history.get("health_history", {}))
    rows: dict[tuple[str, str], float] = {("loss", "accuracy"): 2.0}
    if len(rates):
        rows["loss", "rate"] = 1.0
    if health:
        rows[min(health), max(health)] = 1.5
    figure = new_figure((10, 8 if health else 5))
    panels = figure.subplot_mosaic([list(row) for row in rows], height_ratios=list(rows.values()))
    _draw_losses(panels["loss"], losses, BLUE)
    _draw_accuracies(panels["accuracy"], train, BLUE, "o", "training")
    _draw_accuracies(panels["accuracy"], val, ORANGE, "s", "validation")
    panels["accuracy"].set(title="Accuracy", xlabel="epoch", ylabel="accuracy")
    if len(rates):
        panels["rate"].plot(np.arange(1, len(rates) + 1), rates, color=BLUE)
        panels["rate"].set(title="Learning rate", xlabel="iteration")
        panels["rate"].margins(y=0.15)
        panels["rate"].set_ylim(bottom=0)
        panels["rate"].ticklabel_format(axis="y", scilimits=(-3, 3))
    for title, lines in health.items():
        _draw_health(panels[title], title, lines)
    for name in ("loss", "accuracy"):
        panels[name].legend()
    for axes in panels.values():
        axes.grid(alpha=0.3)
    write_figure(figure, path)


def save_comparison(histories: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the losses and accuracies of several runs over each other and write a PNG.

    Parameters
    ----------
    histories : mapping
        For each run its name in the legend and its history, as for `save_curves`.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If there are none, or one lacks what `save_curves` needs.

    Examples
    --------
    >>> import os, tempfile
    >>> history = {"loss_history": [2.3, 1.9], "train_acc_history": [0.1, 0.4], "val_acc_history": [0.1, 0.3]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_comparison({"sgd": history, "adam": history}, os.path.join(folder, "comparison.png"))
    ...     os.listdir(folder)
    ['comparison.png']
    """
    if not histories:
        raise ArgumentError("histories is empty; expected one run or more")
    figure = new_figure((13, 5))
    left, middle, right = figure.subplots(1, 3)
    middle.sharey(right)
    for i, (name, history) in enumerate(histories.items()):
        losses, train, val = _histories(history, "loss_history", "train_acc_history", "val_acc_history")
        style = {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i // len(COLORS) % len(LINES)]}
        smooth, middle_of_first = _smoothed(losses)
        left.plot(np.arange(len(smooth)) + 1 + middle_of_first, smooth, linewidth=1.5, **style)
        shown = name.replace("$", r"\$")  # Matplotlib takes what is between dollars as TeX, and leaves out _names
        shown = f" {shown}" if shown.startswith("_") else shown
        for axes, accuracies, label in (middle, train, None), (right, val, shown):
            _draw_accuracies(axes, accuracies, marker=MARKERS[i % len(MARKERS)], label=label, **style)
    left.set(title="Loss, moving average", xlabel="iteration", ylabel="loss")
    middle.set(title="Training accuracy", xlabel="epoch", ylabel="accuracy")
    right.set(title="Validation accuracy", xlabel="epoch")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1 if max(map(len, histories)) > 60 else 2)
    write_figure(figure, path)


def _histories(history: Mapping[str, Any], *wanted: str) -> list[np.ndarray]:
    missing = [key for key in wanted if key not in history]
    if missing:
        raise ArgumentError(f"history has no {' and no '.join(missing)}; expected {', '.join(wanted)}")
    return [numbers(history[key]) for key in wanted]


def _draw_losses(axes: Any, losses: np.ndarray, color: str) -> None:
    """Draw each loss thinly and their moving average; losses far above the average may leave the picture."""
    iterations = np.arange(1, len(losses) + 1)
    smooth, offset = _smoothed(losses)
    axes.plot(iterations, losses, color=color, linewidth=0.6, alpha=0.4, label="each minibatch")
    axes.plot(iterations[offset : offset + len(smooth)], smooth, color=color, linewidth=1.8, label="moving average")
    axes.set(title="Loss", xlabel="iteration", ylabel="loss")
    finite = smooth[np.isfinite(smooth)]
    if finite.size and finite.max() > 0:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.5 * finite.max()))


def _draw_accuracies(
    axes: Any, values: np.ndarray, color: str, marker: str, label: str | None = None, linestyle: str = "-"
) -> None:
    axes.plot(
        range(len(values)),
        values,
        color=color,
        linestyle=linestyle,
        marker=marker if len(values) <= 30 else "",
        markersize=4,
        label=label,
    )
    axes.set(ylim=(0, 1.02))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _health(history: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return the lines of each panel by the panel's title."""
    panels = {
        title: {
            name.removeprefix(prefix): numbers(values) for name, values in history.items() if name.startswith(prefix)
        }
        for prefix, title in HEALTH.items()
    }
    return {title: lines for title, lines in panels.items() if lines}


def _draw_health(axes: Any, title: str, lines: Mapping[str, np.ndarray]) -> None:
    """Draw a line a layer; ratios, which differ by orders of magnitude, on a logarithmic scale."""
    for i, (name, values) in enumerate(lines.items()):
        _draw_accuracies(
            axes, values, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], name, LINES[i // len(COLORS) % len(LINES)]
        )
    axes.set(title=title, xlabel="epoch", ylim=(-0.02, 1.02))
    if title == HEALTH["update_ratio_"]:
        positive = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in lines.values()])
        low, high = (positive.min(), positive.max()) if positive.size else (1e-3, 1e-3)
        axes.set(yscale="log", ylim=(min(low, 1e-3) / 2, max(high, 1e-3) * 2))
        axes.axhline(1e-3, color="grey", linestyle=":", linewidth=1, label="usual")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize="small", ncols=6)


def _smoothed(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the mean over a window of about a thirtieth of the run, and the index of the first middle."""
    half = len(values) // 60
    width = 2 * half + 1
    return (np.convolve(values, np.full(width, 1 / width), "valid"), half) if len(values) else (values, 0)
