"""Models for other programs: ONNX files, which ONNX Runtime and many other tools run."""

import json
import os
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from xpconv import nn
from xpconv._validation import check_pair
from xpconv._version import __version__
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError, XpconvError
from xpconv.io._atomic import write_bytes
from xpconv.nn import Sequential
from xpconv.nn.layers import Layer, Shape, Size

__all__ = ["CONVERTERS", "Converter", "Graph", "require_onnx", "to_onnx"]

OPSET = 17  # of 2022, the first with LayerNormalization, so that older runtimes read the files too
LIMIT = 2**31 - 2**20  # bytes of weights: a protobuf message holds 2 GiB


def to_onnx(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a model as it computes scores, with its preprocessing, to an ONNX file.

    The file takes ``images``, float32 in the model's input shape after an axis N of any size, and gives ``scores``,
    float32 (N, C). It computes in float32 whatever the model's dtype, since runtimes have few operators for float64.
    The metadata has ``class_names`` as a JSON list and ``model``, the model's name.

    Parameters
    ----------
    model : Sequential
        On any backend.
    path : str or path
        The file is written whole or not at all.

    Raises
    ------
    XpconvError
        If onnx is not installed.
    ArgumentError
        If a layer has no entry in CONVERTERS, or the weights are more than an ONNX file holds.
    OSError
        If the file cannot be written; one that was there stays.

    References
    ----------
    The operators: https://onnx.ai/onnx/operators

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.nn import TwoLayerNet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0), f"{folder}/net.onnx")
    ...     os.listdir(folder)
    ['net.onnx']
    """
    require_onnx()
    if not isinstance(model, Sequential):
        raise ArgumentTypeError(
            f"model is a {type(model).__name__}; expected a Sequential: the layers of other nets are not known"
        )
    write_bytes(path, _build(model).SerializeToString(deterministic=True))


def require_onnx() -> None:
    """Raise an error, before any work is done, if files could not be written after it.

    Raises
    ------
    XpconvError
        If onnx is not installed; the text says how to install it.

    Examples
    --------
    >>> require_onnx()
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise XpconvError(
            f"writing ONNX files needs onnx, which cannot be imported ({error}): pip install onnx"
        ) from error


class Graph:
    """An ONNX graph in the making; its values go by names.

    Examples
    --------
    >>> graph = Graph()
    >>> graph.node("Mul", "images", graph.constant(2.0))
    'Mul_0'
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its output."""
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name, **attributes))
        return output or name

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add an array and return its name."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(values)
        return name


Converter = Callable[[Graph, Any, str, Shape, dict[str, str]], str]


def _affine(g: Graph, layer: nn.Affine, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("Gemm", g.node("Flatten", x), *p.values())


def _conv(g: Graph, layer: nn.Conv, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("Conv", x, *p.values(), **_windows(layer.kernel_size, layer.stride, layer._padding))


def _max_pool(g: Graph, layer: nn.MaxPool, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("MaxPool", x, **_windows(layer.kernel_size, layer.stride, layer.padding))


def _avg_pool(g: Graph, layer: nn.AvgPool, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("AveragePool", x, count_include_pad=1, **_windows(layer.kernel_size, layer.stride, layer.padding))


def _global_avg_pool(g: Graph, layer: nn.GlobalAvgPool, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("Flatten", g.node("GlobalAveragePool", x))


def _batch_norm(g: Graph, layer: nn.BatchNorm, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("BatchNormalization", x, *p.values(), epsilon=layer.eps)


def _layer_norm(g: Graph, layer: nn.LayerNorm, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("LayerNormalization", x, *p.values(), axis=1, epsilon=layer.eps)


def _group_norm(g: Graph, layer: nn.GroupNorm, x: str, shape: Shape, p: dict[str, str]) -> str:
    """Each group is normalised as a layer; gamma and beta are brought to shapes that broadcast against a sample."""
    ones = g.constant(np.ones(prod(shape) // layer.groups, np.float32))
    groups = g.node("Reshape", x, g.constant([0, layer.groups, -1]))
    normal = g.node("LayerNormalization", groups, ones, axis=2, epsilon=layer.eps)
    channels = g.constant([shape[0], *(1 for _ in shape[1:])])
    gamma, beta = (g.node("Reshape", p[name], channels) for name in ("gamma", "beta"))
    return g.node("Add", g.node("Mul", g.node("Reshape", normal, g.constant([0, *shape])), gamma), beta)


def _relu(g: Graph, layer: nn.Relu, x: str, shape: Shape, p: dict[str, str]) -> str:
    return g.node("Relu", x)


def _dropout(g: Graph, layer: nn.Dropout, x: str, shape: Shape, p: dict[str, str]) -> str:
    return x


CONVERTERS: dict[type[Layer], Converter] = {
    nn.Affine: _affine,
    nn.AvgPool: _avg_pool,
    nn.BatchNorm: _batch_norm,
    nn.Conv: _conv,
    nn.Dropout: _dropout,
    nn.GlobalAvgPool: _global_avg_pool,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.MaxPool: _max_pool,
    nn.Relu: _relu,
}
"""How each type of layer is written: ``rule(graph, layer, x, shape, p) -> output``.

`x` is the name of the layer's input, `shape` the shape of one sample of it, and `p` has the names of parameters and
state in the order in which the layer declares them. A layer of your own is exported once it has an entry here.
"""


def _windows(kernel_size: Size, stride: Size | None, padding: Size) -> dict[str, Any]:
    """Return the attributes of an operator with windows; padding is given for the starts, then for the ends."""
    return {
        "kernel_shape": check_pair("kernel_size", kernel_size, 1),
        "strides": check_pair("stride", kernel_size if stride is None else stride, 1),
        "pads": 2 * check_pair("padding", padding, 0),
    }


def _build(model: Sequential) -> Any:
    """Return the model as a message of ONNX's protocol."""
    import onnx
    from onnx import helper, numpy_helper

    g, x, shape = Graph(), "images", model.input_shape
    weights = {key: to_host(value).astype(np.float32) for key, value in {**model.params, **model.state}.items()}
    if (size := sum(values.nbytes for values in weights.values())) > LIMIT:
        raise ArgumentError(f"the model has {size / 2**30:.1f} GiB of weights; an ONNX file holds less than 2")
    if model.preprocessing is not None:
        mean, std = (to_host(a).astype(np.float32) for a in (model.preprocessing.mean, model.preprocessing.std))
        x = g.node("Div", g.node("Sub", x, g.constant(mean, "mean")), g.constant(std, "std"))
    for position, (layer, keys) in enumerate(zip(model.layers, model._keys, strict=True)):
        if type(layer) not in CONVERTERS:
            raise ArgumentError(
                f"layers[{position}] is {layer!r}, and how that is written in ONNX is not known: "
                f"add a function for {type(layer).__name__} to xpconv.io.onnx.CONVERTERS"
            )
        p = {name: g.constant(weights[key], key) for name, key in keys.items()}
        x, shape = CONVERTERS[type(layer)](g, layer, x, shape, p), layer.output_shape(shape)
    g.node("Identity", x, output="scores")
    graph = helper.make_graph(
        g.nodes,
        model.name or "net",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", *model.input_shape])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", model.num_classes])],
        [numpy_helper.from_array(values, name) for name, values in g.constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(
        graph,
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),
        producer_name="xpconv",
        producer_version=__version__,
    )
    helper.set_model_props(proto, {"model": model.name, "class_names": json.dumps(model.class_names)})
    onnx.checker.check_model(proto, full_check=True)
    return proto
