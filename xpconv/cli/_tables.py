"""Text and tables for the terminal."""

import sys
from collections.abc import Sequence

from xpconv.backend import to_host
from xpconv.errors import printable, printable_lines
from xpconv.nn import Sequential
from xpconv.training._progress import rich_can_draw

__all__ = ["echo", "print_net", "print_table"]


def echo(text: object, *, error: bool = False) -> None:
    """Print a text, to the standard error stream if it is an error, with control characters in names escaped."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:  # print takes None for standard output
        print(printable_lines(text), file=stream, flush=True)


def print_net(net: Sequential) -> None:
    """Print a net's table of layers and its preprocessing."""
    echo(net.summary())
    if (first := net.preprocessing) is not None:
        mean, std = (to_host(a).ravel() for a in (first.mean, first.std))
        if mean.size <= 3:
            texts = [", ".join(f"{value:.4g}" for value in values) for values in (mean, std)]
            echo(f"preprocessing: subtract {texts[0]} and divide by {texts[1]}")
        else:
            echo("preprocessing: subtract a mean image and divide by its standard deviations")


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Print a table: ruled on a terminal, tab-separated in a pipe or without `rich`.

    Examples
    --------
    >>> from contextlib import redirect_stdout
    >>> from io import StringIO
    >>> with redirect_stdout(StringIO()) as pipe:
    ...     print_table([("numpy", "1.5")], header=("backend", "step, ms"))
    >>> pipe.getvalue().splitlines()[1].split()
    ['numpy', '1.5']
    """
    rows = [[printable(cell, max_length=len(cell)) for cell in row] for row in rows]
    if not rich_can_draw():
        for row in [header, *rows] if header else rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, show_header=bool(header))
    for name, *values in rows:
        table.add_row(Text(name, "bold"), *map(Text, values))
    Console().print(table)
