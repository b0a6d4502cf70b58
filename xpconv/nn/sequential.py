"""Sequential: a network as a list of layers, with its parameters and its loss."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from math import prod, sqrt
from types import MappingProxyType
from typing import Any

from xpconv import ops
from xpconv._validation import check_count, check_nonnegative
from xpconv.backend import Array, Backend, get_backend, on_its_device
from xpconv.errors import ArgumentError, ArgumentTypeError, OutOfMemoryError, XpconvError
from xpconv.nn import layers as layer_objects
from xpconv.nn._losses import LOSSES, check_loss_options, loss_and_gradient, loss_arguments
from xpconv.nn.layers import Arrays, Initial, Layer, Shape
from xpconv.nn.preprocessing import Preprocessing, on_device
from xpconv.ops.tiling import workspace_bytes
from xpconv.random import RandomStream, Rng, as_random_stream, draw_seed, spawn

__all__ = ["Sequential"]


class Sequential:
    """A network: a list of layers, their parameters and a loss.

    Parameters
    ----------
    layers : sequence of Layer
        The last layer returns the class scores.
    input_shape : tuple of int
        The shape of one sample, such as (3, 32, 32); if it is (D,), samples may have any
        shape with D values.
    name : str
        Name of the model in files and messages.
    loss : {"softmax", "svm"}
    loss_options : mapping, optional
        Options of `xpconv.layers.softmax_loss`: ``label_smoothing``, ``class_weights`` and ``reduction``.
    reg : float
        Weight of ``0.5 * sum(W * W)`` over all weights W in the loss.
    weight_scale : float, optional
        Standard deviation of the initial weights; by default ``sqrt(2 / fan_in)`` for each layer (He et al., 2015).
    dtype : {"float32", "float64"} or a dtype of that name
    backend : str or Backend, optional
        As for `get_backend`.
    rng : None, int, Generator or RandomState
        Source of the initial weights. They are drawn on the host in layer order, so all backends start equal.
    seed : int, optional
        Makes stochastic layers such as dropout repeat their masks in each training pass, as gradient checks need.
    preprocessing : Preprocessing, optional
    class_names : sequence of str
        One name for each score, or empty.

    Attributes
    ----------
    params : dict of str to array
        W1, b1, gamma1, beta1, ..., numbered by weight layer. The model has no other copy: entries may be replaced
        and their arrays modified.
    state : dict of str to array
        The running averages of batch norm: running_mean1, running_var1, num_batches1, ...
    layer_keys : list of dict of str to str
        For each layer, its parameter names and their keys in `params` or `state`: ``{"W": "W1", "b": "b1"}``.
    seed_stream : Generator or RandomState
        Seeds for stochastic layers such as dropout are drawn from it unless `seed` is given.

    Examples
    --------
    >>> import numpy as np
    >>> from xpconv.nn import Affine, Conv, MaxPool, Relu
    >>> net = Sequential([Conv(4, padding="same"), Relu(), MaxPool(), Affine(10)], input_shape=(1, 8, 8), rng=0)
    >>> sorted(net.params)
    ['W1', 'W2', 'b1', 'b2']
    >>> X, y = np.zeros((5, 1, 8, 8)), np.arange(5)
    >>> loss, grads = net.loss(X, y)
    >>> round(float(loss), 4), net.loss(X).shape
    (2.3026, (5, 10))
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        input_shape: Sequence[int],
        name: str = "Sequential",
        loss: str = "softmax",
        loss_options: Mapping[str, Any] | None = None,
        reg: float = 0.0,
        weight_scale: float | None = None,
        dtype: Any = "float32",
        backend: str | Backend | None = None,
        rng: Rng = None,
        seed: int | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        if loss not in LOSSES:
            raise ArgumentError(f"loss is {loss!r}; expected one of {', '.join(LOSSES)}")
        self.layers, self.name, self.loss_name = tuple(layers), name, loss
        self.input_shape = _sample_shape(input_shape)
        self.reg, self.weight_scale = reg, weight_scale
        self.seed = None if seed is None else check_count("seed", seed, 0, 2**32 - 1)
        self.dtype, self.backend = _dtype_name(dtype), get_backend(backend)
        self.preprocessing, self.class_names = preprocessing, tuple(class_names)
        self.params: Arrays = {}
        self.state: Arrays = {}
        stream = as_random_stream(rng)
        self.layer_keys = self._build(stream)
        self.loss_options = loss_options
        self._check_names()
        self.seed_stream: RandomStream = stream if rng is None else spawn(stream, 1)[0]

    @on_its_device
    def _build(self, stream: RandomStream) -> list[dict[str, str]]:
        """Make `params` and `state`; return `layer_keys`.

        Keys are numbered by weight layer, so a norm has the number of the weight layer before it. If a name occurs
        again after the same weight layer, its key gets a second number: gamma1, gamma1_2.
        """
        layer_keys, weight_layers, shape = [], 0, self.input_shape
        uses: dict[str, int] = {}  # occurrences of each numbered name
        for position, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise ArgumentTypeError(f"layers[{position}] is {layer!r}; expected a Layer such as Relu()")
            with _NamedLayer(position, layer):
                parameters, state, next_shape = layer.parameters(shape), layer.state(shape), layer.output_shape(shape)
            weight_layers += "W" in parameters
            names = [f"{name}{weight_layers}" for name in [*parameters, *state]]
            use = 1 + max((uses.get(name, 0) for name in names), default=0)
            uses.update(dict.fromkeys(names, use))
            number = f"{weight_layers}_{use}" if use > 1 else f"{weight_layers}"
            layer_keys.append({name: name + number for name in [*parameters, *state]})
            for name, (size, value) in parameters.items():
                self.params[name + number] = self._initial(size, value, stream)
            for name, (size, value) in state.items():
                self.state[name + number] = self._initial(size, value, stream)
            shape = next_shape
        if len(shape) != 1:
            raise ArgumentError(
                f"the last layer returns samples of shape {shape}; expected scores (C,): end with Affine(C)"
            )
        self.num_classes = shape[0]
        return layer_keys

    def _check_names(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ArgumentError(
                f"class_names has {len(self.class_names)} names; expected {self.num_classes}, one for each score"
            )
        for argument, text in [("name", self.name), *(("class_names", name) for name in self.class_names)]:
            if not isinstance(text, str) or not text.isprintable():
                raise ArgumentError(f"{argument} has {text!r}; expected printable text")

    def _initial(self, shape: Shape, value: Initial, stream: RandomStream) -> Array:
        if value != "normal":
            dtype = self.backend.dtype(self.dtype)
            return self.backend.xp.full(shape, value, dtype=dtype, device=self.backend.device)
        fan_in = shape[0] if len(shape) == 2 else prod(shape[1:])
        scale = sqrt(2 / fan_in) if self.weight_scale is None else self.weight_scale
        return self.backend.asarray(stream.standard_normal(shape) * scale, dtype=self.dtype)

    @property
    def reg(self) -> float:
        """Weight of the L2 penalty in the loss: a finite number, 0 or more."""
        return self._reg

    @reg.setter
    def reg(self, value: float) -> None:
        self._reg = check_nonnegative("reg", value)

    @property
    def loss_options(self) -> Mapping[str, Any]:
        """Options of the loss function, read-only. Assign others to change them: ``{"label_smoothing": 0.1}``."""
        return MappingProxyType(self._loss_options)

    @loss_options.setter
    def loss_options(self, value: Mapping[str, Any] | None) -> None:
        self._loss_options = check_loss_options(self.loss_name, value, self.num_classes)
        self._loss_arguments = loss_arguments(self._loss_options, self.backend, self.dtype)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Preprocessing of the samples. Assigning to it checks it and copies it to the model's device."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing | None) -> None:
        self._preprocessing = None if value is None else on_device(value, self.backend, self.dtype, self.input_shape)

    def loss(self, X: Array, y: Array | None = None) -> Any:
        """Return the scores of `X` or, given labels, the loss and its gradients.

        Parameters
        ----------
        X : array (N, ...)
            Samples of the input shape, of any real dtype, in host memory or on the model's device.
        y : array (N,) of integers, optional
            Labels. The softmax loss also takes the probability of each class, (N, C), of any real dtype.

        Returns
        -------
        scores : array (N, C)
            Without `y`; the layers are in evaluation mode.
        (loss, grads) : array () and dict of str to array
            With `y`; the loss stays on the device until it is read. The layers are in training mode, and the running
            averages are updated.

        Raises
        ------
        ArgumentError
            If the shape or dtype of `X` or `y` is wrong.
        OutOfMemoryError
            If the device has too little memory for this batch; parameters and state are unchanged.
        """
        try:
            return self._loss(X, y)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
                raise  # torch reports it as a RuntimeError
            failure = OutOfMemoryError(
                f"{self.backend} has not enough memory for {X.shape[0]} samples at once ({error}): take a smaller "
                "batch, or on a GPU less for convolutions by XPCONV_WORKSPACE, which is now "
                f"{workspace_bytes(self.backend.library) / 2**20:g}MiB"
            )
            for note in getattr(error, "__notes__", ()):  # on the layer
                failure.add_note(note)
            raise failure from error

    @on_its_device
    def _loss(self, X: Array, y: Array | None) -> Any:
        x = self._prepare(X)
        scores, caches, state = self._forward(x, train=y is not None)
        if y is None:
            return scores
        loss, dout = loss_and_gradient(self.loss_name, scores, self.backend.upload("y", y), self._loss_arguments)
        grads = self._backward(dout, caches)
        if self.reg:
            keys = [keys["W"] for keys in self.layer_keys if "W" in keys]
            loss = ops.add_l2_penalty(loss, [self.params[key] for key in keys], [grads[key] for key in keys], self.reg)
        self.state.update(state)
        return loss, grads

    def _prepare(self, X: Array) -> Array:
        """Convert samples to the model's device, dtype and input shape, and preprocess them."""
        x = _upload_samples(X, self.backend, self.dtype)
        given = tuple(x.shape)
        if len(self.input_shape) == 1 and len(x.shape) > 1 and 0 not in x.shape:
            x = self.backend.xp.reshape(x, (x.shape[0], -1))
        if tuple(x.shape[1:]) != self.input_shape or 0 in x.shape:
            raise ArgumentError(
                f"X has shape {given}; expected (N, {str(self.input_shape)[1:].rstrip(',)')}) "
                f"with N at least 1, as {self.name} was built for{_layout_hint(given, self.input_shape)}"
            )
        if self.preprocessing is not None:
            x = (x - self.preprocessing.mean) / self.preprocessing.std
        return x

    def _forward(self, x: Array, *, train: bool) -> tuple[Array, list[Any], Arrays]:
        """Return the scores and, in training, the layers' caches and new state."""
        store, caches, state = {**self.params, **self.state}, list[Any](), Arrays()
        for position, (layer, keys) in enumerate(zip(self.layers, self.layer_keys, strict=True)):
            with _NamedLayer(position, layer):
                x, cache = layer.forward(
                    x,
                    {name: store[key] for name, key in keys.items()},
                    train=train,
                    seed=self._layer_seed(position) if train else 0,
                )
            if train:
                caches.append(cache)
                state.update({keys[name]: value for name, value in layer.new_state(cache).items()})
        return x, caches, state

    def outputs(self, X: Array) -> Iterator[tuple[Layer, Array]]:
        """Yield each layer with its output for the samples; the model does not change.

        Batch norm uses the statistics of these samples, as in training, and dropout keeps every element.

        Parameters
        ----------
        X : array (N, ...)
            As for `loss`.

        Examples
        --------
        >>> from xpconv.nn import TwoLayerNet
        >>> net = TwoLayerNet(input_dim=64, rng=0)
        >>> [(type(layer).__name__, out.shape) for layer, out in net.outputs(net.backend.xp.ones((5, 64)))]
        [('Affine', (5, 100)), ('Relu', (5, 100)), ('Affine', (5, 10))]
        """
        with self.backend.current():
            x, store = self._prepare(X), {**self.params, **self.state}
        for position, (layer, keys) in enumerate(zip(self.layers, self.layer_keys, strict=True)):
            train = not self.state.keys().isdisjoint(keys.values())
            with self.backend.current(), _NamedLayer(position, layer):
                x = layer.forward(x, {name: store[key] for name, key in keys.items()}, train=train, seed=0)[0]
            yield layer, x

    def _backward(self, dout: Any, caches: list[Any]) -> Arrays:
        grads: Arrays = {}
        first = next((i for i, keys in enumerate(self.layer_keys) if keys), len(self.layer_keys))
        for position in reversed(range(first, len(self.layers))):
            with _NamedLayer(position, self.layers[position]):
                dout, layer_grads = self.layers[position].backward(dout, caches.pop(), need_dx=position > first)
            grads.update({self.layer_keys[position][name]: grad for name, grad in layer_grads.items()})
        return grads

    def _layer_seed(self, position: int) -> int:
        if not self.layers[position].stochastic:
            return 0
        return draw_seed(self.seed_stream) if self.seed is None else (self.seed + position) % 2**32

    def config(self) -> dict[str, Any]:
        """Return the architecture as data for JSON; `from_config` rebuilds the model from it."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "dtype": self.dtype,
            "loss": self.loss_name,
            **({"loss_options": dict(self._loss_options)} if self._loss_options else {}),
            "reg": self.reg,
            "class_names": list(self.class_names),
            "layers": [
                {
                    "type": type(layer).__name__,
                    **{
                        name: list(value) if isinstance(value, tuple) else value
                        for name, value in asdict(layer).items()
                    },
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], backend: str | Backend | None = None) -> "Sequential":
        """Build a model from the data of `config`, with new parameters."""
        return Sequential(backend=backend, rng=0, **arguments_of(config))


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Sequential` for the data of `config`."""
    kinds = {kind: getattr(layer_objects, kind) for kind in layer_objects.__all__ if kind != "Layer"}
    layers = []
    for position, entry in enumerate(config["layers"]):
        options = dict(entry)
        kind = kinds.get(options.pop("type"))
        if kind is None or not set(options) <= {field.name for field in fields(kind)}:
            raise ArgumentError(
                f"layers[{position}] is {entry!r}; expected a type among {', '.join(kinds)} with its own options"
            )
        layers.append(kind(**options))
    return {**config, "layers": layers}


class _NamedLayer:
    """A block in which an error gets a note that names the layer; a class, since every pass enters it."""

    def __init__(self, position: int, layer: Layer) -> None:
        self.position, self.layer = position, layer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            error.add_note(f"in layers[{self.position}], {self.layer!r}")


def _layout_hint(given: Shape, input_shape: Shape) -> str:
    """Return how to give images the model's layout, for the end of an error; "" if that would not make them fit."""
    if len(input_shape) != 3:
        return ""
    C, H, W = input_shape
    if given[1:] == (H, W, C):
        return ": its channels are last (NHWC) but must come first (NCHW): pass xp.moveaxis(X, -1, 1)"
    if C == 1 and given[1:] == (H, W):
        return ": pass X[:, None, ...]"
    return ": for a batch of one sample, pass X[None, ...]" if given == input_shape else ""


def _upload_samples(X: Any, backend: Backend, dtype: str) -> Array:
    """Return samples as an array on a device; the error for something else names it."""
    if not (hasattr(X, "shape") or isinstance(X, list | tuple)):
        raise ArgumentTypeError(f"X is a {type(X).__name__}; expected an array (N, ...) or a list of samples")
    try:
        return backend.upload("X", X, dtype)
    except ValueError as error:
        if isinstance(error, XpconvError):
            raise
        raise ArgumentError(f"X is no array of numbers ({error}); expected samples of one shape") from error


def _dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any library."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype)).rpartition(".")[2]
    if name not in ("float32", "float64"):
        raise ArgumentError(f"dtype is {dtype!r}; expected float32 or float64")
    return str(name)


def _sample_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample in Python's integers."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise ArgumentTypeError(
            f"input_shape is {shape!r}; expected the shape of one sample, such as (3, 32, 32)"
        ) from None
    return tuple(check_count("a size in input_shape", size) for size in sizes)
