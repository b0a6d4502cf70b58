"""The tables of layers, from which the tests of layers are made: a new layer needs entries here, and no other test.

`ROWS` has each layer's inputs and options; its oracle is the loop version of the same name. `Torch` computes each layer
with PyTorch's functions. `OBJECTS` has examples of each layer object and the PyTorch modules that compute the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from xpconv import layers, nn
from xpconv.layers import reference
from xpconv.ops.random_bits import keep_mask

NOT_DIFFERENTIABLE = ("running", "y")
ELEMENTWISE = ("relu", "leaky_relu", "scale", "gelu", "silu", "dropout")  # layers that accept an empty batch


@dataclass(frozen=True, eq=False)
class Row:
    """One layer with one choice of inputs and options.

    `inputs` maps the names of arguments to a shape (drawn from a normal distribution), to None, or to a function
    of a Generator; `functions` and `oracle` are (forward, backward) pairs, for names that do not follow from `layer`.
    """

    layer: str
    case: str
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    functions: tuple[Callable, Callable] | None = None
    oracle: tuple[Callable, Callable] | None = None
    kinks: bool = False  # whether the layer has no derivative at the inputs

    def __str__(self):
        return f"{self.layer}-{self.case}"

    @property
    def forward(self):
        return self.functions[0] if self.functions else getattr(layers, f"{self.layer}_forward")

    @property
    def backward(self):
        """The backward pass, which always returns a tuple of gradients."""
        function = self.functions[1] if self.functions else getattr(layers, f"{self.layer}_backward")
        return lambda *args, **kwargs: as_tuple(function(*args, **kwargs))

    @property
    def differentiable(self):
        return [name for name in self.inputs if name not in NOT_DIFFERENTIABLE]

    def draw(self, dtype="float64"):
        """Return the inputs as NumPy arrays, the same at every call."""
        rng = np.random.default_rng(0)
        drawn = {
            name: rng.standard_normal(how) if isinstance(how, tuple) else how and how(rng)
            for name, how in self.inputs.items()
        }
        return {
            name: each(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, value) for name, value in drawn.items()
        }

    @cache  # noqa: B019 (rows live as long as the tests)
    def expected(self, dtype):
        """Return inputs, dout, and the float64 results of the loop version: out, gradients, cache."""
        forward, backward = self.oracle or (
            getattr(reference, f"{self.layer}_forward"),
            getattr(reference, f"{self.layer}_backward"),
        )
        inputs = self.draw(dtype)
        wide = {
            name: each(lambda a: a.astype("float64") if a.dtype.kind == "f" else a, value)
            for name, value in inputs.items()
        }
        out, cached = forward(**wide, **self.options)
        dout = np.asarray(np.random.default_rng(1).standard_normal(np.shape(out)), dtype=dtype)
        return inputs, dout, out, as_tuple(backward(dout.astype("float64"), cached)), cached


def each(function, value):
    """Apply a function to an array or to each array of a tuple; return None for None."""
    if value is None:
        return None
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


# ---- random inputs


def labels(count, classes):
    return lambda rng: rng.integers(0, classes, count)


def probabilities(count, classes):
    return lambda rng: rng.dirichlet(np.ones(classes), count)


def running(channels):
    return lambda rng: (rng.standard_normal(channels), rng.uniform(0.5, 2.0, channels))


def ties(*shape):
    return lambda rng: rng.integers(0, 2, shape).astype(np.float64)


def spread(*shape):
    return lambda rng: rng.uniform(-10, 10, shape)


# ---- oracles for layers whose loop version has another name or other arguments


def loss(function):
    """Return a loss function as a layer whose cache is the gradient dx."""
    return function, lambda dout, dx: dout * dx


conv = (lambda algorithm="auto", **arguments: reference.conv_forward(**arguments), reference.conv_backward)
dropout = (
    lambda x, *, keep_prob, seed, train: reference.dropout_forward(
        x, keep_prob=keep_prob, mask=keep_mask(seed, x.shape, keep_prob, like=x), train=train
    ),
    reference.dropout_backward,
)
stepwise = (layers.batchnorm_forward, layers.batchnorm_backward_stepwise)
batchnorm = (reference.batchnorm_forward, reference.batchnorm_backward)
from_zero = (
    lambda x, **arguments: reference.batchnorm_forward(x, running=np.zeros((2, x.shape[1])), **arguments),
    reference.batchnorm_backward,
)


# ---- the table

_images = {"x": (3, 4, 6, 5)}
_conv = {"x": (3, 2, 6, 5), "w": (4, 2, 3, 3), "b": (4,)}
_conv_transpose = {"x": (3, 2, 4, 3), "w": (2, 4, 3, 3), "b": (4,)}
_flat_norm = {"x": (5, 4), "gamma": (4,), "beta": (4,)}
_image_norm = {"x": (3, 4, 3, 2), "gamma": (4,), "beta": (4,)}

ROWS = [
    Row("affine", "flat", {"x": (4, 6), "w": (6, 3), "b": (3,)}),
    Row("affine", "images", {"x": (4, 2, 3, 2), "w": (12, 3), "b": (3,)}),
    Row("affine", "no_bias", {"x": (4, 6), "w": (6, 3), "b": None}),
    Row("relu", "flat", {"x": (4, 6)}),
    Row("relu", "images", _images),
    Row("leaky_relu", "flat", {"x": (4, 6)}),
    Row("leaky_relu", "images", _images, {"negative_slope": 0.3}),
    Row("leaky_relu", "ties", {"x": ties(4, 6)}, {"negative_slope": 2}, kinks=True),
    Row("scale", "flat", {"x": (4, 6)}, {"factor": 0.3}),
    Row("gelu", "flat", {"x": (4, 6)}),
    Row("gelu", "images", _images, {"approximate": "none"}),
    Row("gelu", "wide", {"x": spread(4, 9)}),
    Row("gelu", "tanh", _images, {"approximate": "tanh"}),
    Row("gelu", "tanh_wide", {"x": spread(4, 9)}, {"approximate": "tanh"}),
    Row("silu", "flat", {"x": (4, 6)}),
    Row("silu", "images", _images),
    Row("silu", "wide", {"x": spread(4, 9)}),
    Row("conv", "plain", _conv),
    Row("conv", "same_size", _conv, {"padding": 1}),
    Row("conv", "same", {**_conv, "w": (4, 2, 3, 5)}, {"padding": "same"}),
    Row("conv", "same_strided", _conv, {"padding": "same", "stride": 2}),
    Row("conv", "no_bias", {**_conv, "b": None}, {"padding": 1}),
    Row("conv", "strided", _conv, {"stride": 2, "padding": 1}),
    Row("conv", "pairs", _conv, {"stride": (2, 1), "padding": (0, 2)}),
    Row("conv", "lists", _conv, {"stride": [1, 3], "padding": [1, 0]}),
    Row("conv", "rectangular", {**_conv, "w": (4, 2, 2, 4)}, {"padding": (1, 2)}),
    Row("conv", "not_tiling", {**_conv, "x": (3, 2, 8, 7)}, {"stride": 3}),
    Row("conv", "padding_beyond_window", _conv, {"padding": 4}),
    Row("conv", "padding_as_wide_as_window", {**_conv, "w": (4, 2, 3, 1)}, {"padding": 1}),
    Row("conv", "stride_beyond_window", {**_conv, "w": (4, 2, 1, 2)}, {"stride": 3}),
    Row("conv", "1x1", {**_conv, "w": (4, 2, 1, 1)}),
    Row("conv", "whole_image", {**_conv, "w": (4, 2, 6, 5)}),
    Row("conv", "one_image", {**_conv, "x": (1, 2, 6, 5)}, {"padding": 1}),
    Row("conv", "larger_batch", {**_conv, "x": (21, 2, 6, 5)}, {"padding": 1}),
    Row("conv", "im2col", _conv, {"padding": 1, "algorithm": "im2col"}, oracle=conv),
    Row("conv", "same_even", {**_conv, "w": (4, 2, 2, 4)}, {"padding": "same"}),
    Row("conv", "same_dilated", {**_conv, "w": (4, 2, 3, 2)}, {"padding": "same", "dilation": (1, 3)}),
    Row("conv", "padded_on_some_sides", _conv, {"padding": ((2, 0), (1, 3)), "stride": (1, 2)}),
    Row("conv", "dilated", {**_conv, "w": (4, 2, 3, 2)}, {"dilation": (2, 3)}),
    Row("conv", "dilated_strided", {**_conv, "x": (9, 2, 8, 9)}, {"dilation": 2, "stride": (2, 1), "padding": (2, 1)}),
    Row("conv", "grouped", {"x": (3, 6, 6, 5), "w": (4, 3, 3, 3), "b": (4,)}, {"groups": 2, "padding": 1}),
    Row("conv", "depthwise", {"x": (9, 4, 6, 5), "w": (4, 1, 3, 3), "b": (4,)}, {"groups": 4, "stride": 2}),
    Row(
        "conv", "depthwise_far", {"x": (9, 4, 6, 5), "w": (4, 1, 1, 2), "b": (4,)}, {"groups": 4, "stride": (3, 2**16)}
    ),
    Row("conv", "depthwise_twice", {"x": (2, 3, 6, 5), "w": (6, 1, 3, 2), "b": None}, {"groups": 3, "dilation": 2}),
    Row("conv_transpose", "plain", _conv_transpose),
    Row("conv_transpose", "no_bias", {**_conv_transpose, "b": None}, {"padding": 1}),
    Row("conv_transpose", "strided", _conv_transpose, {"stride": 2, "padding": 1}),
    Row("conv_transpose", "output_padding", _conv_transpose, {"stride": (3, 2), "output_padding": (2, 1)}),
    Row("conv_transpose", "rectangular", {**_conv_transpose, "w": (2, 4, 2, 4)}, {"stride": (1, 3), "padding": (0, 2)}),
    Row("conv_transpose", "padding_beyond_window", {**_conv_transpose, "w": (2, 4, 1, 2)}, {"padding": 1, "stride": 2}),
    Row("conv_transpose", "stride_beyond_window", {**_conv_transpose, "w": (2, 4, 1, 2)}, {"stride": 3}),
    Row("conv_transpose", "padded_on_some_sides", _conv_transpose, {"padding": ((2, 0), (0, 1)), "stride": (1, 2)}),
    Row("conv_transpose", "same", _conv_transpose, {"padding": "same"}),
    Row("conv_transpose", "dilated", {**_conv_transpose, "w": (2, 4, 3, 2)}, {"dilation": (2, 3), "padding": 1}),
    Row("conv_transpose", "larger_batch", {**_conv_transpose, "x": (21, 2, 4, 3)}, {"stride": 2}),
    Row("conv_transpose", "grouped", {"x": (3, 4, 4, 3), "w": (4, 3, 3, 3), "b": (6,)}, {"groups": 2, "stride": 2}),
    Row("conv_transpose", "depthwise", {"x": (3, 4, 4, 3), "w": (4, 1, 3, 2), "b": (4,)}, {"groups": 4}),
    Row("max_pool", "tiling", {"x": (3, 4, 6, 4)}, {"kernel_size": 2}),
    Row("max_pool", "not_tiling", _images, {"kernel_size": 2}),
    Row("max_pool", "overlapping", _images, {"kernel_size": 3, "stride": 1}),
    Row("max_pool", "rectangular", _images, {"kernel_size": (2, 3), "stride": (1, 2)}),
    Row("max_pool", "padded", _images, {"kernel_size": 3, "stride": 2, "padding": 1}),
    Row("max_pool", "padded_one_way", _images, {"kernel_size": (3, 2), "stride": 1, "padding": (2, 0)}),
    Row("max_pool", "gaps", _images, {"kernel_size": 1, "stride": 2}),
    Row("max_pool", "whole_image", _images, {"kernel_size": (6, 5)}),
    Row("max_pool", "ties", {"x": ties(3, 4, 6, 5)}, {"kernel_size": 3, "stride": 1, "padding": 1}, kinks=True),
    Row("max_pool", "dilated", _images, {"kernel_size": (3, 2), "stride": 1, "dilation": (2, 3)}),
    Row("max_pool", "dilated_padded", _images, {"kernel_size": 2, "stride": 2, "dilation": 2, "padding": 1}),
    Row("max_pool", "ceil_mode", _images, {"kernel_size": 2, "stride": (3, 2), "ceil_mode": True}),
    Row("max_pool", "ceil_mode_padded", _images, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Row("max_pool", "padded_on_some_sides", _images, {"kernel_size": 3, "stride": 2, "padding": ((1, 0), (0, 2))}),
    Row("max_pool", "same", _images, {"kernel_size": (2, 3), "stride": 1, "padding": "same"}),
    Row("avg_pool", "ceil_mode", _images, {"kernel_size": 2, "ceil_mode": True}),
    Row("avg_pool", "ceil_mode_padded", _images, {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Row("avg_pool", "image_alone", _images, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    Row(
        "avg_pool",
        "image_alone_ceil_mode",
        _images,
        {"kernel_size": 2, "stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True},
    ),
    Row("avg_pool", "padded_on_some_sides", _images, {"kernel_size": 3, "stride": 2, "padding": ((1, 0), (0, 2))}),
    Row("avg_pool", "tiling", {"x": (3, 4, 6, 4)}, {"kernel_size": 2}),
    Row("avg_pool", "not_tiling", _images, {"kernel_size": 2}),
    Row("avg_pool", "overlapping", _images, {"kernel_size": (3, 2), "stride": 1}),
    Row("avg_pool", "padded", _images, {"kernel_size": 3, "stride": (2, 1), "padding": (1, 0)}),
    Row("avg_pool", "padded_far", _images, {"kernel_size": 3, "stride": 1, "padding": 2}),
    Row("global_avg_pool", "images", _images),
    Row("global_max_pool", "images", _images),
    Row("global_max_pool", "ties", {"x": ties(3, 4, 6, 5)}, kinks=True),
    Row("pad_channels", "images", _images, {"channels": 7}),
    Row("pad_channels", "none", _images, {"channels": 4}),
    Row("batchnorm", "flat", _flat_norm, {"train": True}, oracle=from_zero),
    Row("batchnorm", "images", {**_image_norm, "running": running(4)}, {"train": True, "momentum": 0.7, "eps": 1e-3}),
    Row("batchnorm", "evaluation", {**_image_norm, "running": running(4)}, {"train": False}),
    Row("batchnorm", "flat_evaluation", {**_flat_norm, "running": running(4)}, {"train": False}),
    Row("batchnorm_stepwise", "flat", {**_flat_norm, "running": running(4)}, {"train": True}, stepwise, batchnorm),
    Row("batchnorm_stepwise", "images", {**_image_norm, "running": running(4)}, {"train": True}, stepwise, batchnorm),
    Row(
        "batchnorm_stepwise",
        "evaluation",
        {**_image_norm, "running": running(4)},
        {"train": False},
        stepwise,
        batchnorm,
    ),
    Row("layernorm", "flat", _flat_norm | {"x": (3, 4)}),
    Row("layernorm", "images", {"x": (3, 4, 2, 3), "gamma": (4, 2, 3), "beta": (4, 2, 3)}, {"eps": 1e-3}),
    Row("groupnorm", "groups", _image_norm, {"groups": 2}),
    Row("groupnorm", "one_group", _image_norm, {"groups": 1, "eps": 1e-3}),
    Row("groupnorm", "group_per_channel", _image_norm, {"groups": 4}),
    Row("groupnorm", "flat", _flat_norm, {"groups": 2}),
    Row("dropout", "training", _images, {"keep_prob": 0.7, "seed": 5, "train": True}, oracle=dropout),
    Row("dropout", "evaluation", _images, {"keep_prob": 0.7, "seed": 5, "train": False}, oracle=dropout),
    *(
        Row(
            "softmax_loss",
            case,
            {"x": (6, 5), "y": y(6, 5)},
            options,
            functions=loss(layers.softmax_loss),
            oracle=loss(reference.softmax_loss),
        )
        for case, y, options in [
            ("scores", labels, {}),
            ("sum", labels, {"reduction": "sum"}),
            ("smoothed", labels, {"label_smoothing": 0.1}),
            ("weighted", labels, {"class_weights": [0.5, 2.0, 0.0, 1, 3]}),
            ("weighted_sum", labels, {"class_weights": (0.5, 2.0, 0.0, 1.0, 3.0), "reduction": "sum"}),
            ("weighted_smoothed", labels, {"class_weights": [0.5, 2.0, 0.0, 1.0, 3.0], "label_smoothing": 0.2}),
            ("probabilities", probabilities, {}),
            ("probabilities_sum", probabilities, {"reduction": "sum"}),
            (
                "probabilities_weighted_smoothed",
                probabilities,
                {"class_weights": [0.5, 2.0, 0.0, 1.0, 3.0], "label_smoothing": 0.2},
            ),
        ]
    ),
    Row(
        "svm_loss",
        "scores",
        {"x": (6, 5), "y": labels(6, 5)},
        functions=loss(layers.svm_loss),
        oracle=loss(reference.svm_loss),
    ),
]

ONE_OF_EACH = list({row.layer: row for row in reversed(ROWS)}.values())[::-1]
"""The first row of each layer."""


# ---- PyTorch's versions


class Torch:
    """The layers with the names and arguments of xpconv, computed by PyTorch."""

    def __init__(self, torch):
        self.F = torch.nn.functional

    def affine(self, x, w, b):
        return self.F.linear(x.flatten(1), w.T, b)

    def relu(self, x):
        return self.F.relu(x)

    def leaky_relu(self, x, negative_slope=0.01):
        return self.F.leaky_relu(x, negative_slope)

    def scale(self, x, factor):
        return factor * x

    def gelu(self, x, approximate="none"):
        return self.F.gelu(x, approximate=approximate)

    def silu(self, x):
        return self.F.silu(x)

    def conv(self, x, w, b, stride=1, padding=0, dilation=1, groups=1, algorithm=None):
        x, padding = self.pad(x, padding, 0)
        return self.F.conv2d(x, w, b, as_pair(stride), padding, as_pair(dilation), groups)

    def conv_transpose(self, x, w, b, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
        pairs = map(as_pair, (stride, 0, output_padding))
        out = self.F.conv_transpose2d(x, w, b, *pairs, groups, as_pair(dilation))
        (top, bottom), (left, right) = (
            padding
            if isinstance(padding, tuple) and isinstance(padding[0], tuple)
            else ((pixels, pixels) for pixels in as_pair(padding))
        )
        return out[:, :, top : out.shape[2] - bottom, left : out.shape[3] - right]

    def max_pool(self, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
        x, padding = self.pad(x, padding, -np.inf)
        kernel_size, dilation, stride = as_pair(kernel_size), as_pair(dilation), stride and as_pair(stride)
        return self.F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)

    def avg_pool(self, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
        x, padding = self.pad(x, padding, 0)
        kernel_size, stride = as_pair(kernel_size), stride and as_pair(stride)
        return self.F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)

    def pad(self, x, padding, value):
        """Pad images where the sides differ, which PyTorch's layers cannot; return the padding that is left to them."""
        if padding == "same" or isinstance(padding, int) or isinstance(padding[0], int):
            return x, padding if padding == "same" else as_pair(padding)
        (top, bottom), (left, right) = padding
        return self.F.pad(x, (left, right, top, bottom), value=value), (0, 0)

    def global_avg_pool(self, x):
        return self.F.adaptive_avg_pool2d(x, 1).flatten(1)

    def global_max_pool(self, x):
        return self.F.adaptive_max_pool2d(x, 1).flatten(1)

    def pad_channels(self, x, channels):
        return self.F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))

    def batchnorm(self, x, gamma, beta, train, running=(None, None), momentum=0.9, eps=1e-5):
        mean, var = each(lambda a: a.clone(), running) if running[0] is not None else running
        return self.F.batch_norm(x, mean, var, gamma, beta, train, 1 - momentum, eps)

    batchnorm_stepwise = batchnorm

    def layernorm(self, x, gamma, beta, eps=1e-5):
        return self.F.layer_norm(x, x.shape[1:], gamma, beta, eps)

    def groupnorm(self, x, gamma, beta, groups, eps=1e-5):
        return self.F.group_norm(x, groups, gamma, beta, eps)

    def softmax_loss(self, x, y, class_weights=None, **options):
        return self.F.cross_entropy(x, y, None if class_weights is None else x.new_tensor(class_weights), **options)

    def svm_loss(self, x, y):
        return self.F.multi_margin_loss(x, y) * x.shape[1]  # PyTorch takes the mean over classes, too


