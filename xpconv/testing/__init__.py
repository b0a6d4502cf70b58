"""Checks of gradients, of whole layers and of equivalence between backends, for your layers as for xpconv's own."""

from xpconv.testing._equivalence import EquivalenceReport, EquivalenceRow, check_equivalence
from xpconv.testing._gradients import (
    check_gradient,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    rel_error,
)
from xpconv.testing._layer_check import LayerFinding, LayerReport, check_layer

__all__ = [
    "EquivalenceReport",
    "EquivalenceRow",
    "LayerFinding",
    "LayerReport",
    "check_equivalence",
    "check_gradient",
    "check_layer",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "rel_error",
]
