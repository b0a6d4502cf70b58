"""Models as files: safetensors that describe themselves."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from xpconv.backend import Backend, to_host
from xpconv.errors import CheckpointError, XpconvError
from xpconv.files import atomic_path
from xpconv.sequential import Preprocessing, Sequential

__all__ = ["load_model", "save_model"]

FORMAT = "xpconv-model-1"


def save_model(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a model to one safetensors file: architecture, parameters, state, preprocessing and class names.

    Parameters
    ----------
    model : Sequential
    path : str or path
        The file is written whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written; a file that was there stays.

    Examples
    --------
    >>> import tempfile
    >>> from xpconv.models import TwoLayerNet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(TwoLayerNet(input_dim=4, hidden_dim=5, num_classes=3, rng=0), f"{folder}/net.safetensors")
    ...     load_model(f"{folder}/net.safetensors").params["W1"].shape
    (4, 5)
    """
    tensors = {f"{kind}.{key}": np.ascontiguousarray(to_host(value))
               for kind, arrays in _stores(model).items() for key, value in arrays.items()}
    content = save(tensors, metadata={"format": FORMAT, "config": json.dumps(model.config())})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_model(path: str | os.PathLike[str], backend: str | Backend | None = None) -> Sequential:
    """Read a model that `save_model` wrote, onto the selected backend.

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
        If the file is missing, damaged, of another format or does not hold what its architecture needs.

    Examples
    --------
    >>> load_model("no-such-file.safetensors")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: there is no model file no-such-file.safetensors...
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no model file {os.fspath(path)}: xpconv train writes one")
    try:
        with safe_open(path, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)} is damaged or no safetensors file ({error}): "
                              "take another copy of it") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{os.fspath(path)} has format {metadata.get('format')!r}; expected {FORMAT}, "
                              "as save_model writes it")
    try:
        model = Sequential.from_config(json.loads(metadata["config"]), backend)
    except (KeyError, TypeError, ValueError, XpconvError) as error:
        if not isinstance(error, XpconvError) or isinstance(error, ValueError):
            raise CheckpointError(f"{os.fspath(path)} describes no model ({error})") from error
        raise
    if "preprocessing.mean" in tensors and "preprocessing.std" in tensors:
        model.preprocessing = Preprocessing(tensors["preprocessing.mean"], tensors["preprocessing.std"])
    _fill(model, tensors, os.fspath(path))
    return model


def _fill(model: Sequential, tensors: dict[str, np.ndarray], path: str) -> None:
    stores = _stores(model)
    wanted = {f"{kind}.{key}": (tuple(value.shape), model.dtype)
              for kind, arrays in stores.items() for key, value in arrays.items()}
    found = {key: (value.shape, str(value.dtype)) for key, value in tensors.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise CheckpointError(f"{path} has {key} = {found.get(key)}; expected {wanted.get(key)}, "
                                  "as its architecture needs")
    for name in tensors:
        kind, _, key = name.partition(".")
        stores[kind][key] = model.backend.asarray(tensors[name])


def _stores(model: Sequential) -> dict[str, dict[str, Any]]:
    """Return the model's dicts of arrays by the prefix that they have in files."""
    stores = {"params": model.params, "state": model.state}
    if model.preprocessing is not None:
        stores["preprocessing"] = {"mean": model.preprocessing.mean, "std": model.preprocessing.std}
    return stores
