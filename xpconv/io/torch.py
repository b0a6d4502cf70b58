"""Exchange parameters with PyTorch as a ``state_dict`` of NumPy arrays; PyTorch itself is not needed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpconv import nn
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn import Sequential
from xpconv.nn._chain import nodes
from xpconv.nn.layers import Shape

__all__ = ["load_torch_state_dict", "module_names", "to_torch_state_dict"]

TORCH_NAMES = {
    "W": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches": "num_batches_tracked",
}
BATCH_COUNTER = "num_batches_tracked"
MANY_BATCHES = 1e6  # the start of running averages has no weight any more


def to_torch_state_dict(model: Sequential, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return a model's parameters and running statistics with PyTorch's names and memory layouts.

    Without `names` the result fits a ``torch.nn.Sequential`` of the same layers in the same order; its names are
    ``0.weight``, ``0.bias``, ``1.running_mean`` and so on. Two kinds of layer correspond to two modules each: an affine
    layer on images to ``Flatten(), Linear(D, M)``, and a global pool to ``AdaptiveAvgPool2d(1), Flatten()``. A
    `Residual` corresponds to a module whose attributes ``body`` and ``shortcut`` are ``torch.nn.Sequential``: its names
    are ``3.body.0.weight`` and so on.

    Affine weights (D, M) are transposed to (M, D); all other layouts are the same. PyTorch's momentum is 1 minus the
    momentum of `BatchNorm`. In training, PyTorch moves the running variance towards the unbiased variance of the batch,
    ``n / (n - 1)`` times the variance that `BatchNorm` uses; in evaluation both use the stored values, so scores agree.
    PyTorch does not correct its averages for their start: `BatchNorm` does so by its batch count, which is PyTorch's
    ``num_batches_tracked``; without ``bias_correction`` that is 0. Preprocessing is not included: apply it to
    PyTorch's input.

    Parameters
    ----------
    model : Sequential
        On any backend.
    names : sequence of str, optional
        PyTorch's name of each layer with parameters, in order, such as ``["conv1", "bn1", "classifier.0"]``.

    Returns
    -------
    dict of str to numpy.ndarray
        Copies, for ``net.load_state_dict({key: torch.as_tensor(a) for key, a in state_dict.items()})``.

    Raises
    ------
    ArgumentError
        If `names` does not have one distinct name for each layer with parameters.

    Examples
    --------
    >>> from xpconv.nn import ThreeLayerConvNet
    >>> state_dict = to_torch_state_dict(ThreeLayerConvNet(rng=0))
    >>> {key: a.shape for key, a in state_dict.items() if "weight" in key}
    {'0.weight': (32, 3, 7, 7), '4.weight': (100, 8192), '6.weight': (10, 100)}
    """
    state_dict = {}
    for entry in _state_dict_entries(model, names):
        values = np.asarray(0) if entry.key is None else to_host(entry.store[entry.key])
        dtype = np.int64 if entry.counts else values.dtype
        state_dict[entry.name] = np.array(values.T if entry.transposed else values, dtype, order="C").reshape(
            entry.shape
        )
    return state_dict


def load_torch_state_dict(model: Sequential, state_dict: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Set a model's parameters and running statistics from a PyTorch ``state_dict``.

    Names and layouts are those of `to_torch_state_dict`. Values are copied and converted to the model's dtype. If any
    entry does not fit, the model is unchanged. ``num_batches_tracked`` is optional; running averages without it count
    as those of many batches.

    Parameters
    ----------
    model : Sequential
        A model with the same layers.
    state_dict : mapping of str to array
        Tensors on any device, NumPy arrays, or anything else that NumPy converts to an array.
    names : sequence of str, optional
        As for `to_torch_state_dict`; `module_names` finds them if modules were created in the order in which they run.

    Raises
    ------
    ArgumentError
        If entries are missing, unexpected or of the wrong shape; the message names each of them.
    ArgumentTypeError
        If `state_dict` is not a mapping, or an entry is not an array of real numbers.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0)
    >>> state_dict = {
    ...     "fc1.weight": np.ones((5, 4)),
    ...     "fc1.bias": np.zeros(5),
    ...     "fc2.weight": np.ones((3, 5)),
    ...     "fc2.bias": np.zeros(3),
    ... }
    >>> load_torch_state_dict(net, state_dict, names=["fc1", "fc2"])
    >>> net.loss(np.ones((1, 4))).tolist()
    [[20.0, 20.0, 20.0]]
    """
    if not isinstance(state_dict, Mapping):
        raise ArgumentTypeError(
            f"state_dict is a {type(state_dict).__name__}; expected a mapping of names to arrays: "
            "pass the result of the PyTorch module's state_dict()"
        )
    entries = {entry.name: entry for entry in _state_dict_entries(model, names)}
    arrays = {name: _as_host_array(name, value) for name, value in state_dict.items()}
    _check_entries(model, entries, arrays)
    for name, entry in entries.items():
        if entry.key is not None:
            values = arrays.get(name, np.asarray(MANY_BATCHES))
            values = np.array(values.T if entry.transposed else values, order="C").reshape(entry.store[entry.key].shape)
            entry.store[entry.key] = model.backend.asarray(values, model.dtype)


def module_names(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the names of the modules in a ``state_dict``, in the order in which they were created.

    Examples
    --------
    >>> module_names({"conv1.weight": 0, "conv1.bias": 0, "head.fc.weight": 0})
    ['conv1', 'head.fc']
    """
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state_dict))


