"""The losses of models, by name, and their options."""

from collections.abc import Callable, Mapping
from typing import Any

from xpconv._validation import check_choice, check_fraction, check_nonnegative
from xpconv.backend import Array, Backend, array_namespace, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.layers import softmax_loss, svm_loss
from xpconv.nn._parts import Join, Part, Pass, add_arrays

LOSSES: dict[str, Callable[..., tuple[Array, Array]]] = {"softmax": softmax_loss, "svm": svm_loss}
_OPTIONS = {"softmax": ("label_smoothing", "class_weights", "reduction"), "svm": ()}


def check_loss_options(loss: str, options: Mapping[str, Any] | None, num_classes: int) -> dict[str, Any]:
    """Return the options of a loss as data for JSON: class weights become a list of float."""
    options = options or {}
    known = _OPTIONS[loss]
    if not isinstance(options, Mapping) or not set(options) <= set(known):
        expected = (
            f"options of the {loss} loss: {', '.join(known)}" if known else f"none: the {loss} loss has no options"
        )
        raise ArgumentError(f"loss_options is {options!r}; expected {expected}")
    checked = {name: value for name, value in options.items() if value is not None}
    if "label_smoothing" in checked:
        checked["label_smoothing"] = check_fraction("label_smoothing", checked["label_smoothing"])
    if "reduction" in checked:
        check_choice("reduction", checked["reduction"], ("mean", "sum"))
    if "class_weights" in checked:
        checked["class_weights"] = _as_numbers(checked["class_weights"], num_classes)
    return checked


def _as_numbers(weights: Any, num_classes: int) -> list[float]:
    if hasattr(weights, "shape"):
        weights = to_host(weights).tolist()
    if not isinstance(weights, list | tuple):
        raise ArgumentTypeError(f"class_weights is {weights!r}; expected a sequence of {num_classes} numbers")
    numbers = [check_nonnegative("class_weights", weight) for weight in weights]
    if len(numbers) != num_classes:
        raise ArgumentError(f"class_weights has {len(numbers)} weights; expected {num_classes}, one for each class")
    if not any(numbers):
        raise ArgumentError("class_weights has only zeros; expected a weight above 0 for some class")
    return numbers


def loss_arguments(options: Mapping[str, Any], backend: Backend, dtype: str) -> dict[str, Any]:
    """Return the keyword arguments of the loss function: checked options, with the class weights on the device."""
    return {
        name: backend.asarray(value, dtype) if name == "class_weights" else value for name, value in options.items()
    }


def loss_and_gradient(loss: str, scores: Array, y: Array, arguments: Mapping[str, Any], part: Part) -> Pass:
    """Return a model's loss and the gradient of its scores; probabilities in `y` get the dtype of the scores.

    For a part of a minibatch, return the part's terms of the loss and the gradient of the whole minibatch.
    """
    xp = array_namespace(scores=scores, y=y)
    is_probabilities = len(y.shape) == 2 and xp.isdtype(y.dtype, "real floating")
    if is_probabilities:
        y = xp.astype(y, scores.dtype, copy=False)
    if part.count == 1 or arguments.get("reduction") == "sum":
        return LOSSES[loss](scores, y, **arguments)
    weights = arguments.get("class_weights")
    if weights is None or is_probabilities:  # a mean over samples
        value, dout = LOSSES[loss](scores, y, **arguments)
        return value / part.count, dout / part.count
    value, dout = LOSSES[loss](scores, y, **{**arguments, "reduction": "sum"})
    total = yield Join(xp.sum(xp.take(weights, xp.astype(y, xp.int64), axis=0)), add_arrays)
    total = xp.where(total == 0, xp.ones_like(total), total)
    return value / total, dout / total
