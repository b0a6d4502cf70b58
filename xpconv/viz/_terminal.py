"""Curves drawn with characters, for terminals."""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["line_plot"]

BRAILLE = 0x2800
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # bits of the dots of a Braille character
ASCII = "*+o"
LABEL_WIDTH = 7
DASH = 3  # dots


def line_plot(
    lines: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    width: int,
    height: int,
    *,
    limits: tuple[float, float] | None = None,
    ascii_only: bool = False,
) -> list[list[tuple[str, int | None]]]:
    """Draw lines in the same axes, the first one solid and the others dashed.

    Parameters
    ----------
    lines : mapping of str to pair of arrays
        The x and y of each line, by its name; x does not decrease. Points that are not finite are left out.
    width, height : int
        Number of characters in a row, and of rows, without the row that labels x.
    limits : pair of float, optional
        The lowest and the highest y; by default those of the lines.
    ascii_only : bool
        Draw with ``*`` and ``+`` in place of Braille characters, whose dots are eight times as fine.

    Returns
    -------
    list of rows
        Each is a list of pieces: a text, and the number of its line or None.

    Examples
    --------
    >>> for row in line_plot(
    ...     {"loss": ([0, 1, 2], [2.0, 1.0, 0.0])}, 19, 4, ascii_only=True
    ... ):
    ...     print("".join(text for text, _ in row).rstrip())
          2 |**
            |  **
            |    ****
          0 |        **
             0        2
    """
    plotted = {name: _finite(*line) for name, line in lines.items()}
    xs, ys = (np.concatenate([line[k] for line in plotted.values()] or [np.zeros(0)]) for k in (0, 1))
    left, right = (float(xs.min()), float(xs.max())) if xs.size else (0.0, 1.0)
    low, high = limits or ((float(ys.min()), float(ys.max())) if ys.size else (0.0, 1.0))
    columns = max(width - LABEL_WIDTH - 2, 1)
    fine = (1, 1) if ascii_only else DOTS.shape
    owners = np.full((height * fine[0], columns * fine[1]), -1)
    for number, (x, y) in enumerate(plotted.values()):
        _draw(owners, number, (x - left) / ((right - left) or 1), (y - low) / ((high - low) or 1))
    cells = owners.reshape(height, fine[0], columns, fine[1]).transpose(0, 2, 1, 3)
    labels = {0: _label(high), height - 1: _label(low)}
    rows = [
        [(f"{labels.get(row, ''):>{LABEL_WIDTH}} |", None), *_pieces(cells[row], ascii_only)] for row in range(height)
    ]
    ends = f"{_label(left)}{_label(right):>{max(columns - len(_label(left)), 0)}}"
    return [*rows, [(" " * (LABEL_WIDTH + 2) + ends, None)]]


def _finite(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    shown = np.isfinite(y)
    return x[shown], y[shown]


def _label(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _draw(owners: np.ndarray, number: int, x: np.ndarray, y: np.ndarray) -> None:
    """Write the number of a line into its dots; `x` and `y` are from 0 to 1, and `y` is clipped to that."""
    rows, columns = owners.shape
    if not x.size:
        return
    at = np.round(x * (columns - 1)).astype(int)
    used = np.unique(at)
    means = np.bincount(at, weights=y)[used] / np.bincount(at)[used]  # many iterations fall into one column
    dots = np.arange(used[0], used[-1] + 1)
    heights = np.round((1 - np.clip(np.interp(dots, used, means), 0, 1)) * (rows - 1)).astype(int)
    before = np.concatenate([heights[:1], heights[:-1]])
    for column, height, previous in zip(dots, heights, before, strict=True):
        if number and column // DASH % 2:
            continue
        step = int(np.sign(previous - height))  # join the dots of neighbouring columns
        owners[[height, *range(height + step, previous, step or 1)], column] = number


def _pieces(cells: np.ndarray, ascii_only: bool) -> list[tuple[str, int | None]]:
    """Return the characters of a row of cells (columns, dots, dots), joined where they belong to the same line."""
    pieces: list[tuple[str, int | None]] = []
    for cell in cells:
        owner = int(cell.max())
        if owner < 0:
            character = " "
        elif ascii_only:
            character = ASCII[owner % len(ASCII)]
        else:
            character = chr(BRAILLE + int(DOTS[cell >= 0].sum()))
        line = None if owner < 0 else owner
        if pieces and pieces[-1][1] == line:
            pieces[-1] = pieces[-1][0] + character, line
        else:
            pieces.append((character, line))
    return pieces
