"""The types of layers that model files can name, and layers as data for JSON."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.nn import layers as layer_objects
from xpconv.nn._chain import nodes
from xpconv.nn.layers import Layer
from xpconv.nn.residual import Residual

__all__ = ["register_layer"]

_LAYER_TYPES: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (*(getattr(layer_objects, name) for name in layer_objects.__all__), Residual)
    if issubclass(kind, Layer)
}
_LayerType = TypeVar("_LayerType", bound=type[Layer])


def register_layer(kind: _LayerType) -> _LayerType:
    """Let models with layers of your own type be saved, and loaded where the same type is registered; a decorator.

    Parameters
    ----------
    kind : type
        A subclass of `Layer` and a frozen dataclass, whose options are numbers, strings, lists of these, or layers.

    Returns
    -------
    type
        `kind` itself.

    Raises
    ------
    ArgumentTypeError
        If `kind` is no such class.
    ArgumentError
        If another module has registered a type of this name.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @register_layer
    ... @dataclass(frozen=True)
    ... class Double(Layer):
    ...     factor: float = 2.0
    ...
    ...     def forward(self, x, p, *, train, seed):
    ...         return self.factor * x, None
    ...
    ...     def backward(self, dout, cache, *, need_dx):
    ...         return self.factor * dout, {}
    """
    if not (isinstance(kind, type) and issubclass(kind, Layer) and is_dataclass(kind)):
        raise ArgumentTypeError(f"kind is {kind!r}; expected a subclass of Layer that is a frozen dataclass")
    known = _LAYER_TYPES.setdefault(kind.__name__, kind)
    if known.__module__ != kind.__module__:
        raise ArgumentError(
            f"{kind.__name__} of {kind.__module__} has the name of a layer of {known.__module__}: give it another name"
        )
    _LAYER_TYPES[kind.__name__] = kind  # A class that is defined again, as in a notebook, replaces the first.
    return kind


def check_registered(layers: Sequence[Layer]) -> None:
    """Raise an error if a model file could not name the type of a layer."""
    for path, layer in nodes(layers):
        kind = type(layer)
        own = kind.__module__.startswith("xpconv.")  # The course's layers are saved as those that they derive from.
        if _LAYER_TYPES.get(kind.__name__) is not kind and not own:
            top, _, inner = path.partition(".")
            place = f"layers[{top}]" + (f" (at {inner} inside it)" if inner else "")
            raise ArgumentError(
                f"{place} is {layer!r}, whose type is not registered; expected a type of xpconv.nn or one decorated "
                "with @xpconv.nn.register_layer"
            )


def layer_config(layer: Layer) -> dict[str, Any]:
    """Return a layer's type and options as data for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, Layer):
            return layer_config(value)
        return [plain(part) for part in value] if isinstance(value, tuple) else value

    return {
        "type": type(layer).__name__,
        **{option.name: plain(getattr(layer, option.name)) for option in fields(layer) if option.name != "_"},
    }


def layers_of(place: str, entries: Sequence[Any]) -> list[Layer]:
    """Return the layers for the data that `_layer_config` returned."""
    layers = []
    for position, entry in enumerate(entries):
        options = dict(entry)
        kind = _LAYER_TYPES.get(options.pop("type"))
        if kind is None or not set(options) <= {field.name for field in fields(kind)}:
            raise ArgumentError(
                f"{place}[{position}] is {entry!r}; expected a type among {', '.join(_LAYER_TYPES)} with its own "
                "options: register a type of your own with xpconv.nn.register_layer"
            )
        for name, value in options.items():
            if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
                options[name] = layers_of(f"{place}[{position}].{name}", value)
        layers.append(kind(**options))
    return layers
