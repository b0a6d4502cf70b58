"""Export of models to ONNX files, which ONNX Runtime and many other tools run."""

import json
import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from xpconv import nn
from xpconv._validation import check_pair
from xpconv._version import __version__
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError, XpconvError, import_failure
from xpconv.io._atomic import write_bytes
from xpconv.nn import Sequential
from xpconv.nn.layers import Layer, Shape
from xpconv.ops.windows import Window

__all__ = ["CONVERTERS", "Converter", "Graph", "require_onnx", "to_onnx"]

OPSET = 17  # the first (2022) with LayerNormalization; older runtimes cannot read later opsets
GELU_OPSET = 20  # the first (2023) with Gelu
MAX_WEIGHT_BYTES = 2**31 - 2**20  # a protobuf message must be smaller than 2 GiB; 1 MiB is left for the graph


def to_onnx(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a model in evaluation mode, with its preprocessing, to an ONNX file.

    The input ``images`` is float32 (N, ...), N samples of the model's input shape; the output ``scores`` is float32
    (N, C). Computation is in float32 whatever the model's dtype, since runtimes have few operators for float64. The
    metadata has the entries ``class_names``, a JSON list, and ``model``, the model's name. The file is written
    completely or not at all.

    Parameters
    ----------
    model : Sequential
        On any backend.
    path : str or path

    Raises
    ------
    XpconvError
        If onnx is not installed.
    ArgumentError
        If a layer has no entry in CONVERTERS, or the weights exceed 2 GiB.
    ArgumentTypeError
        If `model` is not a Sequential.
    OSError
        If the file cannot be written; an old file stays.

    References
    ----------
    Operators: https://onnx.ai/onnx/operators

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.nn import TwoLayerNet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(
    ...         TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0),
    ...         f"{folder}/net.onnx",
    ...     )
    ...     os.listdir(folder)
    ['net.onnx']
    """
    require_onnx()
    if not isinstance(model, Sequential):
        raise ArgumentTypeError(
            f"model is a {type(model).__name__}; expected a Sequential: other nets do not list their layers"
        )
    write_bytes(path, _model_proto(model).SerializeToString(deterministic=True))


def require_onnx() -> None:
    """Raise an error if onnx is missing; call this before long work that ends with an export.

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
    except Exception as error:  # an incompatible library may raise anything
        raise XpconvError(import_failure("writing ONNX files needs onnx", error, extra="onnx")) from error


