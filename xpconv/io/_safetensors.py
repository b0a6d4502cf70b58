"""Files of arrays that vouch for themselves: safetensors with a format, a version and a checksum in their metadata.

Other programs read the arrays as those of any safetensors file. The metadata is one JSON text, so that equal content
gives equal bytes. Whoever reads a file learns what is wrong with it before memory is taken for its arrays.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from xpconv.errors import CheckpointError, XpconvError, printable
from xpconv.io._atomic import write_bytes

__all__ = [
    "DESCRIPTION_ERRORS",
    "DTYPES",
    "ArrayFile",
    "ArraySpec",
    "check_finite_arrays",
    "check_specs",
    "write_arrays",
]

VERSION = 1
KEY = "xpconv"  # of the JSON text in the metadata
MAX_HEADER = 1 << 23  # bytes: a net of a thousand layers needs a million
DTYPES = {
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
UNKNOWN = "0" * 64  # stands for the checksum while it is computed
CHUNK = 1 << 20
DESCRIPTION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    XpconvError,
)
"""What building something from a malformed description raises."""


class ArraySpec(NamedTuple):
    """The shape and the dtype of an array in a file."""

    shape: tuple[int, ...]
    dtype: str


def write_arrays(
    path: str | os.PathLike[str], form: str, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and a description of them to a file, whole or not at all.

    Parameters
    ----------
    path : str or path
    form : str
        What the file is, such as ``xpconv-model``.
    description : mapping
        Plain data for JSON.
    arrays : mapping of str to numpy.ndarray

    Raises
    ------
    CheckpointError
        If an array's dtype, or something in the description, has no place in such a file.
    OSError
        If it cannot be written; a file that was there stays.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_arrays(f"{folder}/a.safetensors", "example", {"unit": "m"}, {"x": np.ones(2)})
    ...     ArrayFile(f"{folder}/a.safetensors", "example").description
    {'unit': 'm'}
    """
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES.values():
            raise CheckpointError(
                f"{name} has dtype {array.dtype}, for which {os.fspath(path)} has no place; "
                f"expected one of {', '.join(DTYPES.values())}"
            )
    try:
        text = json.dumps(
            {"format": form, "version": VERSION, "sha256": UNKNOWN, "description": description}, allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{os.fspath(path)} has no place for something of the description: {error}") from error
    native = {name: np.array(a, a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}
    content = save(native, metadata={KEY: text})
    header = int.from_bytes(content[:8], "little")
    if header > MAX_HEADER:
        raise CheckpointError(
            f"{os.fspath(path)} would have a header of {header} bytes; expected {MAX_HEADER} at most "
            "for the names and shapes of its arrays and what describes them"
        )
    write_bytes(path, content.replace(UNKNOWN.encode(), hashlib.sha256(content).hexdigest().encode(), 1))


class ArrayFile:
    """A file that `write_arrays` wrote, every byte of it checked.

    Parameters
    ----------
    path : str or path
    form : str
        As for `write_arrays`.

    Attributes
    ----------
    description : dict
        What was given to `write_arrays`.
    specs : dict of str to ArraySpec
        The arrays' shapes and dtypes.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another format or another version.

    Examples
    --------
    >>> ArrayFile("nothing.safetensors", "example")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: there is no file nothing.safetensors
    """

    def __init__(self, path: str | os.PathLike[str], form: str) -> None:
        self.path = os.fspath(path)
        if Path(path).is_dir():
            raise CheckpointError(f"{self.path} is a folder; expected a file in it, such as model.safetensors")
        if not Path(path).is_file():
            raise CheckpointError(f"there is no file {self.path}")
        try:
            with Path(path).open("rb") as file:
                document = self._document(file, form)
            with safe_open(self.path, "numpy") as tensors:
                parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                self.specs = {
                    name: ArraySpec(tuple(part.get_shape()), DTYPES[part.get_dtype()]) for name, part in parts.items()
                }
        except (SafetensorError, OSError, KeyError) as error:
            raise self._damaged(error) from error
        self.description: dict[str, Any] = document["description"]

    def _document(self, file: BinaryIO, form: str) -> dict[str, Any]:
        """Return the JSON text of the metadata, after all checks that need nothing else."""
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= min(MAX_HEADER, os.fstat(file.fileno()).st_size - 8):
            raise self._damaged(f"its header has {size} bytes")
        header = file.read(size)
        try:
            document = json.loads(json.loads(header)["__metadata__"][KEY])
            found, checksum = (document["format"], document["version"]), document["sha256"].encode()
            whole = isinstance(document["description"], dict) and len(checksum) == 64 and header.count(checksum) == 1
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged("it does not describe itself as a file of xpconv") from error
        if found != (form, VERSION):
            raise CheckpointError(
                f"{self.path} has format {printable(repr(found[0]))}, version {printable(found[1])}; "
                f"expected {form!r}, version {VERSION}"
            )
        digest = hashlib.sha256(size.to_bytes(8, "little") + header.replace(checksum, UNKNOWN.encode()))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if not whole or digest.hexdigest().encode() != checksum:
            raise self._damaged("its checksum is another")
        return dict(document)

    def _damaged(self, why: object) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged or no safetensors file of xpconv ({printable(why)}): take another copy of it"
        )

    def read(self, wanted: Mapping[str, ArraySpec], *, allow_nonfinite: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Return the arrays, if they are the ones wanted and their values are finite.

        Parameters
        ----------
        wanted : mapping of str to ArraySpec
        allow_nonfinite : collection of str
            Which of them may have NaN and infinite values.

        Raises
        ------
        CheckpointError
            If an array is missing, unknown, of another shape or dtype, or has values that are not finite.
        """
        check_specs(self.path, self.specs, wanted)
        try:
            with safe_open(self.path, "numpy") as tensors:
                arrays = {name: tensors.get_tensor(name) for name in wanted}
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error
        check_finite_arrays(self.path, {name: array for name, array in arrays.items() if name not in allow_nonfinite})
        return arrays


def check_specs(owner: str, specs: Mapping[str, ArraySpec], wanted: Mapping[str, ArraySpec]) -> None:
    """Raise a CheckpointError unless the arrays of `owner` have the names, shapes and dtypes wanted."""
    for name in sorted(specs.keys() | wanted.keys()):
        found, expected = specs.get(name), wanted.get(name)
        if found != expected:
            raise CheckpointError(f"{owner} has {printable(name)} = {_told(found)}; expected {_told(expected)}")


def check_finite_arrays(owner: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a CheckpointError if an array has values that are not finite."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{owner} has NaN or infinite values in {name}: take an earlier file")


def _told(entry: ArraySpec | None) -> str:
    return "nothing" if entry is None else f"{entry.dtype} {printable(entry.shape)}"
