"""Lists of layers: flatten them, name them, freeze them, and run them forward and backward."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn._norm_relu import fused_layers
from xpconv.nn._parts import Part, Pass
from xpconv.nn.layers import Arrays, Layer

__all__ = [
    "NamedLayer",
    "backward_chain",
    "backward_layer",
    "check_fixed",
    "flatten",
    "forward_chain",
    "forward_layer",
    "is_trained",
    "map_layers",
    "nodes",
    "outputs_chain",
    "trained_parameters",
]


class NamedLayer:
    """A block in which an error gets a note that names the layer; a class, since every pass enters it."""

    def __init__(self, place: str, position: int, layer: Layer) -> None:
        self.place, self.position, self.layer = place, position, layer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            error.add_note(f"in {self.place}[{self.position}], {self.layer!r}")


def flatten(place: str, layers: Sequence[Any]) -> tuple[Layer, ...]:
    """Return the layers of a list, in which a list counts as its layers."""
    if not isinstance(layers, list | tuple):
        raise ArgumentTypeError(f"{place} is {layers!r}; expected a list of layers")
    found: list[Layer] = []
    for position, layer in enumerate(layers):
        if isinstance(layer, list | tuple):
            found += flatten(f"{place}[{position}]", layer)
        elif isinstance(layer, Layer):
            found.append(layer)
        else:
            raise ArgumentTypeError(f"{place}[{position}] is {layer!r}; expected a Layer such as Relu()")
    return tuple(found)


def nodes(layers: Sequence[Layer], path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the path, such as ``3.body.0``, of each layer and those in its branches, which follow it."""
    for position, layer in enumerate(layers):
        here = f"{path}{position}"
        yield here, layer
        for branch, inner in layer.branches.items():
            yield from nodes(inner, f"{here}.{branch}.")


def map_layers(function: Callable[[str, Layer], Layer], layers: Sequence[Layer], path: str = "") -> tuple[Layer, ...]:
    """Return the layers with each layer without branches replaced by ``function(path, layer)``."""
    mapped = []
    for position, layer in enumerate(layers):
        here = f"{path}{position}"
        if branches := layer.branches:
            changed: dict[str, Any] = {
                name: map_layers(function, inner, f"{here}.{name}.") for name, inner in branches.items()
            }
            mapped.append(layer if changed == branches else replace(layer, **changed))
        else:
            mapped.append(function(here, layer))
    return tuple(mapped)


def is_trained(layer: Layer, name: str) -> bool:
    """Return whether training changes the parameter that a layer has under a name such as ``W`` or ``body.0.W``."""
    if "." not in name:
        return layer.is_trained(name)
    branch, position, inner = name.split(".", 2)
    return is_trained(layer.branches[branch][int(position)], inner)


def trained_parameters(model: Any) -> set[str]:
    """Return the names of the parameters of a net that training changes."""
    pairs = zip(model.layers, model.layer_keys, strict=True)
    return {key for layer, keys in pairs for name, key in keys.items() if is_trained(layer, name)}


def check_fixed(layer: Layer, names: Iterable[str]) -> None:
    """Raise an error if a layer, or one in its branches, says that training keeps a parameter that it does not have.

    `names` are those of the parameters, such as ``W`` or ``body.0.W``.
    """
    own = [name for name in names if "." not in name]
    if not isinstance(layer.fixed, str):
        raise ArgumentTypeError(f"fixed is {layer.fixed!r}; expected text, such as W or gamma|beta")
    if unknown := [name for name in layer.fixed.split("|") if name and name not in own]:
        raise ArgumentError(f"fixed has {unknown[0]!r}; expected names of parameters among {', '.join(own) or 'none'}")
    for branch, layers in layer.branches.items():
        for position, inner in enumerate(layers):
            check_fixed(inner, _inner_names(branch, position, names))


def forward_layer(layer: Layer, x: Array, p: Arrays, *, train: bool, seed: int, part: Part) -> Pass:
    """Return a layer's output, in the input's dtype, and its cache."""
    out, cache = yield from layer.forward_pass(x, p, train=train, seed=seed, part=part)
    return _like(x, out), cache


def backward_layer(layer: Layer, dout: Array, cache: Any, *, need_dx: bool, part: Part) -> Pass:
    """Return the gradient of a layer's input, in the dtype of `dout`, and those of its parameters."""
    dx, grads = yield from layer.backward_pass(dout, cache, need_dx=need_dx, part=part)
    return None if dx is None else _like(dout, dx), grads


def _like(activations: Array, a: Array) -> Array:
    """Return an array in float16 if the activations are: arithmetic with parameters may have made it float32."""
    if activations.dtype == a.dtype or "float16" not in str(activations.dtype):
        return a
    return array_api_compat.array_namespace(a).astype(a, activations.dtype)


def forward_chain(
    branch: str, layers: Sequence[Layer], x: Array, p: Arrays, *, train: bool, seeds: Iterator[int], part: Part
) -> Pass:
    """Run the layers of a branch; return the output and, in training, the caches of `fused_layers`."""
    caches = []
    for position, layer in fused_layers(layers):
        with NamedLayer(branch, position, layers[position]):
            seed = next(seeds) if train and layer.stochastic else 0
            arrays = _arrays_of(branch, position, p)
            x, cache = yield from forward_layer(layer, x, arrays, train=train, seed=seed, part=part)
        if train:
            caches.append(cache)
    return x, caches


def backward_chain(
    branch: str, layers: Sequence[Layer], dout: Any, caches: list[Any], *, need_dx: bool, part: Part
) -> Pass:
    """Return the gradients of a branch's input and parameters; `caches` loses each cache once it is used."""
    grads: Arrays = {}
    for position, layer in reversed(fused_layers(layers)):
        with NamedLayer(branch, position, layers[position]):
            needed = need_dx or position > 0
            dout, inner = yield from backward_layer(layer, dout, caches.pop(), need_dx=needed, part=part)
        grads |= {f"{branch}.{position}.{name}": grad for name, grad in inner.items() if is_trained(layer, name)}
    return dout, grads


def _arrays_of(branch: str, position: int, p: Arrays) -> Arrays:
    """Return the arrays of one layer of a branch, by the names that this layer gives them."""
    return {name: p[f"{branch}.{position}.{name}"] for name in _inner_names(branch, position, p)}


def _inner_names(branch: str, position: int, names: Iterable[str]) -> list[str]:
    """Return the names within one layer of a branch: ``W`` for ``body.0.W``."""
    prefix = f"{branch}.{position}."
    return [name[len(prefix) :] for name in names if name.startswith(prefix)]


def outputs_chain(branch: str, layers: Sequence[Layer], x: Array, p: Arrays) -> Iterator[tuple[str, Layer, Array]]:
    """Yield the path, the layer and its output for each layer of a branch, as `Layer.outputs` does."""
    for position, layer in enumerate(layers):
        for path, inner, out in layer.outputs(x, _arrays_of(branch, position, p)):
            yield ".".join(filter(None, [branch, f"{position}", path])), inner, out
        x = out