class Graph:
    """An ONNX graph under construction, whose values are referred to by name.

    Attributes
    ----------
    opset : int
        The version of ONNX's operators. A converter raises it if its operators need a later one.

    Examples
    --------
    >>> graph = Graph()
    >>> graph.add_node("Mul", "images", graph.add_constant(2.0))
    'Mul_0'
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.opset = OPSET

    def add_node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its output."""
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name, **attributes))
        return output or name

    def add_constant(self, values: Any, name: str | None = None) -> str:
        """Add an array and return its name."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(values)
        return name


Converter = Callable[[Graph, Any, str, Shape, dict[str, str]], str]


def _affine(graph: Graph, layer: nn.Affine, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Gemm", graph.add_node("Flatten", x), *params.values())


def _conv(graph: Graph, layer: nn.Conv, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Conv", x, *params.values(), group=layer.groups, **_window_attributes(layer.window))


def _conv_transpose(graph: Graph, layer: nn.ConvTranspose, x: str, shape: Shape, params: dict[str, str]) -> str:
    options = _window_attributes(layer.window)
    options |= {"group": layer.groups, "output_padding": check_pair("output_padding", layer.output_padding, 0)}
    return graph.add_node("ConvTranspose", x, *params.values(), **options)


def _max_pool(graph: Graph, layer: nn.MaxPool, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("MaxPool", x, ceil_mode=int(layer.ceil_mode), **_window_attributes(layer.window))


def _avg_pool(graph: Graph, layer: nn.AvgPool, x: str, shape: Shape, params: dict[str, str]) -> str:
    options = _window_attributes(layer.window)
    options |= {"ceil_mode": int(layer.ceil_mode), "count_include_pad": int(layer.count_include_pad)}
    return graph.add_node("AveragePool", x, **options)


def _global_avg_pool(graph: Graph, layer: nn.GlobalAvgPool, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Flatten", graph.add_node("GlobalAveragePool", x))


def _pad_channels(graph: Graph, layer: nn.PadChannels, x: str, shape: Shape, params: dict[str, str]) -> str:
    pads = np.zeros(2 * (1 + len(shape)), np.int64)  # before each axis, then after
    pads[1 + len(shape) + 1] = layer.channels - shape[0]
    return graph.add_node("Pad", x, graph.add_constant(pads))


def _global_max_pool(graph: Graph, layer: nn.GlobalMaxPool, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Flatten", graph.add_node("GlobalMaxPool", x))


def _batch_norm(graph: Graph, layer: nn.BatchNorm, x: str, shape: Shape, params: dict[str, str]) -> str:
    inputs = (params[name] for name in ("gamma", "beta", "running_mean", "running_var"))
    return graph.add_node("BatchNormalization", x, *inputs, epsilon=layer.eps)


def _layer_norm(graph: Graph, layer: nn.LayerNorm, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("LayerNormalization", x, *params.values(), axis=1, epsilon=layer.eps)


def _group_norm(graph: Graph, layer: nn.GroupNorm, x: str, shape: Shape, params: dict[str, str]) -> str:
    """Normalise each group as LayerNormalization does, then scale and shift each channel by gamma and beta."""
    ones = graph.add_constant(np.ones(prod(shape) // layer.groups, np.float32))
    groups = graph.add_node("Reshape", x, graph.add_constant([0, layer.groups, -1]))
    normal = graph.add_node("LayerNormalization", groups, ones, axis=2, epsilon=layer.eps)
    channels = graph.add_constant([shape[0], *(1 for _ in shape[1:])])
    gamma, beta = (graph.add_node("Reshape", params[name], channels) for name in ("gamma", "beta"))
    return graph.add_node(
        "Add", graph.add_node("Mul", graph.add_node("Reshape", normal, graph.add_constant([0, *shape])), gamma), beta
    )


def _relu(graph: Graph, layer: nn.Relu, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Relu", x)


def _leaky_relu(graph: Graph, layer: nn.LeakyRelu, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("LeakyRelu", x, alpha=layer.negative_slope)


def _scale(graph: Graph, layer: nn.Scale, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Mul", x, graph.add_constant(np.asarray(layer.factor, np.float32)))


def _gelu(graph: Graph, layer: nn.Gelu, x: str, shape: Shape, params: dict[str, str]) -> str:
    graph.opset = max(graph.opset, GELU_OPSET)
    return graph.add_node("Gelu", x, approximate=layer.approximate)


def _silu(graph: Graph, layer: nn.Silu, x: str, shape: Shape, params: dict[str, str]) -> str:
    return graph.add_node("Mul", x, graph.add_node("Sigmoid", x))


def _dropout(graph: Graph, layer: nn.Dropout, x: str, shape: Shape, params: dict[str, str]) -> str:
    return x


def _residual(graph: Graph, layer: nn.Residual, x: str, shape: Shape, params: dict[str, str]) -> str:
    ends = []
    for branch, layers in layer.branches.items():
        inner = [
            {name[len(prefix) :]: params[name] for name in params if name.startswith(prefix)}
            for prefix in (f"{branch}.{position}." for position in range(len(layers)))
        ]
        ends.append(_convert(graph, branch, layers, inner, x, shape))
    return graph.add_node("Add", *ends)


def _convert(
    graph: Graph, place: str, layers: Sequence[Layer], params: Sequence[dict[str, str]], x: str, shape: Shape
) -> str:
    """Add layers that run one after another, and return the name of the last one's output."""
    for position, (layer, own) in enumerate(zip(layers, params, strict=True)):
        if type(layer) not in CONVERTERS:
            raise ArgumentError(
                f"{place}[{position}] is {layer!r}, which has no converter to ONNX: "
                f"add a function for {type(layer).__name__} to xpconv.io.onnx.CONVERTERS"
            )
        x, shape = CONVERTERS[type(layer)](graph, layer, x, shape, own), layer.output_shape(shape)
    return x


