"""Sequential: a network as a list of layers, with its parameters and its loss."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from xpconv import ops
from xpconv._validation import check_choice, check_count, check_nonnegative, is_integer
from xpconv.backend import Array, Backend, get_backend, on_its_device, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError, OutOfMemoryError, XpconvError
from xpconv.nn._chain import (
    NamedLayer,
    backward_layer,
    check_fixed,
    flatten,
    forward_layer,
    is_trained,
    map_layers,
    nodes,
)
from xpconv.nn._losses import LOSSES, check_loss_options, loss_and_gradient, loss_arguments
from xpconv.nn._norm_relu import fused_layers
from xpconv.nn._parts import WHOLE, Part, Pass, run_pass
from xpconv.nn._summary import summary, summary_html
from xpconv.nn.layers import Affine, Arrays, Initial, Layer, Normal, Shape
from xpconv.nn.preprocessing import Preprocessing, on_device
from xpconv.nn.registry import layer_config, layers_of
from xpconv.ops.tiling import workspace_bytes
from xpconv.random import RandomStream, Rng, as_random_stream, draw_seed, spawn

__all__ = ["Sequential"]

LOSS_SCALE = 1024.0


class Sequential:
    """A network: a list of layers, their parameters and a loss.

    Parameters
    ----------
    layers : sequence of Layer, list or Sequential
        The last layer returns the class scores. A list inside it counts as its layers; so does a Sequential, whose
        parameters and state the model copies.
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
    precision : {"full", "mixed"}
        With "mixed", which needs the kernels of CuPy, the activations of training passes and their gradients are
        float16. Parameters, statistics, sums and the loss stay float32. Evaluation is in float32.
    seed : int, optional
        Makes stochastic layers such as dropout repeat their masks in each training pass, as gradient checks need.
    preprocessing : Preprocessing, optional
    class_names : sequence of str
        One name for each score, or empty.

    Attributes
    ----------
    params : dict of str to array
        W1, b1, gamma1, beta1, ..., numbered by weight layer in the order of their first use. The model has no other
        copy: entries may be replaced and their arrays modified.
    state : dict of str to array
        The running averages of batch norm: running_mean1, running_var1, num_batches1, ...
    layer_keys : list of dict of str to str
        For each layer, its parameter names and their keys in `params` or `state`: ``{"W": "W1", "b": "b1"}``.
    layer_names : dict of str to str
        The names of the layers and of those in their branches, by their paths: ``{"0": "conv1", "1": "residual1",
        "1.body.0": "conv2"}``. Layers of one type are numbered in the order of the paths.
    loss_scale : float or array ()
        With mixed precision, the gradient of the loss is multiplied by this power of two, so that small gradients do
        not become 0 in float16, and gradients of parameters are divided by it. A `Solver` adapts it.
    seed_stream : Generator or RandomState
        Seeds for stochastic layers such as dropout are drawn from it unless `seed` is given.

    Examples
    --------
    >>> import numpy as np
    >>> from xpconv.nn import Affine, Conv, MaxPool, Relu
    >>> net = Sequential(
    ...     [Conv(4, padding="same"), Relu(), MaxPool(), Affine(10)],
    ...     input_shape=(1, 8, 8),
    ...     rng=0,
    ... )
    >>> sorted(net.params)
    ['W1', 'W2', 'b1', 'b2']
    >>> X, y = np.zeros((5, 1, 8, 8)), np.arange(5)
    >>> loss, grads = net.loss(X, y)
    >>> round(float(loss), 4), net.loss(X).shape
    (2.3026, (5, 10))
    """

    def __init__(
        self,
        layers: Sequence[Any],
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
        precision: str = "full",
        seed: int | None = None,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        if loss not in LOSSES:
            raise ArgumentError(f"loss is {loss!r}; expected one of {', '.join(LOSSES)}")
        pairs = list(_with_sources(layers))
        self.layers, self.name, self.loss_name = flatten("layers", [layer for layer, _ in pairs]), name, loss
        self.input_shape = _sample_shape(input_shape)
        self.reg = reg
        self.weight_scale = None if weight_scale is None else check_nonnegative("weight_scale", weight_scale)
        self.seed = None if seed is None else check_count("seed", seed, 0, 2**32 - 1)
        self.dtype, self.backend = _dtype_name(dtype), get_backend(backend)
        self.precision = precision
        self.loss_scale: Any = LOSS_SCALE
        self.preprocessing, self.class_names = preprocessing, tuple(class_names)
        self.params: Arrays = {}
        self.state: Arrays = {}
        stream = as_random_stream(rng)
        self.layer_keys = self._build(stream)
        self.loss_options = loss_options
        self._check_names()
        _warn_of_channels_last(self.input_shape, self.layers)
        self.seed_stream: RandomStream = stream if rng is None else spawn(stream, 1)[0]
        for position, (_, source) in enumerate(pairs):
            if source is not None:
                self._copy_arrays(position, *source)

    @on_its_device
    def _build(self, stream: RandomStream) -> list[dict[str, str]]:
        """Make `params` and `state`; return `layer_keys`.

        Keys are numbered by weight layer, so a norm has the number of the weight layer before it. If a name occurs
        again after the same weight layer, its key gets a second number: gamma1, gamma1_2.
        """
        layer_keys, shape, numbering = [], self.input_shape, _Numbering()
        for position, layer in enumerate(self.layers):
            with NamedLayer("layers", position, layer):
                parameters, state, next_shape = layer.parameters(shape), layer.state(shape), layer.output_shape(shape)
                check_fixed(layer, parameters)
            keys = numbering.keys_of([*parameters, *state])
            layer_keys.append(keys)
            for name, (size, value) in parameters.items():
                self.params[keys[name]] = self._initial(size, value, stream)
            for name, (size, value) in state.items():
                self.state[keys[name]] = self._initial(size, value, stream)
            shape = next_shape
        if len(shape) != 1:
            raise ArgumentError(
                f"the last layer returns samples of shape {shape}; expected scores (C,): end with Affine(C)"
            )
        self.num_classes = shape[0]
        return layer_keys

    def _copy_arrays(self, position: int, source: "Sequential", own: int) -> None:
        """Copy the parameters and the state of ``source.layers[own]`` to those of ``self.layers[position]``."""
        for name, key in self.layer_keys[position].items():
            theirs = source.layer_keys[own][name]
            store, values = (self.params, source.params) if key in self.params else (self.state, source.state)
            if tuple(values[theirs].shape) != tuple(store[key].shape):
                raise ArgumentError(
                    f"{theirs} of {source.name} has shape {tuple(values[theirs].shape)}, but {key} here needs "
                    f"{tuple(store[key].shape)}: pass *model.layers instead of the model, for new parameters"
                )
            store[key][...] = self.backend.asarray(to_host(values[theirs]), self.dtype)

    @property
    def layer_names(self) -> dict[str, str]:
        """Names of the layers by their paths."""
        counts: dict[str, int] = {}
        names = {}
        for path, layer in nodes(self.layers):
            kind = type(layer).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            names[path] = f"{kind}{counts[kind]}"
        return names

    def _check_names(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ArgumentError(
                f"class_names has {len(self.class_names)} names; expected {self.num_classes}, one for each score"
            )
        for argument, text in [("name", self.name), *(("class_names", name) for name in self.class_names)]:
            if not isinstance(text, str) or not text.isprintable():
                raise ArgumentError(f"{argument} has {text!r}; expected printable text")

    def _initial(self, shape: Shape, value: Initial, stream: RandomStream) -> Array:
        if isinstance(value, float | int):
            dtype = self.backend.dtype(self.dtype)
            return self.backend.xp.full(shape, value, dtype=dtype, device=self.backend.device)
        if isinstance(value, Normal) and self.weight_scale is not None:
            return self.backend.asarray(stream.standard_normal(shape) * self.weight_scale, dtype=self.dtype)
        return self.backend.asarray(value.draw(shape, stream), dtype=self.dtype)

    @property
    def reg(self) -> float:
        """Weight of the L2 penalty in the loss: a finite number, 0 or more."""
        return self._reg

    @reg.setter
    def reg(self, value: float) -> None:
        self._reg = check_nonnegative("reg", value)

    @property
    def precision(self) -> str:
        """The precision of training passes, "full" or "mixed". Model files do not keep it."""
        return self._precision

    @precision.setter
    def precision(self, value: str) -> None:
        check_choice("precision", value, ("full", "mixed"))
        if value == "mixed" and (self.backend.library != "cupy" or os.environ.get("XPCONV_ACCELERATE") == "0"):
            raise ArgumentError(
                f"precision is 'mixed', but the model is on {self.backend}; expected 'full', or the cupy backend, "
                "whose kernels compute in float16: pass backend='cupy', and do not set XPCONV_ACCELERATE to 0"
            )
        if value == "mixed" and self.dtype != "float32":
            raise ArgumentError(f"precision is 'mixed', but dtype is {self.dtype!r}; expected 'float32' for both")
        self._precision = value

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
        with self._memory_errors(X):
            return self._loss(X, y)

    @contextmanager
    def _memory_errors(self, X: Array) -> Iterator[None]:
        """If the device has too little memory for the samples, raise an OutOfMemoryError that says what to do."""
        try:
            yield
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
        if y is None:
            return run_pass(self._forward(self._prepare(X)))[0]
        loss, grads, state = run_pass(self._training_pass(X, y, self._draw_seeds(), WHOLE))
        loss = self._add_penalty(loss, grads)
        self.state.update(state)
        return loss, grads

    def _training_pass(self, X: Array, y: Array, seeds: Sequence[int], part: Part) -> Pass:
        """Return the loss without the penalty, the gradients and the new state; for a part, its terms of these."""
        x, y, mixed = self._prepare(X), self.backend.upload("y", y), self.precision == "mixed"
        scores, caches, state = yield from self._forward(self._cast(x, "float16") if mixed else x, seeds, part)
        scores = self._cast(scores, self.dtype)
        loss, dout = yield from loss_and_gradient(self.loss_name, scores, y, self._loss_arguments, part)
        dout = self._cast(dout * self.loss_scale, "float16") if mixed else dout
        grads = yield from self._backward(dout, caches, part)
        if mixed:
            grads = {name: self._cast(grad, self.dtype) / self.loss_scale for name, grad in grads.items()}
        return loss, grads, state

    def _cast(self, a: Array, dtype: str) -> Array:
        return self.backend.xp.astype(a, self.backend.dtype(dtype), copy=False)

    def _add_penalty(self, loss: Array, grads: Arrays) -> Array:
        """Return the loss with the L2 penalty, and add the gradients of the penalty in place."""
        if not self.reg:
            return loss
        names = [(name, key) for keys in self.layer_keys for name, key in keys.items() if key in grads]
        keys = [key for name, key in names if name.rpartition(".")[2] == "W"]
        return ops.add_l2_penalty(loss, [self.params[key] for key in keys], [grads[key] for key in keys], self.reg)

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

    def _forward(self, x: Array, seeds: Sequence[int] | None = None, part: Part = WHOLE) -> Pass:
        """Return the scores and, in training, the caches from the first trained layer on and the layers' new state.

        Seeds, one for each layer, make it a training pass.
        """
        store, caches, state = {**self.params, **self.state}, list[Any](), Arrays()
        train = seeds is not None
        first = self._first_trained() if train else len(self.layers)
        for position, layer in fused_layers(self.layers):
            keys = self.layer_keys[position]
            with NamedLayer("layers", position, self.layers[position]):
                x, cache = yield from forward_layer(
                    layer,
                    x,
                    {name: store[key] for name, key in keys.items()},
                    train=train,
                    seed=0 if seeds is None else seeds[position],
                    part=part,
                )
            if train:
                state.update({keys[name]: value for name, value in layer.new_state(cache).items()})
            if position >= first:
                caches.append(cache)
        return x, caches, state

    def outputs(self, X: Array) -> Iterator[tuple[str, Layer, Array]]:
        """Yield the name, the layer and its output in evaluation mode, for each layer and those in its branches.

        A layer with branches comes after the layers in them.

        Parameters
        ----------
        X : array (N, ...)
            As for `loss`.

        Examples
        --------
        >>> from xpconv.nn import TwoLayerNet
        >>> net = TwoLayerNet(input_dim=64, rng=0)
        >>> [
        ...     (name, out.shape)
        ...     for name, layer, out in net.outputs(net.backend.xp.ones((5, 64)))
        ... ]
        [('affine1', (5, 100)), ('relu1', (5, 100)), ('affine2', (5, 10))]
        """
        with self.backend.current():
            x, store = self._prepare(X), {**self.params, **self.state}
        names = self.layer_names
        for position, (layer, keys) in enumerate(zip(self.layers, self.layer_keys, strict=True)):
            outputs = layer.outputs(x, {name: store[key] for name, key in keys.items()})
            while True:
                with self.backend.current(), NamedLayer("layers", position, layer):
                    path, inner, x = next(outputs)
                yield names[f"{position}.{path}" if path else f"{position}"], inner, x
                if inner is layer:
                    break

    def features(self, X: Array, layer: str | int, batch_size: int = 100) -> Array:
        """Return the output of one layer in evaluation mode: running averages in batch norm, and no dropout.

        The features of a sample do not depend on the other samples.

        Parameters
        ----------
        X : array (N, ...)
            As for `loss`.
        layer : str or int
            A name among `layer_names`, or the position of a layer, from the end if it is negative.
        batch_size : int
            Samples per forward pass.

        Returns
        -------
        array (N, ...)
            On the model's device.

        Raises
        ------
        ArgumentError
            If there is no such layer.

        Examples
        --------
        >>> import numpy as np
        >>> from xpconv.nn import ConvNet
        >>> net = ConvNet([16, "pool", 32], input_dim=(1, 8, 8), rng=0)
        >>> net.features(np.ones((5, 1, 8, 8)), "globalavgpool1").shape
        (5, 32)
        """
        name = self._find_layer(layer)
        return self._in_batches(
            X, batch_size, lambda batch: next(out for found, _, out in self.outputs(batch) if found == name)
        )

    def _find_layer(self, layer: str | int) -> str:
        """Return the name of a layer, given its name or position."""
        names, count = self.layer_names, len(self.layers)
        if isinstance(layer, str):
            if layer not in names.values():
                raise ArgumentError(f"layer is {layer!r}; expected one of {', '.join(names.values())}")
            return layer
        if not is_integer(layer) or not -count <= layer < count:
            raise ArgumentError(f"layer is {layer!r}; expected a name, or a position from {-count} to {count - 1}")
        return names[f"{layer % count}"]

    def predict(self, X: Array, batch_size: int = 100) -> Array:
        """Return the class with the highest score of each sample.

        Parameters
        ----------
        X : array (N, ...)
            As for `loss`.
        batch_size : int
            Samples per forward pass.

        Returns
        -------
        array (N,) of integers
            On the model's device.

        Examples
        --------
        >>> import numpy as np
        >>> from xpconv.nn import TwoLayerNet
        >>> TwoLayerNet(input_dim=64, rng=0).predict(np.ones((5, 64))).shape
        (5,)
        """
        return self._in_batches(X, batch_size, lambda batch: self.backend.xp.argmax(self.loss(batch), axis=1))

    def predict_proba(self, X: Array, batch_size: int = 100) -> Array:
        """Return the softmax of each sample's scores.

        Parameters
        ----------
        X : array (N, ...)
            As for `loss`.
        batch_size : int
            Samples per forward pass.

        Returns
        -------
        array (N, C)
            In the model's dtype, on its device; the sum of each row is 1.

        Examples
        --------
        >>> import numpy as np
        >>> from xpconv.nn import TwoLayerNet
        >>> TwoLayerNet(input_dim=4, num_classes=3, rng=0).predict_proba(
        ...     np.zeros((1, 4))
        ... ).round(3)
        array([[0.333, 0.333, 0.333]], dtype=float32)
        """
        return self._in_batches(X, batch_size, lambda batch: ops.softmax(self.loss(batch)))

    def _in_batches(self, X: Any, batch_size: int, function: Callable[[Any], Array]) -> Array:
        """Join the results of a function of batches of samples."""
        batch_size, N = check_count("batch_size", batch_size), len(X) if isinstance(X, list | tuple) else X.shape[0]
        starts = range(0, max(N, 1), batch_size)  # An empty X makes one empty batch, whose error says what is expected.
        stops = [min(start + batch_size, N) for start in starts]
        batches = (slice(*ends) for ends in zip(starts, stops, strict=True))
        rows = [function(X[batch] if isinstance(X, list | tuple) else X[batch, ...]) for batch in batches]
        with self.backend.current():
            return self.backend.xp.concat(rows) if len(rows) > 1 else rows[0]

    def _first_trained(self) -> int:
        """Return the position of the first layer with a trained parameter; the number of layers if there is none."""
        pairs = enumerate(zip(self.layers, self.layer_keys, strict=True))
        trained = (i for i, (layer, keys) in pairs if any(is_trained(layer, n) for n in keys if keys[n] in self.params))
        return next(trained, len(self.layers))

    def _backward(self, dout: Any, caches: list[Any], part: Part) -> Pass:
        grads: Arrays = {}
        for position, layer in reversed(fused_layers(self.layers)[-len(caches) :] if caches else []):
            keys = self.layer_keys[position]
            with NamedLayer("layers", position, self.layers[position]):
                cache = caches.pop()
                dout, layer_grads = yield from backward_layer(layer, dout, cache, need_dx=bool(caches), part=part)
            grads.update({keys[name]: grad for name, grad in layer_grads.items() if is_trained(layer, name)})
        return grads

    def freeze(self, *patterns: str) -> None:
        """Keep the parameters and the state of some layers as they are in training.

        Their gradients are missing in those that `loss` returns, and the backward pass stops at the lowest layer that
        is trained. A frozen batch norm normalises by its running averages. Model files keep what is frozen.

        Parameters
        ----------
        *patterns : str
            Names among `layer_names`, with ``*``, ``?`` and ``[...]`` as in file names; several can be joined by ``|``.
            The layers in the branches of a layer are frozen with it.

        Raises
        ------
        ArgumentError
            If a pattern fits no layer.

        Examples
        --------
        >>> from xpconv.nn import ConvNet
        >>> net = ConvNet([16, "pool", 32], input_dim=(1, 8, 8), rng=0)
        >>> net.freeze("conv1|batchnorm1")
        >>> sorted(net.loss(net.backend.xp.ones((2, 1, 8, 8)), [0, 1])[1])
        ['W2', 'W3', 'b3', 'beta2', 'gamma2']
        """
        self._set_trainable(False, patterns)

    def unfreeze(self, *patterns: str) -> None:
        """Train layers again that `freeze` has frozen.

        Parameters
        ----------
        *patterns : str
            As for `freeze`.

        Raises
        ------
        ArgumentError
            If a pattern fits no layer.

        Examples
        --------
        >>> from xpconv.nn import TwoLayerNet
        >>> net = TwoLayerNet(input_dim=4, rng=0)
        >>> net.freeze("*")
        >>> net.unfreeze("affine2")
        >>> [layer.trainable for layer in net.layers]
        [False, False, True]
        """
        self._set_trainable(True, patterns)

    def _set_trainable(self, trainable: bool, patterns: Sequence[str]) -> None:
        names, chosen = self.layer_names, set[str]()
        for pattern in "|".join(patterns).split("|"):
            paths = {path for path, name in names.items() if fnmatchcase(name, pattern)}
            if not paths:
                raise ArgumentError(f"{pattern!r} fits no layer; expected a pattern for {', '.join(names.values())}")
            chosen |= paths

        def change(path: str, layer: Layer) -> Layer:
            fits = any(path == each or path.startswith(f"{each}.") for each in chosen)
            return replace(layer, trainable=trainable) if fits else layer

        self.layers = map_layers(change, self.layers)

    def replace_head(self, num_classes: int, *, class_names: Sequence[str] = (), rng: Rng = None) -> None:
        """Replace the last layer by one with new weights for other classes, which is trained.

        Weights of the old classes in `loss_options` are removed.

        Parameters
        ----------
        num_classes : int
        class_names : sequence of str
            One name for each class, or empty.
        rng : None, int, Generator or RandomState
            Source of the initial weights.

        Raises
        ------
        ArgumentError
            If the last layer is not an Affine, or the names do not fit.

        Examples
        --------
        >>> from xpconv.nn import ConvNet
        >>> net = ConvNet([16, "pool", 32], input_dim=(1, 8, 8), rng=0)
        >>> net.replace_head(3, rng=0)
        >>> net.num_classes, net.params["W3"].shape
        (3, (32, 3))
        """
        num_classes, head = check_count("num_classes", num_classes), self.layers[-1]
        if not isinstance(head, Affine):
            raise ArgumentError(f"the last layer is {head!r}; expected an Affine: build a new Sequential instead")
        before, self.class_names = (self.num_classes, self.class_names), tuple(class_names)
        self.num_classes = num_classes
        try:
            self._check_names()
        except ArgumentError:
            self.num_classes, self.class_names = before
            raise
        head, keys = replace(head, units=num_classes, trainable=True), self.layer_keys[-1]
        stream, W = as_random_stream(rng), self.params[keys["W"]]
        with self.backend.current():
            for name, (size, value) in head.parameters(tuple(W.shape[:1])).items():
                self.params[keys[name]] = self._initial(size, value, stream)
        self.layers = (*self.layers[:-1], head)
        self.loss_options = {name: value for name, value in self.loss_options.items() if name != "class_weights"}

    def _draw_seeds(self) -> list[int]:
        """Return a seed for each layer in the next training pass."""
        return [self._layer_seed(position) for position in range(len(self.layers))]

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
            "layers": [layer_config(layer) for layer in self.layers],
        }

    def summary(self) -> str:
        """Return a table of the layers with their names, output shapes, parameters and bytes.

        Examples
        --------
        >>> from xpconv.nn import ConvNet
        >>> print(ConvNet([16, "pool", 32], input_dim=(1, 8, 8), rng=0).summary())
        ConvNet: samples (1, 8, 8), 10 classes, float32 on numpy
        name            layer                                    output      parameters   bytes
        conv1           Conv(16, 3, padding='same', bias=False)  (16, 8, 8)         144     576
        batchnorm1      BatchNorm()                              (16, 8, 8)          32     128
        relu1           Relu()                                   (16, 8, 8)
        maxpool1        MaxPool(2)                               (16, 4, 4)
        conv2           Conv(32, 3, padding='same', bias=False)  (32, 4, 4)       4,608  18,432
        batchnorm2      BatchNorm()                              (32, 4, 4)          64     256
        relu2           Relu()                                   (32, 4, 4)
        globalavgpool1  GlobalAvgPool()                          (32,)
        affine1         Affine(10)                               (10,)              330   1,320
        total: 5,178 parameters, 20,712 bytes
        """
        return summary(self)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return summary_html(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], backend: str | Backend | None = None) -> "Sequential":
        """Build a model from the data of `config`, with new parameters."""
        return Sequential(backend=backend, rng=0, **arguments_of(config))


class _Numbering:
    """The keys of parameters, which are numbered by weight layer."""

    def __init__(self) -> None:
        self.weight_layers = 0
        self.uses: dict[str, int] = {}  # occurrences of each numbered name

    def keys_of(self, names: Sequence[str]) -> dict[str, str]:
        """Return the key of each name of the next layer; names such as ``body.0.W`` are those of layers inside it."""
        keys: dict[str, str] = {}
        for inner in dict.fromkeys(name.rpartition(".")[0] for name in names):
            own = {name: name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == inner}
            self.weight_layers += "W" in own.values()
            numbered = [f"{name}{self.weight_layers}" for name in own.values()]
            use = 1 + max(self.uses.get(name, 0) for name in numbered)
            self.uses.update(dict.fromkeys(numbered, use))
            number = f"{self.weight_layers}_{use}" if use > 1 else f"{self.weight_layers}"
            keys |= {name: base + number for name, base in own.items()}
        return keys


def _with_sources(layers: Any) -> Iterator[tuple[Any, tuple[Sequential, int] | None]]:
    """Yield the layers of a list, of lists inside it, and of models inside it with the model and the position there."""
    for layer in layers:
        if isinstance(layer, list | tuple):
            yield from _with_sources(layer)
        elif isinstance(layer, Sequential):
            yield from ((inner, (layer, position)) for position, inner in enumerate(layer.layers))
        else:
            yield layer, None


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Sequential` for the data of `config`."""
    return {**config, "layers": layers_of("layers", config["layers"])}


def _warn_of_channels_last(input_shape: Shape, layers: Sequence[Layer]) -> None:
    """Warn if the sizes are those of square images whose channels are last, and layers use windows of pixels."""
    if len(input_shape) != 3 or not any(hasattr(layer, "window") for layer in layers):
        return
    C, H, W = input_shape
    if C == H > 4 and W in (1, 3):
        warnings.warn(
            f"input_shape is {input_shape}, which means {C} channels of {H} by {W} pixels: if the channels are last, "
            f"pass {(W, C, H)}, and images as xp.moveaxis(X, -1, 1)",
            stacklevel=3,
        )


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