class _StateDictEntry(NamedTuple):
    """An entry of a ``state_dict`` and the model's ``store[key]`` for it; `key` is None if the model has none."""

    name: str
    shape: tuple[int, ...]
    store: dict[str, Any]
    key: str | None
    transposed: bool

    @property
    def counts(self) -> bool:
        """Whether the entry is PyTorch's counter of batches."""
        return self.name.endswith(BATCH_COUNTER)


def _state_dict_entries(model: Sequential, names: Sequence[str] | None) -> Iterator[_StateDictEntry]:
    with_parameters = [
        (layer, keys) for path, layer in nodes(model.layers) if not layer.branches and (keys := _keys_at(model, path))
    ]
    names = _module_names(model.layers, model.input_shape) if names is None else list(names)
    if len(set(names)) != len(with_parameters) or len(names) != len(with_parameters):
        types = ", ".join(type(layer).__name__ for layer, _ in with_parameters)
        raise ArgumentError(
            f"names is {names!r}; expected {len(with_parameters)} different names, one for each layer with "
            f"parameters: {types}"
        )
    for name, (layer, keys) in zip(names, with_parameters, strict=True):
        prefix = f"{name}." if name else ""
        for layer_name, key in keys.items():
            if layer_name not in TORCH_NAMES:
                raise ArgumentError(
                    f"{key} of {layer!r} has no counterpart in PyTorch; expected one of {', '.join(TORCH_NAMES)}"
                )
            store = model.params if key in model.params else model.state
            shape, transposed = tuple(store[key].shape), isinstance(layer, nn.Affine) and layer_name == "W"
            torch_shape = shape[::-1] if transposed else () if layer_name == "num_batches" else shape
            yield _StateDictEntry(prefix + TORCH_NAMES[layer_name], torch_shape, store, key, transposed)
        if isinstance(layer, nn.BatchNorm) and not layer.bias_correction:
            yield _StateDictEntry(prefix + BATCH_COUNTER, (), {}, None, False)


def _keys_at(model: Sequential, path: str) -> dict[str, str]:
    """Return the keys of the parameters and the state of the layer at a path such as ``3.body.0``, by their names."""
    top, _, inner = path.partition(".")
    keys = model.layer_keys[int(top)].items()
    return {name.rpartition(".")[2]: key for name, key in keys if name.rpartition(".")[0] == inner}


def _module_names(layers: Sequence[nn.Layer], shape: Shape, path: str = "") -> list[str]:
    """Return the name in PyTorch of each layer with parameters, where lists of layers are torch.nn.Sequential."""
    names, module = [], 0
    for layer in layers:
        module += isinstance(layer, nn.Affine) and len(shape) > 1  # PyTorch needs a Flatten before
        if layer.branches:
            for branch, inner in layer.branches.items():
                names += _module_names(inner, shape, f"{path}{module}.{branch}.")
        elif layer.parameters(shape) or layer.state(shape):
            names.append(f"{path}{module}")
        module += (
            2 if isinstance(layer, nn.GlobalAvgPool | nn.GlobalMaxPool) else 1
        )  # PyTorch needs a Flatten after the pool
        shape = layer.output_shape(shape)
    return names


def _as_host_array(name: str, value: Any) -> np.ndarray:
    try:
        array = to_host(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(f"{name} cannot be converted to an array ({error}): pass it as float32") from error
    if array.dtype.kind not in "iuf":
        raise ArgumentTypeError(f"{name} has dtype {array.dtype}; expected real numbers: pass it as float32")
    return array


def _check_entries(model: Sequential, entries: Mapping[str, _StateDictEntry], arrays: Mapping[str, np.ndarray]) -> None:
    """Check the names and shapes of the arrays; the batch counter may be missing."""
    problems = [f"{name} is missing" for name, entry in entries.items() if name not in arrays and not entry.counts]
    problems += [f"{name} of shape {a.shape} is not expected" for name, a in arrays.items() if name not in entries]
    problems += [
        f"{name} has shape {arrays[name].shape}; expected {entry.shape}"
        for name, entry in entries.items()
        if name in arrays and arrays[name].shape != entry.shape
    ]
    if problems:
        raise ArgumentError(
            f"state_dict does not fit {model.name}: {'; '.join(problems)}. Build the model with the layers of the "
            "PyTorch module, and pass names= if the module is not a plain torch.nn.Sequential"
        )
