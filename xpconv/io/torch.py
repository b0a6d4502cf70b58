"""Parameters to and from PyTorch: what its ``state_dict`` holds, as NumPy arrays; PyTorch itself is not needed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpconv import nn
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn import Sequential

__all__ = ["load_torch_state_dict", "module_names", "to_torch_state_dict"]

TORCH_NAMES = {
    "W": "weight",
    "b": "bias",
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
COUNTER = "num_batches_tracked"


def to_torch_state_dict(model: Sequential, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return a model's parameters and running statistics as PyTorch names them and lays them out.

    Without `names` they fit a ``torch.nn.Sequential`` of the same layers in the same order, such as ``0.weight``,
    ``0.bias``, ``1.running_mean``. Two kinds of layer count as two modules: an affine layer on images is ``Flatten(),
    Linear(D, M)``, a global average pool ``AdaptiveAvgPool2d(1), Flatten()``.

    Affine weights are transposed, (M, D) for our (D, M); everything else has the same layout. PyTorch's momentum is
    ``1 - momentum`` of ours. In training it moves the running variance towards the batch's unbiased variance, ``n / (n
    - 1)`` of ours; in evaluation both use what is stored, so scores agree. ``num_batches_tracked``, which PyTorch reads
    only without a momentum, is 0. Preprocessing is not part of it: apply it to PyTorch's input.

    Parameters
    ----------
    model : Sequential
        On any backend.
    names : sequence of str, optional
        PyTorch's name of each layer that has parameters, in order, such as ``["conv1", "bn1", "classifier.0"]``.

    Returns
    -------
    dict of str to numpy.ndarray
        Copies. ``net.load_state_dict({key: torch.as_tensor(a) for key, a in entries.items()})`` takes them.

    Raises
    ------
    ArgumentError
        If `names` has not one distinct name for each layer with parameters.

    Examples
    --------
    >>> from xpconv.nn import ThreeLayerConvNet
    >>> entries = to_torch_state_dict(ThreeLayerConvNet(rng=0))
    >>> {key: a.shape for key, a in entries.items() if "weight" in key}
    {'0.weight': (32, 3, 7, 7), '4.weight': (100, 8192), '6.weight': (10, 100)}
    """
    result = {}
    for entry in _entries(model, names):
        values = np.asarray(0, np.int64) if entry.key is None else to_host(entry.store[entry.key])
        result[entry.name] = np.array(values.T if entry.transposed else values, order="C")
    return result


def load_torch_state_dict(model: Sequential, state_dict: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
    """Take the parameters and running statistics of a model from a PyTorch ``state_dict``.

    Names and layouts are those of `to_torch_state_dict`. The model changes only if everything fits; values are copied
    and cast to its dtype. ``num_batches_tracked`` may be there or not.

    Parameters
    ----------
    model : Sequential
        Built beforehand with the same layers.
    state_dict : mapping of str to array
        Tensors on any device, NumPy arrays, or whatever NumPy reads as an array.
    names : sequence of str, optional
        As for `to_torch_state_dict`; `module_names` tells them if modules were made in the order in which they run.

    Raises
    ------
    ArgumentError
        If entries are missing, not expected or of another shape; the text names each of them.
    ArgumentTypeError
        If `state_dict` is no mapping, or an entry no array of real numbers.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0)
    >>> entries = {"fc1.weight": np.ones((5, 4)), "fc1.bias": np.zeros(5),
    ...            "fc2.weight": np.ones((3, 5)), "fc2.bias": np.zeros(3)}
    >>> load_torch_state_dict(net, entries, names=["fc1", "fc2"])
    >>> net.loss(np.ones((1, 4))).tolist()
    [[20.0, 20.0, 20.0]]
    """
    if not isinstance(state_dict, Mapping):
        raise ArgumentTypeError(
            f"state_dict is a {type(state_dict).__name__}; expected a mapping of names to arrays: "
            "pass what the method state_dict() of a PyTorch module returns"
        )
    entries = {entry.name: entry for entry in _entries(model, names)}
    found = {name: _host(name, value) for name, value in state_dict.items()}
    problems = [f"{name} is missing" for name, entry in entries.items() if name not in found and entry.key is not None]
    problems += [
        f"{name} of shape {values.shape} is not expected" for name, values in found.items() if name not in entries
    ]
    problems += [
        f"{name} has shape {found[name].shape}; expected {entry.shape}"
        for name, entry in entries.items()
        if name in found and found[name].shape != entry.shape
    ]
    if problems:
        raise ArgumentError(
            f"state_dict does not fit {model.name}: {'; '.join(problems)}. Build the model with the "
            "layers of the PyTorch module, and pass names= if that is no plain torch.nn.Sequential"
        )
    for name, values in found.items():
        entry = entries[name]
        if entry.key is not None:
            values = np.array(values.T if entry.transposed else values, order="C")
            entry.store[entry.key] = model.backend.asarray(values, model.dtype)


def module_names(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the modules of a ``state_dict``, in the order in which they were made.

    Examples
    --------
    >>> module_names({"conv1.weight": 0, "conv1.bias": 0, "head.fc.weight": 0})
    ['conv1', 'head.fc']
    """
    return list(dict.fromkeys(key.rpartition(".")[0] for key in state_dict))


class _Entry(NamedTuple):
    """An entry of a state_dict and the array of the model that it belongs to: none for PyTorch's counter."""

    name: str
    shape: tuple[int, ...]
    store: dict[str, Any]
    key: str | None
    transposed: bool


def _entries(model: Sequential, names: Sequence[str] | None) -> Iterator[_Entry]:
    weighted = [(layer, keys) for layer, keys in zip(model.layers, model._keys, strict=True) if keys]
    names = _positions(model) if names is None else list(names)
    if len(set(names)) != len(weighted) or len(names) != len(weighted):
        kinds = ", ".join(type(layer).__name__ for layer, _ in weighted)
        raise ArgumentError(
            f"names is {names!r}; expected {len(weighted)} different names, one for each layer with parameters: {kinds}"
        )
    for name, (layer, keys) in zip(names, weighted, strict=True):
        prefix = f"{name}." if name else ""
        for own, key in keys.items():
            if own not in TORCH_NAMES:
                raise ArgumentError(
                    f"{key} of {layer!r} has no counterpart in PyTorch; its parameters may be called "
                    f"{', '.join(TORCH_NAMES)}"
                )
            store = model.params if key in model.params else model.state
            shape, transposed = tuple(store[key].shape), isinstance(layer, nn.Affine) and own == "W"
            yield _Entry(prefix + TORCH_NAMES[own], shape[::-1] if transposed else shape, store, key, transposed)
        if isinstance(layer, nn.BatchNorm):
            yield _Entry(prefix + COUNTER, (), {}, None, False)


def _positions(model: Sequential) -> list[str]:
    """Return the places that the layers with parameters have in a torch.nn.Sequential."""
    names, place, shape = [], 0, model.input_shape
    for layer, keys in zip(model.layers, model._keys, strict=True):
        place += isinstance(layer, nn.Affine) and len(shape) > 1  # Flatten comes first
        if keys:
            names.append(str(place))
        place += 2 if isinstance(layer, nn.GlobalAvgPool) else 1  # Flatten comes after
        shape = layer.output_shape(shape)
    return names


def _host(name: str, value: Any) -> np.ndarray:
    try:
        array = to_host(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(f"{name} cannot be read as an array ({error}): pass it as float32") from error
    if array.dtype.kind not in "iuf":
        raise ArgumentTypeError(f"{name} has dtype {array.dtype}; expected real numbers: pass it as float32")
    return array
