"""Checks of the layers in a user's Python file, which are found by their names."""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from xpconv.errors import ArgumentError
from xpconv.testing import LayerReport, check_layer

__all__ = ["check_file", "parse_shapes"]

Function = Callable[..., Any]


def check_file(
    path: str | os.PathLike[str], layer: str | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[LayerReport]:
    r"""Run a Python file and check its layers with `check_layer`.

    A layer is a pair of functions ``<name>_forward`` and ``<name>_backward``. Both may have the same suffix:
    ``conv_forward_naive`` belongs to the layer ``conv_naive``. Its inputs come from a function ``<name>_inputs()`` or
    ``inputs()`` in the file, which returns a dict of forward's arguments or a tuple of them in order, and from
    `shapes`, which are filled with normally distributed numbers.

    Parameters
    ----------
    path : str or path
    layer : str, optional
        The only layer to check; by default all are checked.
    shapes : mapping of str to sequence of int, optional
        Shapes of array arguments of forward.

    Raises
    ------
    ArgumentError
        If the file cannot be run or has no such layer, or a layer's inputs are unknown.

    Examples
    --------
    >>> import tempfile
    >>> code = "def double_forward(x): return 2 * x, None\n"
    >>> code += "def double_backward(dout, cache): return 2 * dout\n"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "my_layer.py")
    ...     characters = file.write_text(code)
    ...     (report,) = check_file(file, shapes={"x": (2, 3)})
    >>> report.layer, report.ok
    ('double', True)
    """
    path = Path(path)
    with _importable_neighbours(path):
        module = _load(path)
        return [
            check_layer(forward, backward, _inputs(module, name, forward, shapes or {}), name)
            for name, (forward, backward) in _pairs(module, path, layer).items()
        ]


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse shapes such as ``x=4,3,8,8``.

    Raises
    ------
    ArgumentError
        If one is not of that form, or two have the same name.

    Examples
    --------
    >>> parse_shapes(["x=4,6", "b=3"])
    {'x': (4, 6), 'b': (3,)}
    """
    shapes = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        if not name.isidentifier() or not all(size.strip().isdecimal() and int(size) for size in sizes.split(",")):
            raise ArgumentError(f"input is {text!r}; expected an argument's name and its shape, such as x=4,3,8,8")
        if name in shapes:
            raise ArgumentError(
                f"input is given twice for {name}, the second time as {text!r}; expected one shape for it"
            )
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes


@contextmanager
def _importable_neighbours(path: Path) -> Iterator[None]:
    """Let the file import the files beside it, as Python does with a script."""
    folder = os.path.dirname(os.path.realpath(path))
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise ArgumentError(f"there is no file {path}; expected a Python file with the layer's functions")
    if path.suffix != ".py":
        raise ArgumentError(f"{path} is not a Python file; expected a name that ends in .py")
    module = ModuleType(f"checked_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f" at line {lines[-1]}" if lines else ""
        raise ArgumentError(f"{path} cannot be run: {type(error).__name__}{line}: {error}") from error
    return module


def _pairs(module: ModuleType, path: Path, layer: str | None) -> dict[str, tuple[Function, Function]]:
    """Return the pairs of functions that the file defines, or the one named `layer`, which it may import."""
    functions = {name: value for name, value in vars(module).items() if callable(value)}
    forwards = {name.replace("_forward", "", 1): name for name in functions if "_forward" in name.removeprefix("_")}
    pairs = {
        name: (functions[forward], functions[backward])
        for name, forward in forwards.items()
        if (backward := forward.replace("_forward", "_backward", 1)) in functions
    }
    if layer is not None:
        if layer not in pairs:
            raise ArgumentError(
                f"layer is {layer!r}; {path} has these with a forward and a backward function: "
                f"{', '.join(pairs) or 'none'}"
            )
        return {layer: pairs[layer]}
    own = {name: pair for name, pair in pairs.items() if getattr(pair[0], "__module__", None) == module.__name__}
    if not own:
        unpaired = (
            f"; {', '.join(forwards.values())} has no backward function" if forwards.keys() - pairs.keys() else ""
        )
        raise ArgumentError(
            f"{path} has no pair of functions such as affine_forward(x, w, b), which returns "
            f"(out, cache), and affine_backward(dout, cache), which returns gradients{unpaired}"
        )
    return own


def _inputs(module: ModuleType, name: str, forward: Function, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return forward's arguments: those from the file, and random arrays for `shapes`."""
    parameters = list(inspect.signature(forward).parameters)
    given = getattr(module, f"{name}_inputs", getattr(module, "inputs", {}))
    given = given() if callable(given) else given
    if isinstance(given, (tuple, list)):
        given = dict(zip(parameters, given, strict=False))
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"the inputs of {name} in the file are {given!r}; expected a dict of all arguments, or a "
            "function that returns one"
        )
    rng = np.random.default_rng(231)
    inputs = {**given, **{key: rng.standard_normal(shape) for key, shape in shapes.items()}}
    inputs = {key: inputs[key] for key in [*parameters, *inputs] if key in inputs}  # in the order of the gradients
    try:
        inspect.signature(forward).bind(**inputs)
    except TypeError as error:
        raise ArgumentError(
            f"{forward.__name__}{inspect.signature(forward)} cannot be called with {', '.join(inputs) or 'nothing'} "
            f"({error}): give the shape of each array, as in --input {parameters[0] if parameters else 'x'}=4,6, or "
            f"write a function {name}_inputs() beside it that returns a dict of all arguments"
        ) from error
    return inputs
