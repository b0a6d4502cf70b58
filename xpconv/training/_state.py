"""Convert parts of a training's state to arrays and plain data for JSON, and back."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, Backend, to_host
from xpconv.data._fingerprint import fingerprint, row_checksums
from xpconv.data.rows import Rows
from xpconv.errors import CheckpointError, printable
from xpconv.io._safetensors import DTYPES, ArraySpec
from xpconv.nn import Sequential

__all__ = [
    "architecture",
    "array_spec",
    "describe_data",
    "describe_difference",
    "describe_other_data",
    "first_difference",
    "is_array",
    "name_of",
    "pack_memory",
    "to_plain",
    "unpack_memory",
]


def is_array(value: Any) -> bool:
    """Return whether a value is an array of any library; NumPy's scalars are not arrays.

    Examples
    --------
    >>> is_array(np.ones(2)), is_array(np.float32(1))
    (True, False)
    """
    return bool(array_api_compat.is_array_api_obj(value)) and not isinstance(value, np.generic)


def array_spec(a: Array | Rows) -> ArraySpec:
    """Return the shape and the dtype of an array of any library.

    Examples
    --------
    >>> array_spec(np.ones((2, 3)))
    ArraySpec(shape=(2, 3), dtype='float64')
    """
    dtype = a.dtype if isinstance(a, Rows) else to_host(a).dtype
    return ArraySpec(tuple(a.shape), dtype.name)


def name_of(function: Callable[..., Any]) -> str:
    """Return the name that identifies a function in a checkpoint.

    Examples
    --------
    >>> name_of(len)
    'len'
    """
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def architecture(model: Any) -> Any:
    """Return everything that determines a model except its parameters and running statistics.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> architecture(TwoLayerNet(input_dim=4, rng=0))["dtype"], architecture(object())
    ('float32', 'object')
    """
    if not isinstance(model, Sequential):
        return type(model).__name__
    preprocessing = model.preprocessing
    return {
        **model.config(),
        "seed": model.seed,
        "preprocessing": preprocessing
        and {"mean": fingerprint(preprocessing.mean), "std": fingerprint(preprocessing.std)},
    }


def first_difference(saved: Any, own: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the path and both values of the first difference of two nested descriptions, or None if they are equal.

    Examples
    --------
    >>> first_difference({"sizes": [3, 4]}, {"sizes": [3, 5]})
    ('sizes[1]', 4, 5)
    """
    if isinstance(saved, dict) and isinstance(own, dict):
        keys = dict.fromkeys([*own, *saved])
        parts = [(f"{path}.{key}" if path else key, saved.get(key), own.get(key)) for key in keys]
    elif isinstance(saved, list) and isinstance(own, list) and len(saved) == len(own):
        parts = [(f"{path}[{k}]", *pair) for k, pair in enumerate(zip(saved, own, strict=True))]
    else:
        return None if saved == own else (path, saved, own)
    return next((found for name, a, b in parts if (found := first_difference(a, b, name))), None)


def describe_difference(where: str, saved: Any, own: Any) -> str:
    """Describe how a saved value differs from this Solver's, and what to do.

    Examples
    --------
    >>> describe_difference("batch_size", 50, 100)
    'batch_size = 50, but this one has 100: make the Solver and its model with the same arguments'
    >>> describe_difference("model.preprocessing.mean.crc32", 1056551737, 2986117530)
    'other values in model.preprocessing.mean: make the Solver and its model with the same arguments'
    """
    if where.endswith(".crc32"):
        return f"other values in {where[:-6]}: make the Solver and its model with the same arguments"
    saved, own = ("some" if isinstance(value, dict) else printable(value) for value in (saved, own))
    return (
        f"{printable(where)} = {saved}, but this one has {own}: make the Solver and its model with the same arguments"
    )


def describe_data(a: Array | Rows) -> tuple[dict[str, Any], np.ndarray]:
    """Return what identifies an array of images or labels, as data for JSON, and its `row_checksums`.

    Examples
    --------
    >>> describe_data(np.zeros((2, 3), np.uint8))
    ({'shape': [2, 3], 'dtype': 'uint8', 'crc32': 3618615694}, array([4282505490, 4282505490], dtype=uint32))
    """
    checksums = row_checksums(a)
    return {**fingerprint(checksums), "shape": list(a.shape), "dtype": array_spec(a).dtype}, checksums


def describe_other_data(name: str, saved: Any, own: Any, saved_checksums: Any, own_checksums: np.ndarray) -> str:
    """Say in words how the data of a checkpoint differ from the given data, as far as known, and what to do.

    Parameters
    ----------
    name : {"X_train", "y_train", "X_val", "y_val"}
    saved, own : dict
        What `describe_data` returns first.
    saved_checksums, own_checksums : array (N,) of uint32
        The `row_checksums`. Those of a damaged checkpoint may be anything.

    Examples
    --------
    >>> descriptions = [{"shape": [3], "dtype": "int64", "crc32": n} for n in (1, 2)]
    >>> describe_other_data(
    ...     "y_val",
    ...     *descriptions,
    ...     np.array([5, 6, 7], np.uint32),
    ...     np.array([5, 6, 8], np.uint32),
    ... )
    'other validation labels (y_val): 1 of 3 differ: resume with the same data in the same order'
    """
    split = "training" if name.endswith("train") else "validation"
    what = f"other {split} {'images' if name.startswith('X') else 'labels'} ({name})"
    difference = _how_data_differ(saved, own, saved_checksums, own_checksums)
    return f"{what}: {difference}: resume with the same data in the same order"


