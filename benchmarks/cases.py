"""The benchmark cases. Each draws its own arrays, so every contestant works on the same values."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

WINDOW = {"kernel_size": 0, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # options, and those without effect


@dataclass(frozen=True)
class Case:
    """One row of the benchmarks; `kind` names the contestants' method that prepares it."""

    name: str
    kind: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    classes: int = 0
    small: bool = False  # small enough for the loop implementations
    large: bool = False  # run only on a GPU, where steps are also compared with NumPy

    def draw(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, the same in every call."""
        rng = np.random.default_rng(0)
        arrays = {
            name: rng.integers(0, 256, shape, np.uint8)
            if self.dtype == "uint8"
            else rng.standard_normal(shape).astype(self.dtype)
            for name, shape in self.shapes.items()
        }
        if self.classes:
            arrays["y"] = rng.integers(0, self.classes, next(iter(self.shapes.values()))[0])
        return arrays

    def shape_text(self) -> str:
        """Return the shapes of the inputs and the options of the row, as in ``64×16×32×32, w 16×16×3×3, padding 1``."""
        parts = [
            "×".join(map(str, shape)) if name in ("x", "X") else f"{name} {'×'.join(map(str, shape))}"
            for name, shape in self.shapes.items()
            if name in ("x", "X", "w")
        ]
        options = self.options.items()
        parts += [f"{name} {value}" for name, value in options if name in WINDOW and value != WINDOW[name]]
        return ", ".join(parts)

    def flops(self, passes: str) -> int:
        """Return the floating-point operations of a convolution; backward takes twice as many as forward."""
        if self.kind != "conv":
            return 0
        return 2 * prod(self.shapes["dout"]) * prod(self.shapes["w"][1:]) * (3 if passes == "forward+backward" else 1)

    def traffic(self, passes: str) -> int:
        """Return the least memory traffic in bytes: each array that a pass reads or writes, counted once."""
        x, out = (prod(self.shapes.get(name, ())) for name in ("x", "dout"))
        values = {
            "max_pool": {"forward": x + out, "forward+backward": 2 * (x + out)},
            "avg_pool": {"forward": x + out, "forward+backward": 2 * (x + out)},
            "gelu": {"forward": 2 * x, "forward+backward": 5 * x},
            "silu": {"forward": 2 * x, "forward+backward": 5 * x},
            "batchnorm": {"forward": 2 * x, "forward+backward": 5 * x},
            "groupnorm": {"forward": 2 * x, "forward+backward": 5 * x},
            "softmax": {"forward+backward": 2 * x},
            "update": {"update": 7 * prod(self.shapes.get("w", ()))},
        }.get(self.kind, {}).get(passes, 0)
        return values * np.dtype(self.dtype).itemsize


def _conv(
    name: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int,
    padding: int,
    dilation: int = 1,
    groups: int = 1,
    **options: Any,
) -> Case:
    side = 1 + (x[2] + 2 * padding - dilation * (w[2] - 1) - 1) // stride
    shapes = {"x": x, "w": w, "b": w[:1], "dout": (x[0], w[0], side, side)}
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(name, "conv", shapes, window, **options)


def _pool(name: str, x: tuple[int, ...], kernel_size: int, stride: int, kind: str = "max_pool", **options: Any) -> Case:
    side = 1 + (x[2] - kernel_size) // stride
    shapes = {"x": x, "dout": (*x[:2], side, side)}
    return Case(name, kind, shapes, {"kernel_size": kernel_size, "stride": stride}, **options)


_IMAGES = (64, 64, 32, 32)
_NORM = {"x": _IMAGES, "gamma": (64,), "beta": (64,), "dout": _IMAGES}

CASES = [
    _conv("seed", (100, 3, 31, 31), (25, 3, 3, 3), 2, 1, dtype="float64", small=True),
    _conv("three", (50, 3, 32, 32), (32, 3, 7, 7), 1, 3),
    _conv("c16", (64, 16, 32, 32), (16, 16, 3, 3), 1, 1),
    _conv("c64", _IMAGES, (64, 64, 3, 3), 1, 1),
    _conv("c128", (128, 128, 16, 16), (256, 128, 3, 3), 1, 1),
    _conv("down", _IMAGES, (128, 64, 3, 3), 2, 1),
    _conv("pointwise", _IMAGES, (256, 64, 1, 1), 1, 0),
    _conv("depthwise 3x3", _IMAGES, (64, 1, 3, 3), 1, 1, groups=64),
    _conv("dilated 3x3", _IMAGES, (64, 64, 3, 3), 1, 2, dilation=2),
    _conv("grouped 3x3", _IMAGES, (64, 8, 3, 3), 1, 1, groups=8),
    _pool("course pool", (100, 3, 32, 32), 2, 2, dtype="float64", small=True),
    _pool("max pool 2x2/2", _IMAGES, 2, 2),
    _pool("max pool 3x3/2", _IMAGES, 3, 2),
    _pool("avg pool 2x2/2", _IMAGES, 2, 2, kind="avg_pool"),
    Case("gelu", "gelu", {"x": _IMAGES, "dout": _IMAGES}),
    Case("silu", "silu", {"x": _IMAGES, "dout": _IMAGES}),
    Case("batch norm", "batchnorm", _NORM),
    Case("group norm", "groupnorm", _NORM, {"groups": 8}),
    Case("softmax loss", "softmax", {"x": (4096, 1000)}, classes=1000),
    Case("Adam", "update", {"w": (4_000_000,), "dw": (4_000_000,)}, {"rule": "adam"}),
    Case("AdamW", "update", {"w": (4_000_000,), "dw": (4_000_000,)}, {"rule": "adamw"}),
    Case("three-layer step", "step", {"X": (50, 3, 32, 32)}, {"net": "three-layer"}, classes=10),
    Case("six-conv step", "step", {"X": (64, 3, 32, 32)}, {"net": "six-conv"}, classes=10),
    Case("resnet20 step", "step", {"X": (64, 3, 32, 32)}, {"net": "resnet20"}, classes=10),
    Case("ResNet9 step", "step", {"X": (64, 3, 32, 32)}, {"net": "resnet9"}, classes=10),
    Case(
        "three-layer step, batch 1024", "step", {"X": (1024, 3, 32, 32)}, {"net": "three-layer"}, classes=10, large=True
    ),
    Case("six-conv step, batch 512", "step", {"X": (512, 3, 32, 32)}, {"net": "six-conv"}, classes=10, large=True),
    *(
        Case(
            f"{net} step, batch {N}, captured{', mixed' * (precision == 'mixed')}",
            "captured_step",
            {"X": (N, 3, 32, 32)},
            {"net": net, "precision": precision},
            classes=10,
            large=True,
        )
        for net, N, precision in (
            ("three-layer", 50, "full"),
            ("six-conv", 64, "full"),
            ("six-conv", 512, "full"),
            ("six-conv", 512, "mixed"),
        )
    ),
    Case(
        "CIFAR-10 epoch, batch 512",
        "epoch",
        {"X": (50_000, 3, 32, 32)},
        {"net": "six-conv", "batch": 512},
        dtype="uint8",
        classes=10,
        large=True,
    ),
]

GROUPS = {
    "conv": [case.name for case in CASES if case.kind == "conv"],
    "pool, activations, norms, softmax, Adam": [
        "max pool 2x2/2",
        "max pool 3x3/2",
        "avg pool 2x2/2",
        "gelu",
        "silu",
        "batch norm",
        "group norm",
        "softmax loss",
        "Adam",
        "AdamW",
    ],
    "dilated, grouped, depthwise, avg pool, GELU, AdamW, residual nets": [
        "depthwise 3x3",
        "dilated 3x3",
        "grouped 3x3",
        "avg pool 2x2/2",
        "gelu",
        "AdamW",
        "resnet20 step",
        "ResNet9 step",
    ],
}