def as_pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


# ---- layer objects


@dataclass(frozen=True)
class Object:
    """Layers of one type, which take images of 4 channels, and ``torch(torch.nn, layer, shape) -> list of modules``."""

    examples: list[nn.Layer]
    torch: Callable[[Any, Any, tuple[int, ...]], list[Any]]


OBJECTS = {
    nn.Affine: Object(
        [nn.Affine(3), nn.Affine(2, bias=False, init="uniform")],
        lambda t, a, shape: [*[t.Flatten()] * (len(shape) > 1), t.Linear(int(np.prod(shape)), a.units, a.bias)],
    ),
    nn.AvgPool: Object(
        [nn.AvgPool(), nn.AvgPool((3, 2), 1, padding=1)],
        lambda t, a, shape: [t.AvgPool2d(a.kernel_size, a.stride, a.padding)],
    ),
    nn.BatchNorm: Object(
        [nn.BatchNorm(), nn.BatchNorm(eps=1e-2)],
        lambda t, a, shape: [(t.BatchNorm1d, None, t.BatchNorm2d)[len(shape) - 1](shape[0], a.eps, 1 - a.momentum)],
    ),
    nn.Conv: Object(
        [nn.Conv(3, (3, 5), padding="same"), nn.Conv(2, 2, stride=(2, 1), padding=1, bias=False, init="dirac")],
        lambda t, a, shape: [
            t.Conv2d(
                shape[0], a.filters, a.kernel_size, a.stride, [before for before, _ in a.window.padding], bias=a.bias
            )
        ],
    ),
    nn.ConvTranspose: Object(
        [
            nn.ConvTranspose(3, (3, 4), stride=2, padding=1, output_padding=1),
            nn.ConvTranspose(4, 2, stride=(1, 3), dilation=2, groups=2, bias=False),
        ],
        lambda t, a, shape: [
            t.ConvTranspose2d(
                shape[0], a.filters, a.kernel_size, a.stride, a.padding, a.output_padding, a.groups, a.bias, a.dilation
            )
        ],
    ),
    nn.Dropout: Object([nn.Dropout()], lambda t, a, shape: [t.Dropout(1 - a.keep_prob)]),
    nn.Gelu: Object([nn.Gelu(), nn.Gelu("tanh")], lambda t, a, shape: [t.GELU(a.approximate)]),
    nn.GlobalAvgPool: Object([nn.GlobalAvgPool()], lambda t, a, shape: [t.AdaptiveAvgPool2d(1), t.Flatten()]),
    nn.GlobalMaxPool: Object([nn.GlobalMaxPool()], lambda t, a, shape: [t.AdaptiveMaxPool2d(1), t.Flatten()]),
    nn.GroupNorm: Object(
        [nn.GroupNorm(), nn.GroupNorm(groups=2, eps=1e-2)], lambda t, a, shape: [t.GroupNorm(a.groups, shape[0], a.eps)]
    ),
    nn.LayerNorm: Object([nn.LayerNorm(), nn.LayerNorm(eps=1e-2)], lambda t, a, shape: [t.LayerNorm(shape, a.eps)]),
    nn.LeakyRelu: Object([nn.LeakyRelu(), nn.LeakyRelu(0.2)], lambda t, a, shape: [t.LeakyReLU(a.negative_slope)]),
    nn.MaxPool: Object(
        [nn.MaxPool(), nn.MaxPool((3, 2), 1, padding=1)],
        lambda t, a, shape: [t.MaxPool2d(a.kernel_size, a.stride, a.padding)],
    ),
    nn.PadChannels: Object(
        [nn.PadChannels(6), nn.PadChannels(4)],
        lambda t, a, shape: [t.ZeroPad3d((0, 0, 0, 0, 0, a.channels - shape[0]))],
    ),
    nn.Relu: Object([nn.Relu()], lambda t, a, shape: [t.ReLU()]),
    nn.Scale: Object([nn.Scale(0.25)], lambda t, a, shape: [torch_scale(t, a.factor)]),
    nn.Silu: Object([nn.Silu()], lambda t, a, shape: [t.SiLU()]),
    nn.Residual: Object(
        [
            nn.Residual([nn.Conv(4, padding=1), nn.Relu(), nn.Residual([nn.BatchNorm()])]),
            nn.Residual([nn.Conv(3, stride=2, padding=1, bias=False)], [nn.Conv(3, 1, stride=2), nn.BatchNorm()]),
        ],
        lambda t, a, shape: [torch_residual(t, a, shape)],
    ),
}


def torch_scale(t, factor):
    """Return a PyTorch module that multiplies its input by a factor."""

    class Scale(t.Module):
        def forward(self, x):
            return factor * x

    return Scale()


def torch_residual(t, layer, shape):
    """Return a PyTorch module that adds the outputs of ``body`` and ``shortcut``."""

    class Residual(t.Module):
        def __init__(self):
            super().__init__()
            self.body, self.shortcut = (
                t.Sequential(*torch_modules(t, layers, shape)) for layers in (layer.body, layer.shortcut)
            )

        def forward(self, x):
            return self.body(x) + self.shortcut(x)

    return Residual()


def torch_modules(t, layers, shape):
    """Return the PyTorch modules of layers that run one after another."""
    modules = []
    for layer in layers:
        modules += OBJECTS[type(layer)].torch(t, layer, shape)
        shape = layer.output_shape(shape)
    return modules
