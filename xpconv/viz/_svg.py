"""Curves as SVG, for notebooks: quick to draw, and readable on light and dark pages."""

from collections.abc import Mapping, Sequence

import numpy as np

from xpconv._html import html_text

__all__ = ["svg_lines"]

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 408, 34, 192
COLORS = "#1f8dd6", "#e8701a"
DASHES = "", "6 3"
MAX_POINTS = 400


def svg_lines(
    title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], limits: tuple[float, float] | None = None
) -> str:
    """Return lines in the same axes as an SVG element.

    Parameters
    ----------
    title : str
    lines : mapping of str to pair of sequences
        The x and y of each line, by its name in the legend. Points that are not finite are left out.
    limits : pair of float, optional
        The lowest and highest y; by default 0 and the largest y.

    Examples
    --------
    >>> picture = svg_lines("loss", {"training": ([1, 2, 3], [2.0, 1.0, 0.5])})
    >>> picture.startswith("<svg"), picture.count("<polyline")
    (True, 1)
    """
    points = {name: _finite(*line) for name, line in lines.items()}
    xs, ys = (np.concatenate([line[k] for line in points.values()]) for k in (0, 1))
    left, right = (float(xs.min()), float(xs.max())) if xs.size else (0.0, 1.0)
    low, high = limits or (min(0.0, float(ys.min(initial=0))), float(ys.max(initial=0)) or 1.0)
    parts = [
        f'<svg role="img" aria-label="{html_text(title)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"',
        ' style="max-width:100%;height:auto;font:12px sans-serif" fill="currentColor">',
        _text(LEFT, 16, title, weight="bold"),
    ]
    for fraction in (0.0, 0.5, 1.0):
        y = BOTTOM - fraction * (BOTTOM - TOP)
        parts += [
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity="0.25"/>',
            _text(LEFT - 6, y + 4, f"{low + fraction * (high - low):.3g}", anchor="end"),
        ]
    parts += [_text(LEFT, 210, f"{left:.0f}"), _text(RIGHT, 210, f"{right:.0f}", anchor="end")]
    for number, (name, (at, values)) in enumerate(points.items()):
        color, dashes = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
        across = LEFT + (RIGHT - LEFT) * (at - left) / ((right - left) or 1)
        up = BOTTOM - (BOTTOM - TOP) * np.clip((values - low) / ((high - low) or 1), 0, 1)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))
        style = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts += [
            f'<polyline points="{path}" {style}/>' if len(at) != 1 else _dot(across[0], up[0], color),
            _text(RIGHT - 90 * (len(points) - 1 - number), 16, name, anchor="end", color=color),
        ]
    return "".join([*parts, "</svg>"])


def _finite(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that are finite, at most about MAX_POINTS of them and always the last one."""
    points = np.asarray([x, y], np.float64)
    points = points[:, np.isfinite(points[1])]
    step = -(-points.shape[1] // MAX_POINTS) or 1
    points = points[:, ::-step][:, ::-1]
    return points[0], points[1]


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", color: str = "") -> str:
    fill = f' fill="{color}"' if color else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}"{fill}>{html_text(text)}</text>'


def _dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'
