"""Print how many digits of one's own a model recognises: printed in several fonts and drawn by hand.

python -m benchmarks.own_digits first/model.safetensors [--seed 0] [--copies 3]
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tests.own_digits import draw_pictures
from xpconv import load_model
from xpconv.data.strokes import frame_strokes


def main(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model of the digits that xpconv train wrote.")],
    seed: Annotated[
        int, typer.Option(min=0, help="Determines sizes, margins, thickness, polarity and handwriting.")
    ] = 0,
    copies: Annotated[int, typer.Option(min=1, help="Pictures of each digit in each font and handwriting.")] = 3,
) -> None:
    """Print the accuracy by font and by digit, and how many pictures are called unlike the training images."""
    net, pictures = load_model(model), list(draw_pictures(seed, copies))
    _, height, width = net.input_shape
    X = np.stack([frame_strokes(picture.pixels, height, width).pixels for picture in pictures])[:, None]
    digits, kinds = (np.array(values) for values in zip(*((p.digit, p.kind) for p in pictures), strict=True))
    right = net.predict(X) == digits
    for kind in dict.fromkeys(kinds):
        print(f"{kind:20} {right[kinds == kind].mean():.3f}")
    for digit in range(10):
        print(f"{digit:<20} {right[digits == digit].mean():.3f}")
    if net.preprocessing is not None and net.preprocessing.typical is not None:
        print(f"{'called unlike':20} {(net.preprocessing.typical.distances(X) > 1).mean():.3f}")
    print(f"{f'all {len(right)} pictures':20} {right.mean():.3f}")


if __name__ == "__main__":
    typer.run(main)
