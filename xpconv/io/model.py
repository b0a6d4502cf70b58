"""Model files: safetensors files that contain a whole model."""

import json
import os
from collections.abc import Mapping
from math import isfinite
from typing import Any

from xpconv.backend import Backend, get_backend, to_host
from xpconv.data.typical import TypicalImages
from xpconv.errors import ArgumentError, CheckpointError, printable
from xpconv.io._safetensors import (
    DESCRIPTION_ERRORS,
    ArrayFile,
    ArraySpec,
    check_finite_arrays,
    check_specs,
    write_arrays,
)
from xpconv.nn import Preprocessing, Sequential
from xpconv.nn.layers import Initial, Shape
from xpconv.nn.preprocessing import RESIZES, fits_samples
from xpconv.nn.registry import check_registered
from xpconv.nn.sequential import arguments_of
from xpconv.random import RandomStream

__all__ = ["load_model", "save_model"]

FILE_FORMAT = "xpconv-model"


def save_model(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a model to one safetensors file: architecture, parameters, state, preprocessing and class names.

    Equal models give equal bytes. The file is written completely or not at all.

    Parameters
    ----------
    model : Sequential
    path : str or path

    Raises
    ------
    CheckpointError
        If `load_model` could not read the file: a layer is not one of `xpconv.nn`, or a parameter is missing,
        unexpected, of the wrong shape or dtype, or not finite. An old file stays.
    OSError
        If the file cannot be written; an old file stays.

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.nn import TwoLayerNet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(
    ...         TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0),
    ...         f"{folder}/net.safetensors",
    ...     )
    ...     load_model(f"{folder}/net.safetensors").params["W1"].shape
    (4, 5)
    """
    stores = {"params": model.params, "state": model.state}
    if model.preprocessing is not None:
        stores["preprocessing"] = {"mean": model.preprocessing.mean, "std": model.preprocessing.std}
        if (typical := model.preprocessing.typical) is not None:
            stores["typical"] = {"mean": typical.mean, "precision": typical.precision}
    arrays = {f"{kind}.{name}": to_host(a) for kind, store in stores.items() for name, a in store.items()}
    description = {**model.config(), **_image_files(model)}
    specs = {name: ArraySpec(a.shape, a.dtype.name) for name, a in arrays.items()}
    try:
        check_registered(model.layers)
        expected = _expected_specs("the model", description, specs)
    except DESCRIPTION_ERRORS as error:
        raise CheckpointError(
            f"{os.fspath(path)} is not written, since load_model could not read it: {printable(error)}"
        ) from error
    check_specs("the model", specs, expected)
    check_finite_arrays("the model", arrays)
    write_arrays(path, FILE_FORMAT, description, arrays)


def load_model(path: str | os.PathLike[str], backend: str | Backend | None = None) -> Sequential:
    """Read a model that `save_model` wrote, onto the selected backend.

    Every byte is checked first, and memory is allocated only for arrays that the file contains.

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
        If the file is missing, damaged or of another format, its arrays do not fit its architecture, or values are
        not finite.

    Examples
    --------
    >>> load_model("no-such-file.safetensors")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: there is no file no-such-file.safetensors...
    """
    backend = get_backend(backend)
    file = ArrayFile(path, FILE_FORMAT)
    try:
        expected = _expected_specs(file.path, file.description, file.specs)
    except CheckpointError:
        raise
    except DESCRIPTION_ERRORS as error:
        raise CheckpointError(f"{file.path} does not describe a model ({printable(error)})") from error
    arrays = file.read(expected)
    config, resize = _split_description(file.description)
    model = Sequential.from_config(config, backend)
    model.params = {name: backend.asarray(arrays[f"params.{name}"]) for name in model.params}
    model.state = {name: backend.asarray(arrays[f"state.{name}"]) for name in model.state}
    if "preprocessing.mean" in expected:
        try:
            model.preprocessing = Preprocessing(
                arrays["preprocessing.mean"], arrays["preprocessing.std"], resize, _typical_images(arrays)
            )
        except ArgumentError as error:
            raise CheckpointError(f"{file.path} has no usable preprocessing: {error}") from error
    return model


def _typical_images(arrays: Mapping[str, Any]) -> TypicalImages | None:
    if "typical.mean" not in arrays:
        return None
    return TypicalImages(arrays["typical.mean"], arrays["typical.precision"])


def _image_files(model: Sequential) -> dict[str, str]:
    """Return what a model's file says of image files, besides the model's `config`."""
    resize = model.preprocessing and model.preprocessing.resize
    return {"resize": resize} if resize else {}


def _split_description(description: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the `config` of a model, and how image files are fitted to its input shape."""
    config = {name: value for name, value in description.items() if name != "resize"}
    return config, description.get("resize")


class _SpecModel(Sequential):
    """A model that has array specs in place of arrays, so that it can be built without memory for arrays."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(backend="numpy", rng=0, **arguments)

    def _initial(self, shape: Shape, value: Initial, stream: RandomStream) -> Any:
        if not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"a parameter has shape {shape}")
        return ArraySpec(shape, self.dtype)


def _expected_specs(owner: str, description: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Return the specs of a described model's arrays; the actual `specs` give the shapes of its preprocessing."""
    given = description
    description, resize = _split_description(given)
    if "resize" in given and (resize not in RESIZES or "preprocessing.mean" not in specs):
        raise ValueError(f"resize is {resize!r}")
    model = _SpecModel(**arguments_of(description))
    # JSON tells 1 from 1.0 and from true, which are equal in Python.
    same = json.dumps(model.config(), sort_keys=True) == json.dumps(description, sort_keys=True)
    if not same or not isfinite(model.reg):
        raise ValueError(f"the model that is built from it has another description, {model.config()}")
    return {
        **{f"params.{name}": spec for name, spec in model.params.items()},
        **{f"state.{name}": spec for name, spec in model.state.items()},
        **_preprocessing_specs(owner, specs, model),
        **_typical_specs(specs, model),
    }


def _typical_specs(specs: Mapping[str, ArraySpec], model: Sequential) -> dict[str, ArraySpec]:
    """Return the specs of what the training images have in common; none if `specs` has no part of it."""
    if not {"typical.mean", "typical.precision"} & specs.keys():
        return {}
    if "preprocessing.mean" not in specs or len(model.input_shape) != 3:
        raise ValueError("it has typical images, but takes none")
    numbers = model.input_shape[0] + 3
    return {
        "typical.mean": ArraySpec((numbers,), "float64"),
        "typical.precision": ArraySpec((numbers, numbers), "float64"),
    }


def _preprocessing_specs(owner: str, specs: Mapping[str, ArraySpec], model: Sequential) -> dict[str, ArraySpec]:
    """Return the specs of mean and std, whose shapes must broadcast to a sample; none if `specs` has neither."""
    names = ("preprocessing.mean", "preprocessing.std")
    shapes = {name: specs[name].shape for name in names if name in specs}
    for name, shape in shapes.items():
        if not fits_samples(shape, model.input_shape):
            raise CheckpointError(
                f"{owner} has {name} of shape {shape}; expected one that broadcasts to samples of shape "
                f"{model.input_shape}"
            )
    return {name: ArraySpec(shapes.get(name, ()), model.dtype) for name in names} if shapes else {}
