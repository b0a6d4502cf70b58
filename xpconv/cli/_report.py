"""The report of a training run: one HTML file that holds its pictures and loads nothing."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from xpconv._html import html_table, html_text
from xpconv.cli._settings import Settings
from xpconv.nn import Sequential
from xpconv.nn._summary import summary_html
from xpconv.training.metrics import ClassificationReport, merits_of_checks
from xpconv.viz._curves import check_epochs

__all__ = ["epoch_table", "run_report", "saved_epoch"]

SPLITS = {"y_train": "training", "y_val": "validation", "y_test": "test"}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.5rem; }
dl div { border: 1px solid #8886; border-radius: 0.5rem; padding: 0.5rem 1rem; }
dt { opacity: 0.75; }
dd { margin: 0; font-size: 1.4rem; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 1rem 0; overflow: auto; }
img { max-width: max(100%, 40rem); height: auto; background: white; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8882; padding: 0.75rem; }
.scroll { overflow: auto; max-height: 40rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #8884; }
thead th { position: sticky; top: 0; background: Canvas; }
"""


def run_report(
    model: Sequential,
    settings: Settings,
    epochs: Sequence[Sequence[str]],
    saved: str,
    report: ClassificationReport,
    config: Mapping[str, Any],
    pictures: Mapping[str, Path],
) -> str:
    """Return the report of a run as HTML.

    Parameters
    ----------
    model : Sequential
        The trained model.
    settings : Settings
    epochs : sequence of rows
        The table that `epoch_table` returns.
    saved : str
        What `saved_epoch` returns.
    report : ClassificationReport
        Of the test images.
    config : mapping
        The contents of ``config.json``.
    pictures : mapping of str to path
        PNG files by their captions.
    """
    data = config["dataset"]
    title = f"{model.name} on {data['name']}"
    header, *rows = epochs
    sizes = data["sizes"] | ({} if settings.num_train is None else {"y_train": settings.num_train})
    facts = {
        "test accuracy": f"{report.accuracy:.4f}",
        "best validation accuracy": _highest(rows, header.index("validation accuracy")),
        "saved model": saved,
        "parameters": f"{sum(w.size for w in model.params.values()):,}",
        "iterations": f"{config['iterations']:,}" + (" (interrupted)" if config["interrupted"] else ""),
        **{f"{SPLITS[name]} images": f"{size:,}" for name, size in sizes.items()},
    }
    parts = [
        f"<h1>{html_text(title)}</h1>",
        "<dl>",
        *(f"<div><dt>{html_text(name)}</dt><dd>{html_text(fact)}</dd></div>" for name, fact in facts.items()),
        "</dl>",
        *(_figure(caption, path) for caption, path in pictures.items()),
        "<h2>Metrics of each epoch</h2>",
        _scrolling(html_table(header, rows, text_columns=0)),
        "<h2>Test images by class</h2>",
        "<p>The recall of a class is the accuracy on its images.</p>",
        _scrolling(html_table(report.HEADER, report.rows())),
        "<h2>Net</h2>",
        _scrolling(summary_html(model)),
        "<h2>Settings</h2>",
        "<p>This command repeats the run:</p>",
        f"<pre>{html_text(settings.command())}</pre>",
        _scrolling(html_table(("setting", "value"), _texts(asdict(settings)), text_columns=2)),
        "<h2>Environment</h2>",
        _scrolling(html_table((), _texts({**config["versions"], "platform": config["platform"]}), text_columns=2)),
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            *parts,
            "</body>\n</html>\n",
        ]
    )


def epoch_table(histories: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a header and a row for each check: before the first epoch, and after each epoch that was checked.

    Parameters
    ----------
    histories : mapping
        Those of a Solver, from epoch 0 on, with ``iterations_per_epoch``. The training loss is the mean over the
        minibatches since the check before.
    """
    per_epoch, losses, rates = (
        histories[name] for name in ("iterations_per_epoch", "loss_history", "learning_rate_history")
    )
    checks = [histories[name] for name in ("val_loss_history", "train_acc_history", "val_acc_history")]
    rows: list[tuple[str, ...]] = [
        ("epoch", "learning rate", "training loss", "validation loss", "training accuracy", "validation accuracy")
    ]
    begin = 0
    for epoch, *values in zip(check_epochs(histories), *checks, strict=False):
        end = max(round(epoch * per_epoch), 1)
        mean = float(np.mean(losses[begin:end]))
        begin = end if epoch else 0
        rows.append((f"{epoch:.4g}", f"{rates[end - 1]:.3g}", *(_number(value) for value in (mean, *values))))
    return rows


def saved_epoch(histories: Mapping[str, Any], patience_on: str) -> str:
    """Return the epoch of the parameters that a Solver gives to its model at the end, and why it is the best.

    Examples
    --------
    >>> histories = {
    ...     "loss_history": [2.0, 1.0],
    ...     "val_acc_history": [0.1, 0.5, 0.5],
    ...     "val_loss_history": [2.3, 0.9, 0.8],
    ...     "interrupted": False,
    ... }
    >>> saved_epoch(histories, "accuracy"), saved_epoch(histories, "loss")
    ('epoch 2, highest validation accuracy', 'epoch 2, lowest validation loss')
    """
    merits = merits_of_checks(histories["val_acc_history"], histories["val_loss_history"], patience_on)
    best = max(merits, default=(-inf, -inf))
    if best[0] == -inf or (histories["interrupted"] and histories["epoch"] == 0):
        return "the last iteration"
    epoch = check_epochs(histories)[merits.index(best)]
    return f"epoch {epoch:.4g}, {'lowest validation loss' if patience_on == 'loss' else 'highest validation accuracy'}"


def _number(value: float) -> str:
    return f"{value:.4f}" if isfinite(value) else "-"


def _highest(rows: Sequence[Sequence[str]], column: int) -> str:
    best = max((row for row in rows if row[column] != "-"), key=lambda row: float(row[column]), default=None)
    return f"{best[column]}, epoch {best[0]}" if best else "-"


def _texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, "-" if value is None else str(value)) for name, value in values.items()]


def _figure(caption: str, path: Path) -> str:
    source = base64.b64encode(path.read_bytes()).decode()
    text = html_text(caption)
    return f'<h2>{text}</h2>\n<figure><img alt="{text}" src="data:image/png;base64,{source}"></figure>'


def _scrolling(content: str) -> str:
    return f'<div class="scroll" tabindex="0">\n{content}\n</div>'
