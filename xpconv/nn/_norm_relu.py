"""Batch norms that are followed by a ReLU: training passes compute both together.

This takes fewer passes over the arrays and, on a GPU, stores no mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from xpconv.backend import Array
from xpconv.layers import ReluCache, relu_backward, relu_forward
from xpconv.layers.norm import BatchNormReluCache, batchnorm_relu_backward, batchnorm_relu_forward
from xpconv.nn._parts import Part, Pass
from xpconv.nn.layers import Arrays, BatchNorm, Layer, Relu

__all__ = ["BatchNormRelu", "fused_layers"]


class _Caches(NamedTuple):
    """The caches of both layers, which were computed one after the other."""

    norm: Any
    relu: ReluCache


@dataclass(frozen=True)
class BatchNormRelu(Layer):
    """A batch norm and the ReLU after it; the results have the bits of both layers, one after the other.

    They are computed together in training, unless the parts of a minibatch share their statistics.
    """

    norm: BatchNorm
    relu: Relu

    def forward_pass(self, x: Array, p: Arrays, *, train: bool, seed: int, part: Part) -> Pass:
        if train and self.norm.trainable and not (part.norm_sync and part.count > 1):
            return batchnorm_relu_forward(x, p["gamma"], p["beta"], **self.norm._options(p))
        out, norm = yield from self.norm.forward_pass(x, p, train=train, seed=seed, part=part)
        out, relu = relu_forward(out)
        return out, _Caches(norm, relu)

    def backward_pass(self, dout: Array, cache: Any, *, need_dx: bool, part: Part) -> Pass:
        if isinstance(cache, BatchNormReluCache):
            dx, dgamma, dbeta = batchnorm_relu_backward(dout, cache)
            return dx, {"gamma": dgamma, "beta": dbeta}
        dout = relu_backward(dout, cache.relu)
        return (yield from self.norm.backward_pass(dout, cache.norm, need_dx=need_dx, part=part))

    def new_state(self, cache: Any) -> Arrays:
        return self.norm.new_state(cache.norm)


def fused_layers(layers: Sequence[Layer]) -> list[tuple[int, Layer]]:
    """Return each layer and its position; a batch norm and the ReLU after it are one layer.

    Examples
    --------
    >>> fused_layers([BatchNorm(), Relu(), Relu()])
    [(0, BatchNormRelu(BatchNorm(), Relu())), (2, Relu())]
    """
    steps: list[tuple[int, Layer]] = []
    for position, layer in enumerate(layers):
        before = layers[position - 1] if position else None
        if type(before) is BatchNorm and type(layer) is Relu:  # not subclasses, which may compute something else
            steps[-1] = position - 1, BatchNormRelu(before, layer, trainable=before.trainable, fixed=before.fixed)
        else:
            steps.append((position, layer))
    return steps
