"""Models as files: safetensors that describe themselves."""

import os
from collections.abc import Mapping
from math import isfinite
from typing import Any

from xpconv.backend import Array, Backend, get_backend, to_host
from xpconv.errors import CheckpointError, printable
from xpconv.io._safetensors import (
    DESCRIPTION_ERRORS,
    ArrayFile,
    ArraySpec,
    check_finite_arrays,
    check_specs,
    write_arrays,
)
from xpconv.nn import Preprocessing, Sequential
from xpconv.nn.layers import Shape
from xpconv.nn.sequential import arguments_of
from xpconv.random import RandomStream

__all__ = ["load_model", "save_model"]

FILE_FORMAT = "xpconv-model"


def save_model(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a model to one safetensors file: architecture, parameters, state, preprocessing and class names.

    Equal models give equal bytes.

    Parameters
    ----------
    model : Sequential
    path : str or path
        The file is written whole or not at all.

    Raises
    ------
    CheckpointError
        If `load_model` could not read the file: there is a layer of another library, a parameter that the architecture
        does not have, has in another shape or dtype, or that is NaN or infinite. A file that was there stays.
    OSError
        If it cannot be written; a file that was there stays.

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.nn import TwoLayerNet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0), f"{folder}/net.safetensors")
    ...     load_model(f"{folder}/net.safetensors").params["W1"].shape
    (4, 5)
    """
    stores = {"params": model.params, "state": model.state}
    if model.preprocessing is not None:
        stores["preprocessing"] = {"mean": model.preprocessing.mean, "std": model.preprocessing.std}
    arrays = {f"{kind}.{name}": to_host(a) for kind, store in stores.items() for name, a in store.items()}
    description, specs = model.config(), {name: ArraySpec(a.shape, a.dtype.name) for name, a in arrays.items()}
    try:
        wanted = _wanted("the model", description, specs)
    except DESCRIPTION_ERRORS as error:
        raise CheckpointError(
            f"load_model could not read the model's file, so {os.fspath(path)} is not written: {printable(error)}"
        ) from error
    check_specs("the model", specs, wanted)
    check_finite_arrays("the model", arrays)
    write_arrays(path, FILE_FORMAT, description, arrays)


def load_model(path: str | os.PathLike[str], backend: str | Backend | None = None) -> Sequential:
    """Read a model that `save_model` wrote, onto the selected backend.

    The file is checked first, from its length to its last value; no memory is taken for a model that it does not hold.

    Parameters
    ----------
    path : str or path
    backend : str or Backend, optional
        As for `get_backend`.

    Returns
    -------
    Sequential

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another format, does not hold what its architecture needs, or holds values
        that are not finite.

    Examples
    --------
    >>> load_model("no-such-file.safetensors")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: there is no file no-such-file.safetensors...
    """
    backend = get_backend(backend)
    file = ArrayFile(path, FILE_FORMAT)
    try:
        wanted = _wanted(file.path, file.description, file.specs)
    except CheckpointError:
        raise
    except DESCRIPTION_ERRORS as error:
        raise CheckpointError(f"{file.path} describes no model ({printable(error)})") from error
    arrays = file.read(wanted)
    model = Sequential.from_config(file.description, backend)
    model.params = {name: backend.asarray(arrays[f"params.{name}"]) for name in model.params}
    model.state = {name: backend.asarray(arrays[f"state.{name}"]) for name in model.state}
    if "preprocessing.mean" in wanted:
        model.preprocessing = Preprocessing(arrays["preprocessing.mean"], arrays["preprocessing.std"])
    return model


class _Outline(Sequential):
    """A model that has specs in place of arrays: what an architecture needs, before memory is taken for it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(backend="numpy", rng=0, **arguments)

    def _initial(self, shape: Shape, value: float | None, stream: RandomStream) -> Array:
        if not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"an array of shape {shape}")
        return ArraySpec(shape, self.dtype)


def _wanted(owner: str, description: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Return the arrays of a model that is described so; of `specs` only those of the preprocessing matter."""
    outline = _Outline(**arguments_of(description))
    if outline.config() != description or not isfinite(outline.reg):
        raise ValueError(f"it comes out as {outline.config()}")
    return {
        **_named("params", outline.params),
        **_named("state", outline.state),
        **_preprocessing(owner, specs, outline),
    }


def _named(kind: str, specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    return {f"{kind}.{name}": entry for name, entry in specs.items()}


def _preprocessing(owner: str, specs: Mapping[str, ArraySpec], outline: Sequential) -> dict[str, ArraySpec]:
    """Return the specs of mean and deviation: both or neither are there, in shapes that fit a sample."""
    names = ("preprocessing.mean", "preprocessing.std")
    shapes = {name: specs[name].shape for name in names if name in specs}
    for name, shape in shapes.items():
        if len(shape) > len(outline.input_shape) or not all(
            size in (1, whole) for size, whole in zip(shape[::-1], outline.input_shape[::-1], strict=False)
        ):
            raise CheckpointError(
                f"{owner} has {name} of shape {shape}; expected one that fits samples of shape {outline.input_shape}"
            )
    return {name: ArraySpec(shapes.get(name, ()), outline.dtype) for name in names} if shapes else {}
