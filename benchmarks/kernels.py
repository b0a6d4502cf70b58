"""Time single operations on a GPU as captured steps run them: ``python -m benchmarks.kernels [--json FILE]``.

A CUDA graph calls each operation 20 times, on three sets of inputs in turn, so that the inputs come from the GPU's
memory and not from its cache. The bytes per second are compared with those of a copy. They count what the operation
must read and write: batch norm, for example, reads its input twice, for the statistics and for the output.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.device import card, device_ms
from xpconv import layers, ops
from xpconv.io._atomic import atomic_path
from xpconv.ops.windows import Window
from xpconv.training.optim import UPDATE_RULES

SHAPE = (512, 64, 32, 32)
CALLS = 20  # in one graph
SETS = 3  # of inputs

Call = Callable[[], Any]
Array = Any


class Operation(NamedTuple):
    """An operation on arrays of one shape and dtype.

    Attributes
    ----------
    name : str
    nbytes : float
        Bytes that it must read and write.
    prepare : callable
        Makes a set of inputs, and returns a function of no arguments that calls the operation.
    """

    name: str
    nbytes: float
    prepare: Callable[[], Call]


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Words of the names of operations to time; may be repeated. Default: all.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
) -> None:
    """Print the time of each operation, and its share of the rate of a copy."""
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the measurements
    result = {"card": card(), "shape": SHAPE, "rows": measure(SHAPE, only or [""])}
    if json_file:
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")


def measure(shape: Sequence[int], only: Sequence[str] = ("",)) -> list[dict[str, Any]]:
    """Time operations whose names contain one of the words `only`, print a line for each, and return the rows."""
    rows = []
    for dtype in ("float32", "float16"):
        make = Inputs(shape, dtype)
        copy_rate = rate(copy(make))
        print(f"{dtype}: a copy moves {copy_rate / 1e9:,.0f} GB/s")
        for operation in operations(make):
            if any(word in operation.name for word in only):
                rows.append(time_operation(operation, dtype, copy_rate))
                print(" ".join(f"{value}" for value in rows[-1].values()), flush=True)
    return rows


def time_operation(operation: Operation, dtype: str, copy_rate: float) -> dict[str, Any]:
    """Return the row of one operation; an operation that fails does not end the run."""
    row: dict[str, Any] = {"dtype": dtype, "name": operation.name}
    try:
        reached = rate(operation)
    except Exception as error:
        return {**row, "error": f"{type(error).__name__}: {error}"}
    microseconds = round(1e6 * operation.nbytes / reached, 1)
    return {**row, "us": microseconds, "bytes": int(operation.nbytes), "share": round(reached / copy_rate, 3)}


def rate(operation: Operation) -> float:
    """Return the bytes per second of an operation in a captured graph."""
    from xpconv.ops.cupy._graph import GraphMemory

    calls = [operation.prepare() for _ in range(SETS)]
    for call in calls:  # Kernels must be loaded before a capture.
        call()
    memory, results = GraphMemory(), []

    def work() -> None:
        for number in range(CALLS):
            results.append(calls[number % SETS]())
            del results[: 1 - SETS]  # so that outputs take turns in memory, too

    graph, _ = memory.capture(work)
    seconds = min(device_ms(graph.launch) for _ in range(3)) / 1e3
    return CALLS * operation.nbytes / seconds


class Inputs:
    """Makes random arrays of one shape and dtype on the device.

    Parameters
    ----------
    shape : sequence of int
        (N, C, H, W).
    dtype : str
    """

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        import cupy

        self.cupy, self.shape, self.dtype = cupy, tuple(shape), np.dtype(dtype)
        self._values = cupy.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
        self.nbytes, self.count = prod(shape) * self.dtype.itemsize, prod(shape)

    def __call__(self) -> Array:
        return self._values.astype(self.dtype)

    def parameters(self) -> Array:
        """Return an array in the dtype of parameters."""
        return self._values.copy()

    def channels(self, shape: Sequence[int]) -> Array:
        """Return ones in the dtype of parameters, one for each channel."""
        return self.cupy.ones(shape, "float32")


def copy(make: Inputs) -> Operation:
    """Return the copy of an array, with whose rate others are compared."""

    def prepare() -> Call:
        source, target = make(), make()
        return lambda: make.cupy.copyto(target, source)

    return Operation("copy", 2 * make.nbytes, prepare)


def operations(make: Inputs) -> Iterator[Operation]:
    """Yield the operations that are timed."""
    yield from activations(make)
    yield from norms(make)
    yield from pools(make)
    yield from convolution(make)
    if make.dtype == np.float32:
        yield from updates(make)


def activations(make: Inputs) -> Iterator[Operation]:
    """Yield activations and their gradients."""
    n, mask = make.nbytes, make.count
    pairs: list[tuple[str, float, Callable[[Array], Any], Callable[..., Any]]] = [
        ("relu", 2 * n + mask, ops.relu, ops.relu_backward),
        ("leaky relu", 2 * n + mask, lambda x: ops.leaky_relu(x, 0.1), lambda d, c: ops.leaky_relu_backward(d, c, 0.1)),
        ("gelu", 3 * n, lambda x: ops.gated(x, "normal"), ops.gated_backward),
        ("silu", 3 * n, lambda x: ops.gated(x, "logistic"), ops.gated_backward),
    ]
    for name, nbytes, forward, backward in pairs:
        yield Operation(name, nbytes, lambda forward=forward: bind(forward, make()))
        yield Operation(
            f"{name} backward",
            nbytes,
            lambda forward=forward, backward=backward: bind(backward, make(), forward(make())[1]),
        )


def norms(make: Inputs) -> Iterator[Operation]:
    """Yield normalisations and their gradients."""
    C = make.shape[1]
    flat, options = (*make.shape[:2], prod(make.shape[2:])), {"axes": (0, 2), "tile_axis": 1}

    def batch_norm() -> tuple[Array, ...]:
        return make().reshape(flat), make.channels((1, C, 1)), make.channels((1, C, 1))

    def batch_norm_backward() -> Call:
        x, gamma, beta = batch_norm()
        _, mean, _, inv_std = ops.normalise(x, gamma, beta, eps=1e-5, **options)
        dout = make().reshape(flat)
        return lambda: ops.normalise_backward(dout, x, mean, inv_std, gamma, param_axes=(0, 2), **options)

    def batch_norm_relu_backward() -> Call:
        x, gamma, beta = batch_norm()
        _, mean, _, inv_std, signs = ops.normalise_relu(x, gamma, beta, eps=1e-5, **options)
        dout = make().reshape(flat)
        return lambda: ops.normalise_relu_backward(dout, signs, x, mean, inv_std, gamma, param_axes=(0, 2), **options)

    def group_norm() -> tuple[Array, ...]:
        return make(), make.channels((C,)), make.channels((C,))

    groups = max(1, C // 8)
    yield Operation(
        "batch norm", 3 * make.nbytes, lambda: bind(lambda *a: ops.normalise(*a, eps=1e-5, **options), *batch_norm())
    )
    yield Operation("batch norm backward", 5 * make.nbytes, batch_norm_backward)
    yield Operation(
        "batch norm, relu",
        3 * make.nbytes,
        lambda: bind(lambda *a: ops.normalise_relu(*a, eps=1e-5, **options), *batch_norm()),
    )
    yield Operation("batch norm, relu backward", 5 * make.nbytes, batch_norm_relu_backward)
    forward = layers.groupnorm_forward
    yield Operation("group norm", 3 * make.nbytes, lambda: bind(lambda *a: forward(*a, groups=groups), *group_norm()))
    yield Operation(
        "group norm backward",
        5 * make.nbytes,
        lambda: bind(layers.groupnorm_backward, make(), forward(*group_norm(), groups=groups)[1]),
    )


def pools(make: Inputs) -> Iterator[Operation]:
    """Yield pools of 2x2 pixels and their gradients."""
    n, mask, window = make.nbytes, make.count, Window((2, 2), (2, 2))
    counts = (2,) * (make.shape[2] // 2), (2,) * (make.shape[3] // 2)

    def dout() -> Array:
        return make.cupy.ascontiguousarray(make()[:, :, ::2, ::2])

    yield Operation("max pool", 1.25 * n + mask / 4, lambda: bind(ops.max_pool, make(), window))
    yield Operation(
        "max pool backward",
        1.25 * n + mask / 4,
        lambda: bind(ops.max_pool_backward, dout(), ops.max_pool(make(), window)[1], make.shape, window),
    )
    yield Operation("average pool", 1.25 * n, lambda: bind(ops.avg_pool, make(), window, counts))
    yield Operation(
        "average pool backward", 1.25 * n, lambda: bind(ops.avg_pool_backward, dout(), make.shape, window, counts)
    )


def convolution(make: Inputs) -> Iterator[Operation]:
    """Yield the copies around the matrix product of a convolution."""
    from xpconv.ops.cupy._conv import images_to_rows
    from xpconv.ops.cupy._groups import plan_sums
    from xpconv.ops.cupy._launch import launch

    (N, C, H, W), n = make.shape, make.nbytes
    window, strided = Window((3, 3), (1, 1), ((1, 1), (1, 1))), Window((3, 3), (2, 2), ((1, 1), (1, 1)))
    grid, groups, _, wide = plan_sums((N, C, H * W), make.dtype, (0, 2))

    def to_images() -> Call:
        rows, bias, out = make().reshape(C, -1), make.channels((C,)), make()
        return lambda: launch("to_images", make.dtype, grid, rows, bias, out, groups, wide=wide)

    for name, each, ratio in (("", window, 9), (" at stride 2", strided, 9 / 4)):
        yield Operation(f"unfold 3x3{name}", (1 + ratio) * n, lambda each=each: bind(ops.unfold, make(), each))
        yield Operation(
            f"fold 3x3{name}",
            (1 + ratio) * n,
            lambda each=each: bind(ops.fold, ops.unfold(make(), each), make.shape, each),
        )
    yield Operation("to images", 2 * n, to_images)
    yield Operation("to rows", 2 * n, lambda: bind(images_to_rows, make()))


def updates(make: Inputs) -> Iterator[Operation]:
    """Yield update rules without weight decay, and the L2 penalty."""
    n, arrays = make.nbytes, {"sgd": 3, "sgd_momentum": 5, "sgd_nesterov": 5, "rmsprop": 5, "adam": 7, "lion": 5}

    def update(name: str) -> Call:
        w, dw, config = make.parameters(), make.parameters(), {"weight_decay": 0}
        UPDATE_RULES[name](w, dw, config, in_place=True)
        return lambda: UPDATE_RULES[name](w, dw, config, in_place=True)

    for name, count in arrays.items():
        yield Operation(name, count * n, lambda name=name: update(name))
    yield Operation("muon of a vector", 5 * n, lambda: flat_muon(make))
    yield Operation(
        "L2 penalty",
        3 * n,
        lambda: bind(
            ops.add_l2_penalty, make.cupy.zeros((), "float32"), [make.parameters()], [make.parameters()], 1e-9
        ),
    )


def flat_muon(make: Inputs) -> Call:
    """Return a step of muon on a vector, which has its elementwise part but no matrix product."""
    w, dw = make.parameters().reshape(-1), make.parameters().reshape(-1)
    config = {"weight_decay": 0}
    UPDATE_RULES["muon"](w, dw, config, in_place=True)
    return lambda: UPDATE_RULES["muon"](w, dw, config, in_place=True)


def bind(function: Callable[..., Any], *arguments: Any) -> Call:
    """Return a function of no arguments."""
    return lambda: function(*arguments)


if __name__ == "__main__":
    typer.run(main)
