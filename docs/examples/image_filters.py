"""Convolutions with filters set by hand: two photographs turn grey and show their edges.

    python docs/examples/image_filters.py [OUT.png]

Nothing is trained here. Each output channel of a convolution is a weighted sum over a window of all input
channels, so the right weights make it the brightness of a pixel, or how fast brightness changes across it.
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from xpconv.backend import get_backend, to_host
from xpconv.io._atomic import atomic_path
from xpconv.layers import conv_forward

SIZE = 200

BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # how much the eye sees of red, green and blue (ITU-R BT.601)
IDENTITY = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
SOBEL = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])  # horizontal edges; transposed, vertical ones


def photographs() -> np.ndarray:
    """Return the two photographs that come with scikit-learn as squares, (2, 3, SIZE, SIZE) from 0 to 1."""
    squares = [ImageOps.fit(Image.fromarray(image), (SIZE, SIZE)) for image in load_sample_images().images]
    return np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32) / 255


def filters() -> np.ndarray:
    """Return three filters (3, 3, 3, 3): windows of weights, each spread over the colours by brightness."""
    windows = np.stack([IDENTITY, SOBEL, SOBEL.T]).astype(np.float32)
    return windows[:, None] * BRIGHTNESS[:, None, None].astype(np.float32)


def main(path: str = "image_filters.png") -> None:
    photos = photographs()
    backend = get_backend()
    # No padding: a border of zeros would look like an edge.
    out, _ = conv_forward(backend.asarray(photos), backend.asarray(filters()), None)
    grey, horizontal, vertical = to_host(out).transpose(1, 0, 2, 3)
    edges = np.hypot(horizontal, vertical)

    figure = Figure(figsize=(9, 6.3), layout="constrained")
    panels = {"original": photos.transpose(0, 2, 3, 1), "grayscale": grey, "edges": edges}
    for row, axes_row in enumerate(figure.subplots(2, 3)):
        for axes, (title, images) in zip(axes_row, panels.items(), strict=True):
            axes.imshow(images[row], cmap="gray", vmin=0)
            axes.set_title(title)
            axes.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
