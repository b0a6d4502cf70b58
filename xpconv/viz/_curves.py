"""Pictures of the metrics of training runs."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xpconv.errors import ArgumentError
from xpconv.viz._figure import as_host_array, new_figure, set_title, write_figure

__all__ = ["check_epochs", "iterations_per_epoch", "moving_average", "save_comparison", "save_curves"]

# Okabe and Ito's palette, which people with any colour vision can distinguish; lines also differ by marker or dash.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
BLUE, ORANGE = COLORS[:2]
HEALTH_TITLES = {"update_ratio_": "Norm of update / norm of weights", "dead_relu_": "Fraction of dead ReLUs"}
HEALTH_LABELS = {"update_ratio_": "", "dead_relu_": "ReLU "}
LEAST_RATIO = 1e-6  # smaller updates, as at the end of a cosine, are drawn at the bottom of the panel
MAX_LABELS = 8
LINE_STYLES = "-", "--", "-.", ":"
MARKERS = "o", "s", "^", "D", "v", "P", "X"
REQUIRED_HISTORIES = "loss_history", "train_acc_history", "val_acc_history"


def save_curves(history: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw the loss, accuracy, learning rate and health of a training run, as a PNG.

    Parameters
    ----------
    history : mapping
        ``loss_history``, one value for each iteration, and ``train_acc_history`` and ``val_acc_history``, one value
        for each check from epoch 0 on. Optional are ``val_loss_history``, one value for each check,
        ``learning_rate_history``, one value for each iteration, and ``health_history``, the dict of a `Solver`. Each
        history is an array or a sequence of numbers; it may be empty or contain NaN. The checks are ``check_every``
        epochs apart, 1 by default. If a run ended within an epoch, ``iterations_per_epoch`` says where; ``vars`` of a
        Solver needs no addition.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If `history` lacks one of the three required histories.

    Examples
    --------
    >>> import os, tempfile
    >>> history = {
    ...     "loss_history": [2.3, 1.9],
    ...     "train_acc_history": [0.1, 0.4],
    ...     "val_acc_history": [0.1, 0.3],
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_curves(history, os.path.join(folder, "curves.png"))
    ...     os.listdir(folder)
    ['curves.png']
    """
    losses, train, val = _required_histories(history)
    rates = as_host_array(history.get("learning_rate_history", ()))
    health = _health_panels(history.get("health_history", {}))
    rows: dict[tuple[str, str], float] = {("loss", "accuracy"): 2.0}
    if len(rates):
        rows["loss", "rate"] = 1.0
    if health:
        titles = list(health)
        rows[titles[0], titles[-1]] = 1.5  # one title twice is one wide panel
    height = 8 if health else 5
    figure = new_figure((10, height))
    panels = figure.subplot_mosaic(
        [list(row) for row in rows],
        height_ratios=list(rows.values()),
        gridspec_kw={
            **{"left": 0.08, "right": 0.98, "wspace": 0.2, "hspace": 0.6 if health else 0.7},
            **{"top": 1 - 0.35 / height, "bottom": (1.35 if health else 0.55) / height},
        },
    )
    val_losses = as_host_array(history.get("val_loss_history", ()))
    epochs = check_epochs(history)
    _draw_losses(panels["loss"], losses, val_losses, epochs, iterations_per_epoch(history))
    _draw_accuracies(panels["accuracy"], epochs, train, BLUE, "o", "training")
    _draw_accuracies(panels["accuracy"], epochs, val, ORANGE, "s", "validation")
    set_title(panels["accuracy"], "Accuracy")
    panels["accuracy"].set(xlabel="epoch", ylabel="accuracy")
    if len(rates):
        _draw_learning_rates(panels["rate"], rates)
    for title, lines in health.items():
        _draw_health(panels[title], title, epochs, lines)
    for name in ("loss", "accuracy"):
        panels[name].legend()
    for axes in panels.values():
        axes.grid(alpha=0.3)
    write_figure(figure, path)


