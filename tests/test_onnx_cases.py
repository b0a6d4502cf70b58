"""The ONNX standard's own cases for single operators, which ship in the package onnx, against the layer functions.

A translation for each operator turns a case's attributes into the options of a layer. All cases pass, except those of
`LEFT_OUT`, which gives the reason for each.
"""

import warnings
from math import prod

import numpy as np
import pytest

from xpconv import layers, ops
from xpconv.errors import XpconvError
from xpconv.training.optim import sgd_momentum, sgd_nesterov

onnx = pytest.importorskip("onnx")

THREE_DIMENSIONAL = "images have two dimensions"
LEFT_OUT = {
    "test_convtranspose_3d": THREE_DIMENSIONAL,
    "test_maxpool_3d_default": THREE_DIMENSIONAL,
    "test_maxpool_3d_dilations": THREE_DIMENSIONAL,
    "test_maxpool_3d_dilations_use_ref_impl": THREE_DIMENSIONAL,
    "test_maxpool_3d_dilations_use_ref_impl_large": THREE_DIMENSIONAL,
    "test_averagepool_3d_default": THREE_DIMENSIONAL,
    "test_averagepool_3d_dilations_small": THREE_DIMENSIONAL,
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True": THREE_DIMENSIONAL,
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False": THREE_DIMENSIONAL,
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True": THREE_DIMENSIONAL,
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False": THREE_DIMENSIONAL,
}


# ---- translations: each takes the attributes and inputs of a node and returns its outputs


def with_two_dimensions(translate):
    """Let a translation for images (N, C, H, W) take signals (N, C, W), too: images of one row."""

    def translated(attributes, x, *others):
        if x.ndim != 3:
            return translate(attributes, x, *others)
        row = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0}
        attributes = {name: [row[name], *value] if name in row else value for name, value in attributes.items()}
        if "pads" in attributes:
            before, after = attributes["pads"]
            attributes["pads"] = [0, before, 0, after]
        images = (a[:, :, None] if a.ndim == 3 else a for a in (x, *others))
        return [out[:, :, 0] for out in translate(attributes, *images)]

    return translated