CONVERTERS: dict[type[Layer], Converter] = {
    nn.Affine: _affine,
    nn.AvgPool: _avg_pool,
    nn.BatchNorm: _batch_norm,
    nn.Conv: _conv,
    nn.ConvTranspose: _conv_transpose,
    nn.Dropout: _dropout,
    nn.Gelu: _gelu,
    nn.GlobalAvgPool: _global_avg_pool,
    nn.GlobalMaxPool: _global_max_pool,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.LeakyRelu: _leaky_relu,
    nn.MaxPool: _max_pool,
    nn.PadChannels: _pad_channels,
    nn.Relu: _relu,
    nn.Scale: _scale,
    nn.Silu: _silu,
    nn.Residual: _residual,
}
"""The converter of each layer type, ``converter(graph, layer, x, shape, params) -> output``.

A converter adds the layer's operators to the graph and returns the name of their output. `x` is the name of the
layer's input, `shape` the shape of one input sample, and `params` maps the layer's parameters and states, in the order
in which the layer declares them, to their names in the graph. Add an entry to export a layer of your own.
"""


def _window_attributes(window: Window) -> dict[str, Any]:
    """Return the attributes of an operator with windows; ``pads`` lists the padding before each axis, then after."""
    (top, bottom), (left, right) = window.padding
    attributes: dict[str, Any] = {
        "kernel_shape": window.kernel_size,
        "strides": window.stride,
        "pads": (top, left, bottom, right),
    }
    return attributes if window.dilation == (1, 1) else {**attributes, "dilations": window.dilation}


def _model_proto(model: Sequential) -> Any:
    """Return the model as a protobuf message."""
    import onnx
    from onnx import helper, numpy_helper

    graph, x = Graph(), "images"
    weights = {key: to_host(value).astype(np.float32) for key, value in {**model.params, **model.state}.items()}
    if (weight_bytes := sum(values.nbytes for values in weights.values())) > MAX_WEIGHT_BYTES:
        raise ArgumentError(
            f"model has {weight_bytes / 2**30:.1f} GiB of weights in float32; expected less than 2, the limit of "
            "an ONNX file"
        )
    if model.preprocessing is not None:
        mean, std = (to_host(a).astype(np.float32) for a in (model.preprocessing.mean, model.preprocessing.std))
        centred = graph.add_node("Sub", x, graph.add_constant(mean, "mean"))
        x = graph.add_node("Div", centred, graph.add_constant(std, "std"))
    params = [{name: graph.add_constant(weights[key], key) for name, key in keys.items()} for keys in model.layer_keys]
    x = _convert(graph, "layers", model.layers, params, x, model.input_shape)
    graph.add_node("Identity", x, output="scores")
    used = {name for node in graph.nodes for name in node.input}
    graph_proto = helper.make_graph(
        graph.nodes,
        model.name or "net",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", *model.input_shape])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", model.num_classes])],
        [numpy_helper.from_array(values, name) for name, values in graph.constants.items() if name in used],
    )
    opset = helper.make_opsetid("", graph.opset)
    proto = helper.make_model(
        graph_proto,
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),
        producer_name="xpconv",
        producer_version=__version__,
    )
    helper.set_model_props(proto, {"model": model.name, "class_names": json.dumps(model.class_names)})
    onnx.checker.check_model(proto, full_check=True)
    return proto