def save_comparison(histories: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the losses and accuracies of several runs in the same axes, as a PNG.

    Parameters
    ----------
    histories : mapping
        The history of each run, as for `save_curves`, by its name in the legend.
    path : str or path
        Where to write.

    Raises
    ------
    ArgumentError
        If there are no runs, or one lacks a history that `save_curves` requires.

    Examples
    --------
    >>> import os, tempfile
    >>> history = {
    ...     "loss_history": [2.3, 1.9],
    ...     "train_acc_history": [0.1, 0.4],
    ...     "val_acc_history": [0.1, 0.3],
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_comparison(
    ...         {"sgd": history, "adam": history}, os.path.join(folder, "comparison.png")
    ...     )
    ...     os.listdir(folder)
    ['comparison.png']
    """
    if not histories:
        raise ArgumentError("histories is empty; expected one run or more")
    figure = new_figure((13, 5), "constrained")
    loss_axes, train_axes, val_axes = figure.subplots(1, 3)
    train_axes.sharey(val_axes)
    for i, (name, history) in enumerate(histories.items()):
        losses, train, val = _required_histories(history)
        style = {"color": COLORS[i % len(COLORS)], "linestyle": LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]}
        averages, first = moving_average(losses)
        loss_axes.plot(np.arange(len(averages)) + 1 + first, averages, linewidth=1.5, **style)
        for axes, accuracies, label in (train_axes, train, None), (val_axes, val, _legend_label(name)):
            _draw_accuracies(
                axes, check_epochs(history), accuracies, marker=MARKERS[i % len(MARKERS)], label=label, **style
            )
    loss_axes.set(title="Loss, moving average", xlabel="iteration", ylabel="loss")
    _use_integer_ticks(loss_axes)
    train_axes.set(title="Training accuracy", xlabel="epoch", ylabel="accuracy")
    val_axes.set(title="Validation accuracy", xlabel="epoch")
    for axes in (loss_axes, train_axes, val_axes):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1 if max(map(len, histories)) > 60 else 2)
    write_figure(figure, path)


def _required_histories(history: Mapping[str, Any]) -> list[np.ndarray]:
    missing = [key for key in REQUIRED_HISTORIES if key not in history]
    if missing:
        raise ArgumentError(f"history has no {' and no '.join(missing)}; expected {', '.join(REQUIRED_HISTORIES)}")
    return [as_host_array(history[key]) for key in REQUIRED_HISTORIES]


def _legend_label(name: str) -> str:
    """Return a label that Matplotlib shows unchanged: it reads TeX between dollars and omits names with a leading _."""
    label = name.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def iterations_per_epoch(history: Mapping[str, Any]) -> int | None:
    """Return the iterations of an epoch, also those of ``vars(solver)``; None if the history does not tell them."""
    if "iterations_per_epoch" not in history and "y_train" in history and "batch_size" in history:
        return max(int(history["y_train"].shape[0]) // int(history["batch_size"]), 1)
    return history.get("iterations_per_epoch")


def check_epochs(history: Mapping[str, Any]) -> np.ndarray:
    """Return the completed epochs at each check: 0, multiples of ``check_every``, and those at the end of the run.

    Examples
    --------
    >>> history = {
    ...     "loss_history": [1.0] * 10,
    ...     "val_acc_history": [0.1, 0.2, 0.3],
    ...     "iterations_per_epoch": 4,
    ... }
    >>> check_epochs(history | {"check_every": 2})
    array([0. , 2. , 2.5])
    """
    if "check_epochs" in history:
        return as_host_array(history["check_epochs"])
    checks = [history.get(name, ()) for name in (*REQUIRED_HISTORIES[1:], "val_loss_history")]
    count = max(as_host_array(values).size for values in (*checks, *history.get("health_history", {}).values()))
    epochs, per_epoch = float(history.get("check_every", 1)) * np.arange(count), iterations_per_epoch(history)
    losses = as_host_array(history["loss_history"]).size
    return np.minimum(epochs, losses / per_epoch) if per_epoch and losses else epochs


def _draw_losses(
    axes: Any, losses: np.ndarray, val_losses: np.ndarray, epochs: np.ndarray, per_epoch: int | None
) -> None:
    """Draw each loss as a thin line, their moving average, and the validation losses.

    Losses far above the averages and the validation losses from epoch 1 on may be cut off.
    """
    iterations = np.arange(1, len(losses) + 1)
    averages, first = moving_average(losses)
    axes.plot(iterations, losses, color=BLUE, linewidth=0.6, alpha=0.4, label="each minibatch")
    axes.plot(iterations[first : first + len(averages)], averages, color=BLUE, linewidth=1.8, label="moving average")
    if len(val_losses):
        epochs = epochs[: len(val_losses)]
        checked = np.rint(epochs * (per_epoch or len(losses) // max(epochs[-1], 1)))
        checked = np.maximum(checked, 1)  # the check of epoch 0 comes after an iteration
        marker = "s" if len(val_losses) <= 30 else ""
        axes.plot(checked, val_losses, color=ORANGE, marker=marker, markersize=4, label="validation")
    set_title(axes, "Loss")
    axes.set(xlabel="iteration", ylabel="loss")
    _use_integer_ticks(axes)
    shown = np.concatenate([averages, val_losses[1:]])
    finite = shown[np.isfinite(shown)]
    if finite.size and finite.max() > 0:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.5 * finite.max()))


def _draw_learning_rates(axes: Any, rates: np.ndarray) -> None:
    axes.plot(np.arange(1, len(rates) + 1), rates, color=BLUE)
    set_title(axes, "Learning rate")
    axes.set_xlabel("iteration")
    _use_integer_ticks(axes)
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-3, 3))


def _draw_accuracies(
    axes: Any,
    epochs: np.ndarray,
    values: np.ndarray,
    color: str,
    marker: str,
    label: str | None = None,
    linestyle: str = "-",
) -> None:
    axes.plot(
        epochs[: len(values)],
        values,
        color=color,
        linestyle=linestyle,
        marker=marker if len(values) <= 30 else "",
        markersize=4,
        label=label,
    )
    axes.set(ylim=(0, 1.02))
    _use_integer_ticks(axes)


def _use_integer_ticks(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def _health_panels(history: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return the lines of each health panel, by its title; lines of NaN and panels without lines are left out."""
    arrays = {name: as_host_array(values) for name, values in history.items()}
    panels = {
        title: {
            HEALTH_LABELS[prefix] + name.removeprefix(prefix): values
            for name, values in arrays.items()
            if name.startswith(prefix) and not (len(values) and np.isnan(values).all())
        }
        for prefix, title in HEALTH_TITLES.items()
    }
    return {title: lines for title, lines in panels.items() if lines}


def _draw_health(axes: Any, title: str, epochs: np.ndarray, lines: Mapping[str, np.ndarray]) -> None:
    """Draw one line for each layer, with a logarithmic scale for ratios, which differ by orders of magnitude."""
    are_ratios = title == HEALTH_TITLES["update_ratio_"]
    labelled = set(list(lines)[:: -(-len(lines) // MAX_LABELS)])  # more labels would be larger than the panel
    for i, (name, values) in enumerate(lines.items()):
        line_style = LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]
        shown = np.maximum(values, LEAST_RATIO) if are_ratios else values
        label = name if name in labelled else None
        _draw_accuracies(axes, epochs, shown, COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], label, line_style)
    set_title(axes, title)
    axes.set(xlabel="epoch", ylim=(-0.02, 1.02))
    if are_ratios:
        finite = np.concatenate([values[np.isfinite(values)] for values in lines.values()])
        low, high = (max(finite.min(), LEAST_RATIO), finite.max()) if finite.size else (1e-3, 1e-3)
        axes.set_yscale("log", subs=())  # without minor ticks, which take longer to draw than the lines
        axes.set(ylim=(min(low, 1e-3) / 2, max(high, 1e-3) * 2))
        axes.axhline(1e-3, color="grey", linestyle=":", linewidth=1, label="0.001, a usual ratio")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35),
        fontsize=7.5,
        ncols=3,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=0.8,
    )


def moving_average(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return means over windows of about 1/30 of the run, and the index of the first window's centre."""
    half = len(values) // 60
    width = 2 * half + 1
    return (np.convolve(values, np.full(width, 1 / width), "valid"), half) if len(values) else (values, 0)
