"""Tables for the terminal."""

from collections.abc import Sequence

from xpconv.training._progress import rich_can_draw

__all__ = ["print_table"]


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
