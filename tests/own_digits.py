"""Pictures of digits as users have them: printed or drawn by hand, in many sizes, light on dark or dark on light."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
"""Fonts of matplotlib in all styles: upright, bold and slanted; old-style figures and symbols are left out."""


def _arc(x: float, y: float, width: float, height: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Return points on an ellipse around (x, y), angles in turns, clockwise from the right."""
    turns = 2 * np.pi * np.linspace(start, stop, 17)
    return [(x + width * np.cos(t), y + height * np.sin(t)) for t in turns]


HANDWRITING: dict[int, list[list[list[tuple[float, float]]]]] = {
    0: [[_arc(0.5, 0.5, 0.32, 0.5, -0.25, 0.75)], [_arc(0.5, 0.5, 0.42, 0.48, -0.2, 0.82)]],
    1: [[[(0.5, 0.0), (0.5, 1.0)]], [[(0.3, 0.25), (0.55, 0.0), (0.55, 1.0)]], [[(0.62, 0.0), (0.42, 1.0)]]],
    2: [
        [[*_arc(0.5, 0.27, 0.34, 0.27, -0.5, 0.12), (0.15, 1.0), (0.88, 1.0)]],
        [[*_arc(0.48, 0.28, 0.34, 0.28, -0.45, 0.15), (0.4, 0.75), (0.1, 0.96), (0.35, 0.9), (0.9, 1.0)]],
    ],
    3: [
        [[*_arc(0.45, 0.25, 0.32, 0.25, -0.45, 0.22), *_arc(0.45, 0.74, 0.38, 0.26, -0.22, 0.45)]],
        [[(0.15, 0.0), (0.8, 0.0), (0.45, 0.4), *_arc(0.42, 0.7, 0.4, 0.3, -0.2, 0.42)]],
    ],
    4: [
        [[(0.6, 0.0), (0.1, 0.65), (0.95, 0.65)], [(0.7, 0.3), (0.7, 1.0)]],
        [[(0.2, 0.0), (0.15, 0.5), (0.85, 0.5)], [(0.8, 0.0), (0.75, 1.0)]],
    ],
    5: [
        [[(0.85, 0.0), (0.25, 0.0), (0.2, 0.45), *_arc(0.45, 0.68, 0.4, 0.32, -0.2, 0.4)]],
        [[(0.25, 0.05), (0.2, 0.42), *_arc(0.42, 0.7, 0.4, 0.3, -0.22, 0.38)], [(0.25, 0.03), (0.88, 0.0)]],
    ],
    6: [
        [[(0.7, 0.0), (0.35, 0.3), *_arc(0.48, 0.7, 0.33, 0.3, -0.5, 0.5)]],
        [[(0.55, 0.0), (0.2, 0.5), *_arc(0.5, 0.75, 0.34, 0.25, 0.5, -0.45)]],
    ],
    7: [
        [[(0.1, 0.0), (0.9, 0.0), (0.4, 1.0)]],
        [[(0.1, 0.03), (0.88, 0.0), (0.35, 1.0)], [(0.35, 0.5), (0.8, 0.48)]],
    ],
    8: [
        [_arc(0.5, 0.25, 0.28, 0.25, 0.25, 1.25), _arc(0.5, 0.75, 0.35, 0.25, -0.25, 0.75)],
        [[(0.75, 0.1), (0.5, 0.0), (0.22, 0.2), (0.7, 0.65), (0.7, 0.9), (0.45, 1.0), (0.2, 0.85), (0.75, 0.1)]],
    ],
    9: [
        [[*_arc(0.48, 0.28, 0.32, 0.28, 0.0, -1.0), (0.78, 0.6), (0.7, 1.0)]],
        [[*_arc(0.45, 0.3, 0.33, 0.3, -0.1, -1.0), (0.75, 1.0)]],
    ],
}
"""For each digit some ways to write it: strokes of points (x, y) from (0, 0), top left, to (1, 1)."""


class Picture(NamedTuple):
    """A picture of a digit."""

    pixels: np.ndarray  # uint8 (H, W)
    digit: int
    kind: str  # the font, or "handwritten"