def _how_data_differ(saved: Any, own: Any, saved_checksums: Any, own_checksums: np.ndarray) -> str:
    shapes = [tuple(description["shape"]) for description in (saved, own)]
    kinds = [(shape[1:], description["dtype"]) for shape, description in zip(shapes, (saved, own), strict=True)]
    if kinds[0] != kinds[1]:
        there, here = (f"{printable(d['dtype'])} of shape {printable(tuple(d['shape']))}" for d in (saved, own))
        return f"they were {there}, and are {here}"
    if not isinstance(saved_checksums, np.ndarray) or saved_checksums.shape != shapes[0][:1]:
        return "their checksums differ"
    counts = [Counter(checksums.tolist()) for checksums in (saved_checksums, own_checksums)]
    common = (counts[0] & counts[1]).total()
    if shapes[0] != shapes[1]:
        return f"they were {shapes[0][0]}, and are {shapes[1][0]}, of which {common} are the same"
    if common == shapes[0][0]:
        return f"the same {common} in another order"
    return f"{np.count_nonzero(saved_checksums != own_checksums)} of {shapes[0][0]} differ"


def pack_memory(
    optim_configs: Mapping[str, Mapping[str, Any]], *, built_in_rule: bool
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Split the configurations of an update rule into plain data and arrays.

    Parameters
    ----------
    optim_configs : mapping of str to mapping
        The rule's configuration for each parameter.
    built_in_rule : bool
        Whether the rule is one of `UPDATE_RULES`; zero-dimensional arrays are then step counts, and become numbers.

    Returns
    -------
    memory : dict
        For each parameter, the names of its ``arrays``, and its other ``values``.
    arrays : dict of str to array
        The arrays, named ``memory.<key>.<parameter>``.

    Raises
    ------
    CheckpointError
        If a value is neither an array nor plain data.

    Examples
    --------
    >>> pack_memory({"b1": {"m": np.zeros(2), "t": 3}}, built_in_rule=True)
    ({'b1': {'arrays': ['m'], 'values': {'t': 3}}}, {'memory.m.b1': array([0., 0.])})
    """
    memory: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for parameter, config in optim_configs.items():
        array_names = [key for key, value in config.items() if is_array(value) and (value.ndim or not built_in_rule)]
        values = {key: to_plain(value) for key, value in config.items() if key not in array_names}
        memory[parameter] = {"arrays": array_names, "values": values}
        arrays |= {f"memory.{key}.{parameter}": config[key] for key in array_names}
    return memory, arrays


def unpack_memory(memory: Mapping[str, Any], arrays: Mapping[str, Array], backend: Backend) -> dict[str, Any]:
    """Return the configurations that `pack_memory` split, with copies of their arrays on a backend.

    Examples
    --------
    >>> from xpconv.backend import get_backend
    >>> packed = pack_memory({"b1": {"m": np.zeros(2), "t": 3}}, built_in_rule=True)
    >>> unpack_memory(*packed, get_backend("numpy"))
    {'b1': {'t': 3, 'm': array([0., 0.])}}
    """
    return {
        parameter: {key: _from_plain(value) for key, value in parts["values"].items()}
        | {key: backend.asarray(np.array(arrays[f"memory.{key}.{parameter}"])) for key in parts["arrays"]}
        for parameter, parts in memory.items()
    }


def to_plain(value: Any) -> Any:
    """Return a value as plain data for JSON; NumPy's scalars keep their dtype, on which results depend.

    Examples
    --------
    >>> to_plain(0.5), to_plain(np.float32(0.5))
    (0.5, {'dtype': 'float32', 'value': 0.5})
    """
    if isinstance(value, np.number | np.bool):
        return {"dtype": value.dtype.name, "value": value.item()}
    plain = to_host(value).item() if is_array(value) else value
    parts = plain if isinstance(plain, list) else [plain]
    if not all(isinstance(part, str | int | float | None) for part in parts):
        raise CheckpointError(
            f"the update rule remembers {printable(repr(plain))}, which a checkpoint cannot hold; "
            "expected arrays, numbers, strings or lists of those"
        )
    return plain


def _from_plain(plain: Any) -> Any:
    """Return the value that `to_plain` converted."""
    if not isinstance(plain, dict):
        return plain
    if plain["dtype"] not in DTYPES.values() or not isinstance(plain["value"], int | float):
        raise ValueError(f"{plain} is not a number with a dtype")
    return np.dtype(plain["dtype"]).type(plain["value"])
