"""Residual blocks: layers that add their input, or a transformed copy of it, to what their body returns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.nn._chain import backward_chain, flatten, forward_chain, map_layers, outputs_chain
from xpconv.nn._norm_relu import fused_layers
from xpconv.nn._parts import WHOLE, Part, Pass, run_pass
from xpconv.nn.layers import Arrays, Layer, Shape
from xpconv.ops.elementwise import add
from xpconv.random import split_seed

__all__ = ["Residual"]

BRANCHES = ("body", "shortcut")


class _Caches(NamedTuple):
    """The caches of the layers in each branch, which the backward pass empties."""

    body: list[Any]
    shortcut: list[Any]


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    """The sum of two branches: ``body(x) + shortcut(x)``.

    A parameter's name has the branch and the position of its layer: ``body.0.W``. A model numbers the parameters of the
    body first.

    Parameters
    ----------
    body : sequence of Layer
        A list inside it counts as its layers.
    shortcut : sequence of Layer
        With none, `x` itself is added to what the body returns.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", 2016.

    Examples
    --------
    >>> from xpconv.nn import Conv, Relu
    >>> block = Residual(
    ...     [Conv(32, stride=2, padding=1), Relu(), Conv(32, padding=1)],
    ...     shortcut=[Conv(32, 1, stride=2)],
    ... )
    >>> block.output_shape((16, 8, 8))
    (32, 4, 4)
    >>> list(block.parameters((16, 8, 8)))
    ['body.0.W', 'body.0.b', 'body.2.W', 'body.2.b', 'shortcut.0.W', 'shortcut.0.b']
    """

    body: Sequence[Layer]
    shortcut: Sequence[Layer] = ()

    def __post_init__(self) -> None:
        for branch in BRANCHES:
            layers = flatten(branch, getattr(self, branch))
            if not self.trainable:
                layers = map_layers(lambda path, layer: replace(layer, trainable=False), layers)
            object.__setattr__(self, branch, layers)
        if not self.body:
            raise ArgumentError("body is empty; expected at least one layer")
        object.__setattr__(self, "stochastic", any(layer.stochastic for layer in (*self.body, *self.shortcut)))

    def output_shape(self, shape: Shape) -> Shape:
        body, shortcut = (_output_shape(getattr(self, branch), shape) for branch in BRANCHES)
        if body != shortcut:
            raise ArgumentError(
                f"the body returns samples of shape {body}, but the shortcut returns {shortcut}; expected equal "
                "shapes: pass a shortcut such as [Conv(filters, 1, stride=2)]"
            )
        return body

    def forward(self, x: Array, p: Arrays, *, train: bool, seed: int) -> tuple[Array, Any]:
        result: tuple[Array, Any] = run_pass(self.forward_pass(x, p, train=train, seed=seed, part=WHOLE))
        return result

    def forward_pass(self, x: Array, p: Arrays, *, train: bool, seed: int, part: Part) -> Pass:
        seeds = iter(split_seed(seed, len(self.body) + len(self.shortcut)) if self.stochastic else ())
        out, body = yield from forward_chain("body", self.body, x, p, train=train, seeds=seeds, part=part)
        skip, shortcut = yield from forward_chain("shortcut", self.shortcut, x, p, train=train, seeds=seeds, part=part)
        return add(out, skip), _Caches(body, shortcut)

    def outputs(self, x: Array, p: Arrays) -> Iterator[tuple[str, Layer, Array]]:
        ends = [x, x]
        for number, branch in enumerate(BRANCHES):
            for path, layer, out in outputs_chain(branch, getattr(self, branch), x, p):
                yield path, layer, out
                ends[number] = out
        yield "", self, add(*ends)

    def backward(self, dout: Array, cache: Any, *, need_dx: bool) -> tuple[Array | None, Arrays]:
        result: tuple[Array | None, Arrays] = run_pass(self.backward_pass(dout, cache, need_dx=need_dx, part=WHOLE))
        return result

    def backward_pass(self, dout: Array, cache: Any, *, need_dx: bool, part: Part) -> Pass:
        dskip, shortcut = yield from backward_chain(
            "shortcut", self.shortcut, dout, cache.shortcut, need_dx=need_dx, part=part
        )
        dx, body = yield from backward_chain("body", self.body, dout, cache.body, need_dx=need_dx, part=part)
        return add(dx, dskip) if need_dx else None, {**body, **shortcut}

    def new_state(self, cache: Any) -> Arrays:
        return {
            f"{branch}.{position}.{name}": a
            for branch in BRANCHES
            for (position, layer), inner in zip(
                fused_layers(getattr(self, branch)), getattr(cache, branch), strict=True
            )
            for name, a in layer.new_state(inner).items()
        }


def _output_shape(layers: Sequence[Layer], shape: Shape) -> Shape:
    for layer in layers:
        shape = layer.output_shape(shape)
    return shape