def window_options(attributes, x, kernel_size):
    """Return the options stride, padding and dilation; `auto_pad` becomes explicit padding."""
    stride, dilation = (tuple(attributes.get(name, (1, 1))) for name in ("strides", "dilations"))
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    padding = ((top, bottom), (left, right))
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode()
    if auto_pad.startswith("SAME"):
        totals = [
            max((-(-size // s) - 1) * s + 1 + (k - 1) * d - size, 0)
            for size, k, s, d in zip(x.shape[2:], kernel_size, stride, dilation, strict=True)
        ]
        padding = tuple(split(total, lower=auto_pad == "SAME_LOWER") for total in totals)
    return {"stride": stride, "padding": padding, "dilation": dilation}


def split(total, *, lower):
    """Return the pixels before and after an axis; an odd one goes after it, or before it if `lower`."""
    less, more = total // 2, total - total // 2
    return (more, less) if lower else (less, more)


@with_two_dimensions
def conv(attributes, x, w, b=None):
    return [layers.conv_forward(x, w, b, **window_options(attributes, x, w.shape[2:]))[0]]


@with_two_dimensions
def conv_transpose(attributes, x, w, b=None):
    """Choose the padding for a given output shape, or for "SAME", where it is that of the images times the stride."""
    options = window_options(attributes, x, w.shape[2:])
    stride, dilation, extra = options["stride"], options["dilation"], attributes.get("output_padding", (0, 0))
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode()
    same = [size * s for size, s in zip(x.shape[2:], stride, strict=True)] if auto_pad.startswith("SAME") else None
    if shape := attributes.get("output_shape", same):
        totals = [
            (size - 1) * s + 1 + (k - 1) * d + more - wanted
            for size, s, k, d, more, wanted in zip(
                x.shape[2:], stride, w.shape[2:], dilation, extra, shape, strict=True
            )
        ]
        extra = tuple(more + max(-total, 0) for more, total in zip(extra, totals, strict=True))
        options["padding"] = tuple(split(max(total, 0), lower=auto_pad != "SAME_UPPER") for total in totals)
    groups = attributes.get("group", 1)
    return [layers.conv_transpose_forward(x, w, b, output_padding=extra, groups=groups, **options)[0]]


@with_two_dimensions
def max_pool(attributes, x):
    kernel_size, kind = attributes["kernel_shape"], x.dtype
    out, cache = layers.max_pool_forward(
        x.astype(np.float32),
        kernel_size=kernel_size,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        **window_options(attributes, x, kernel_size),
    )
    return [out.astype(kind), positions_of_maxima(out, cache, by_columns=attributes.get("storage_order", 0))]


def positions_of_maxima(out, cache, *, by_columns):
    """Return for each window where its maximum is in the flat array of all images: where its gradient goes to."""
    order, positions = "F" if by_columns else "C", np.empty(out.shape, np.int64)
    for index in np.ndindex(out.shape):
        dout = np.zeros_like(out)
        dout[index] = 1
        dx = layers.max_pool_backward(dout, cache)
        n, c, row, column = np.argwhere(dx)[0]
        image = np.ravel_multi_index((row, column), dx.shape[2:], order=order)
        positions[index] = (n * dx.shape[1] + c) * prod(dx.shape[2:]) + image
    return positions


@with_two_dimensions
def average_pool(attributes, x):
    kernel_size = attributes["kernel_shape"]
    options = window_options(attributes, x, kernel_size)
    if options["dilation"] != (1, 1):  # A mean is a convolution of each channel by itself.
        C = x.shape[1]
        mean = np.full((C, 1, *kernel_size), 1 / prod(kernel_size), x.dtype)
        return [layers.conv_forward(x, mean, None, groups=C, **options)[0]]
    del options["dilation"]
    flags = {name: bool(attributes.get(name, 0)) for name in ("ceil_mode", "count_include_pad")}
    return [layers.avg_pool_forward(x, kernel_size=kernel_size, **flags, **options)[0]]


def global_average_pool(attributes, x):
    return [layers.global_avg_pool_forward(x)[0][:, :, None, None]]


def global_max_pool(attributes, x):
    return [layers.global_max_pool_forward(x)[0][:, :, None, None]]


def leaky_relu(attributes, x):
    return [layers.leaky_relu_forward(x, negative_slope=attributes.get("alpha", 0.01))[0]]


def gelu(attributes, x):
    return [layers.gelu_forward(x, approximate=attributes.get("approximate", b"none").decode())[0]]


def batch_normalization(attributes, x, gamma, beta, mean, var):
    train = bool(attributes.get("training_mode", 0))
    options = {"train": train, "momentum": attributes.get("momentum", 0.9), "eps": attributes.get("epsilon", 1e-5)}
    out, cache = layers.batchnorm_forward(x, gamma, beta, layers.RunningStats(mean, var), **options)
    return [out, *cache.running[:2]]


def group_normalization(attributes, x, gamma, beta):
    options = {"groups": attributes["num_groups"], "eps": attributes.get("epsilon", 1e-5)}
    return [layers.groupnorm_forward(x, gamma, beta, **options)[0]]


def instance_normalization(attributes, x, gamma, beta):
    return group_normalization({**attributes, "num_groups": x.shape[1]}, x, gamma, beta)


def layer_normalization(attributes, x, gamma, beta):
    axis = attributes.get("axis", -1) % x.ndim
    rows = x.reshape(-1, *x.shape[axis:])
    out, cache = layers.layernorm_forward(rows, gamma, beta, eps=attributes.get("epsilon", 1e-5))
    moments = x.shape[:axis] + (1,) * (x.ndim - axis)
    return [out.reshape(x.shape), cache.mean.reshape(moments), cache.inv_std.reshape(moments)]


def relu(attributes, x):
    return [layers.relu_forward(x)[0]]


def gemm(attributes, a, b, c=None):
    """A matrix `c` becomes more rows of the weights, which an identity beside `a` picks."""
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    a, shape = attributes.get("alpha", 1.0) * a, (len(a), b.shape[1])
    if c is None:
        return [layers.affine_forward(a, b, None)[0]]
    c = np.asarray(attributes.get("beta", 1.0) * c, a.dtype)
    if c.ndim < 2 or len(c) == 1:
        return [layers.affine_forward(a, b, np.broadcast_to(c, (1, shape[1]))[0])[0]]
    a, b = np.hstack([a, np.eye(len(a), dtype=a.dtype)]), np.vstack([b, np.broadcast_to(c, shape)])
    return [layers.affine_forward(a, b, None)[0]]


def softmax_cross_entropy_loss(attributes, x, y, w=None):
    """Move the classes last, drop samples of the ignored class, and for no reduction take the samples one by one."""
    C, sizes = x.shape[1], y.shape
    scores, labels = np.moveaxis(x, 1, -1).reshape(-1, C), y.reshape(-1).astype(np.int64)
    kept = labels != attributes.get("ignore_index", -100)
    reduction, options = attributes["reduction"].decode(), {"class_weights": w}
    log_p = log_probabilities(scores)
    if reduction == "none":
        losses = np.zeros(len(labels), x.dtype)
        for n in np.flatnonzero(kept):
            losses[n] = layers.softmax_loss(scores[n : n + 1], labels[n : n + 1], reduction="sum", **options)[0]
        loss = losses.reshape(sizes)
    else:
        loss = layers.softmax_loss(scores[kept], labels[kept], reduction=reduction, **options)[0]
    return [loss, np.moveaxis(log_p.reshape(*sizes, C), -1, 1)]


def log_probabilities(scores):
    """Return the logarithms of the softmax: the gradient of a sum of losses for class 0 is ``p - onehot(0)``."""
    _, dx = layers.softmax_loss(scores.astype(np.float64), np.zeros(len(scores), np.int64), reduction="sum")
    dx[:, 0] += 1
    return np.log(dx).astype(scores.dtype)


def of_each_parameter(count):
    """Let a translation of one parameter's update take several: X1, X2, G1, G2, ..., with `count` arrays of each."""

    def decorate(translate):
        def translated(attributes, rate, step, *arrays):
            assert step == 0  # The first step has no corrections for its start.
            parameters = len(arrays) // count
            results = [translate(attributes, float(rate), *arrays[i::parameters]) for i in range(parameters)]
            return [array for arrays in zip(*results, strict=True) for array in arrays]

        return translated

    return decorate


@of_each_parameter(4)
def adam(attributes, rate, w, dw, m, v):
    w, m, v = w.copy(), m.copy(), v.copy()
    dw = dw + np.float32(attributes.get("norm_coefficient", 0.0)) * w
    beta1, beta2 = attributes.get("alpha", 0.9), attributes.get("beta", 0.999)
    ops.adam_step(w, dw, m, v, beta1, beta2, rate, attributes.get("epsilon", 0.0))
    return w, m, v


@of_each_parameter(3)
def momentum(attributes, rate, w, dw, velocity):
    """Translate the velocity of the standard mode, which in xpconv includes the learning rate with its sign."""
    rule, factor = (sgd_nesterov, 1.0) if attributes["mode"] == b"nesterov" else (sgd_momentum, -rate)
    config = {
        "learning_rate": rate,
        "momentum": attributes["alpha"],
        "weight_decay": attributes["norm_coefficient"],
        "velocity": factor * velocity,
    }
    w, config = rule(w, dw, config)
    return w, config["velocity"] / factor


TRANSLATIONS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "Gelu": gelu,
    "Gemm": gemm,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
    "Adam": adam,
    "Momentum": momentum,
}


# ---- the cases


@pytest.fixture(scope="module")
def cases():
    """Return the cases of each operator; those that expand an operator into others are not for layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Cases of other operators overflow on purpose.
        from onnx.backend.test.case.node import collect_testcases

        everything = collect_testcases()
    of_operator = {operator: [] for operator in TRANSLATIONS}
    for case in everything:
        node = case.model.graph.node[0]
        if node.op_type in of_operator and len(case.model.graph.node) == 1 and "_expanded" not in case.name:
            of_operator[node.op_type].append(case)
    return of_operator


def mismatch(case, translate):
    """Return what is wrong with the outputs for a case, or None."""
    (node,), ((inputs, expected),) = case.model.graph.node, case.data_sets
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        outputs = translate(attributes, *inputs)
        for out, wanted in zip(outputs[: len(expected)], expected, strict=True):
            np.testing.assert_allclose(out, wanted, rtol=case.rtol, atol=max(case.atol, 1e-6))
            assert out.dtype == wanted.dtype
    except (AssertionError, XpconvError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("operator", TRANSLATIONS)
def test_every_case_of_the_standard_passes_but_those_left_out(operator, cases):
    wrong = {case.name: mismatch(case, TRANSLATIONS[operator]) for case in cases[operator]}
    failed = {name: text for name, text in wrong.items() if text is not None}
    assert cases[operator]
    assert {name: text for name, text in failed.items() if name not in LEFT_OUT} == {}
    assert [name for name in wrong if name in LEFT_OUT and name not in failed] == []  # It passes: remove it there.


def test_most_cases_pass(cases):
    names = {case.name for of_operator in cases.values() for case in of_operator}
    assert LEFT_OUT.keys() <= names
    assert len(names) - len(LEFT_OUT) >= 134