def draw_pictures(seed: int = 0, copies: int = 3) -> Iterator[Picture]:
    """Draw each digit in each font and in each handwriting `copies` times, with random sizes, margins and polarity."""
    rng = np.random.default_rng(seed)
    for _ in range(copies):
        for digit in range(10):
            for font in FONTS:
                yield Picture(_on_paper(_printed(digit, font, rng), rng), digit, font)
            for strokes in HANDWRITING[digit]:
                for thickness in (0.05, 0.09, 0.14):
                    pixels = _on_paper(_handwritten(strokes, thickness * rng.uniform(0.8, 1.2), rng), rng)
                    yield Picture(pixels, digit, "handwritten")
                yield Picture(_as_in_mnist(_handwritten(strokes, rng.uniform(0.08, 0.14), rng)), digit, "MNIST-like")


def _printed(digit: int, font: str, rng: np.random.Generator) -> Image.Image:
    """Return the ink of a printed digit, 0 to 255, cropped to its box."""
    import matplotlib

    size = int(rng.choice([16, 24, 48, 96, 200]))
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    picture = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(picture).text(
        (size, size),
        str(digit),
        255,
        ImageFont.truetype(str(path), size),
        stroke_width=int(rng.integers(size // 24 + 1)),
    )
    return picture.crop(picture.getbbox())


def _handwritten(strokes: list[list[tuple[float, float]]], thickness: float, rng: np.random.Generator) -> Image.Image:
    """Return the ink of a digit drawn with a round pen, slanted, turned and wobbling, cropped to its box."""
    height = int(rng.choice([20, 40, 80, 160]))
    scale = 4  # drawn larger and averaged, so that edges are smooth
    angle, slant, aspect = rng.normal(0, 0.08), rng.normal(0.1, 0.12), rng.uniform(0.5, 0.8)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[aspect, -slant], [0, 1]])
    pen = max(thickness * height * scale, 2)
    picture = Image.new("L", (4 * height * scale, 4 * height * scale))
    draw = ImageDraw.Draw(picture)
    for stroke in strokes:
        wobble = np.cumsum(rng.normal(0, 0.012, (len(stroke), 2)), axis=0)
        points = (np.array(stroke) - 0.5 + wobble) @ matrix.T * height * scale + 2 * height * scale
        line = np.concatenate([np.linspace(a, b, 24) for a, b in pairwise(points)])
        for x, y in line:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    picture = picture.crop(picture.getbbox())
    size = (max(picture.width // scale, 1), max(picture.height // scale, 1))
    return picture.resize(size, Image.Resampling.BOX)


def _on_paper(ink: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return ink with a margin on paper: light on dark or dark on light, with faint noise."""
    left, top, right, bottom = (rng.choice([0.1, 0.3, 0.8]) * rng.uniform(0.7, 1.3, 4) * ink.height).astype(int) + 1
    coverage = np.pad(np.asarray(ink, np.float64) / 255, ((top, bottom), (left, right)))
    paper, pen = [(255, 0), (0, 255), (230, 40), (20, 220)][rng.integers(4)]
    pixels = paper + (pen - paper) * coverage + rng.normal(0, rng.choice([0, 4]), coverage.shape)
    return pixels.round().clip(0, 255).astype(np.uint8)


def _as_in_mnist(ink: Image.Image) -> np.ndarray:
    """Return light ink as MNIST has it: scaled to fit 20x20 pixels, its centre of mass in the middle of 28x28."""
    scale = 20 / max(ink.size)
    size = (max(round(ink.width * scale), 1), max(round(ink.height * scale), 1))
    small = np.asarray(ink.resize(size, Image.Resampling.BOX), np.float64)
    y, x = (np.average(np.arange(n), weights=small.sum(axis=1 - axis)) for axis, n in enumerate(small.shape))
    top, left = (int(np.clip(round(13.5 - c), 0, 28 - n)) for c, n in zip((y, x), small.shape, strict=True))
    pixels = np.zeros((28, 28))
    pixels[top : top + small.shape[0], left : left + small.shape[1]] = small
    return pixels.round().astype(np.uint8)
