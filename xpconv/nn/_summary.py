"""The table that describes a model."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from xpconv._html import html_table, html_text
from xpconv.nn._chain import trained_parameters
from xpconv.nn.layers import Layer, Shape

__all__ = ["layer_rows", "summary", "summary_html"]


def layer_rows(model: Any) -> Iterator[tuple[str, str, Shape, int]]:
    """Yield the name, the text, the shape of an output sample and the number of parameters of each layer.

    A layer with branches comes before the layers in them, which have its parameters.
    """
    names, params = model.layer_names, model.params

    def rows(layers: Sequence[Layer], shape: Shape, path: str, title: str) -> Iterator[tuple[str, str, Shape, int]]:
        for position, layer in enumerate(layers):
            here, inside = f"{path}{position}", shape
            shape, branches = layer.output_shape(shape), layer.branches
            top, _, inner = here.partition(".")
            keys = model.layer_keys[int(top)].items()
            own = [key for name, key in keys if name.rpartition(".")[0] == inner and key in params]
            text = type(layer).__name__ if branches else repr(layer)
            yield title + names[here], text, shape, sum(prod(params[key].shape) for key in own)
            for branch, inner_layers in branches.items():
                yield from rows(inner_layers, inside, f"{here}.{branch}.", f"{title and '  '}  {branch}: ")

    return rows(model.layers, model.input_shape, "", "")


def summary(model: Any) -> str:
    """Return the text of `Sequential.summary`."""
    title, table, total = _title(model), _table(model), _total(model)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            f"{cell:>{width}}" if k > 2 else f"{cell:{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([title, *lines, total])


def summary_html(model: Any) -> str:
    """Return the summary as an HTML table, which Jupyter shows for a model.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> print(summary_html(TwoLayerNet(input_dim=4, rng=0)).splitlines()[1])
    <p><b>TwoLayerNet: samples (4,), 10 classes, float32 on numpy</b></p>
    """
    header, *rows = _table(model)
    table = html_table(header, rows, text_columns=3)
    return f"<div>\n<p><b>{html_text(_title(model))}</b></p>\n{table}\n<p>{html_text(_total(model))}</p>\n</div>"


def _title(model: Any) -> str:
    return f"{model.name}: samples {model.input_shape}, {model.num_classes} classes, {model.dtype} on {model.backend}"


def _table(model: Any) -> list[tuple[str, ...]]:
    """Return the header and the rows."""
    itemsize = 8 if model.dtype == "float64" else 4
    return [
        ("name", "layer", "output", "parameters", "bytes"),
        *(
            (name, text, str(shape), f"{count:,}" if count else "", f"{count * itemsize:,}" if count else "")
            for name, text, shape, count in layer_rows(model)
        ),
    ]


def _total(model: Any) -> str:
    itemsize = 8 if model.dtype == "float64" else 4
    total = sum(prod(w.shape) for w in model.params.values())
    trained = trained_parameters(model)
    frozen = sum(prod(w.shape) for key, w in model.params.items() if key not in trained)
    note = f", of which {frozen:,} are frozen" if frozen else ""
    return f"total: {total:,} parameters, {total * itemsize:,} bytes{note}"
