"""Array files: safetensors with a format, a version, a JSON description and a checksum in their metadata.

Other programs can read the arrays. Equal contents give equal bytes: the metadata is one JSON text, since safetensors
writes several entries in any order. A file is checked before memory is allocated for its arrays.
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

from xpconv.data._file_kind import MODEL, file_kind
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

VERSION = 3  # of the description; raise it if an older description would be refused
METADATA_KEY = "xpconv"
MAX_HEADER_BYTES = 1 << 23  # a net of a thousand layers needs 1 MB
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
CHECKSUM_PLACEHOLDER = "0" * 64  # in place of the checksum while it is computed
CHUNK_BYTES = 1 << 20

DESCRIPTION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    XpconvError,
)
"""The errors that code may raise if it uses a malformed description."""


class ArraySpec(NamedTuple):
    """The shape and the dtype of an array in a file."""

    shape: tuple[int, ...]
    dtype: str


def write_arrays(
    path: str | os.PathLike[str], file_format: str, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays and their description to a file atomically.

    Parameters
    ----------
    path : str or path
    file_format : str
        The kind of file, such as ``xpconv-model``.
    description : mapping
        Plain data for JSON.
    arrays : mapping of str to numpy.ndarray

    Raises
    ------
    CheckpointError
        If safetensors lacks the dtype of an array, or JSON cannot represent the description.
    OSError
        If the file cannot be written; an old file stays.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_arrays(
    ...         f"{folder}/a.safetensors", "example", {"unit": "m"}, {"x": np.ones(2)}
    ...     )
    ...     ArrayFile(f"{folder}/a.safetensors", "example").description
    {'unit': 'm'}
    """
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES.values():
            raise CheckpointError(
                f"{name} has dtype {array.dtype}, which {os.fspath(path)} cannot store; "
                f"expected one of {', '.join(DTYPES.values())}"
            )
    metadata = {
        "format": file_format,
        "version": VERSION,
        "sha256": CHECKSUM_PLACEHOLDER,
        "description": description,
    }
    try:
        text = json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{os.fspath(path)} cannot store the description as JSON: {error}") from error
    native = {name: np.array(a, a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}
    content = save(native, metadata={METADATA_KEY: text})
    header_bytes = int.from_bytes(content[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{os.fspath(path)} would have a header of {header_bytes} bytes, for array names, shapes and the "
            f"description; expected {MAX_HEADER_BYTES} at most"
        )
    checksum = hashlib.sha256(content).hexdigest()
    write_bytes(path, content.replace(CHECKSUM_PLACEHOLDER.encode(), checksum.encode(), 1))


class ArrayFile:
    """A file that `write_arrays` wrote, with every byte checked.

    Parameters
    ----------
    path : str or path
    file_format : str
        As for `write_arrays`.

    Attributes
    ----------
    description : dict
        The description that `write_arrays` wrote.
    specs : dict of str to ArraySpec
        The arrays' shapes and dtypes.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or of another format or version.

    Examples
    --------
    >>> ArrayFile("nothing.safetensors", "example")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: there is no file nothing.safetensors; expected a safetensors file that xpconv wrote
    """

    def __init__(self, path: str | os.PathLike[str], file_format: str) -> None:
        self.path = os.fspath(path)
        if Path(path).is_dir():
            raise CheckpointError(f"{self.path} is a folder; expected a file in it, such as model.safetensors")
        if not Path(path).is_file():
            raise CheckpointError(f"there is no file {self.path}; expected a safetensors file that xpconv wrote")
        try:
            with Path(path).open("rb") as file:
                metadata = self._read_metadata(file, file_format)
            with safe_open(self.path, "numpy") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                self.specs = {
                    name: ArraySpec(tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()])
                    for name, tensor in slices.items()
                }
        except OSError as error:
            raise self._unreadable(error) from error
        except (SafetensorError, KeyError) as error:
            raise self._damaged(error) from error
        self.description: dict[str, Any] = metadata["description"]

    def _read_metadata(self, file: BinaryIO, file_format: str) -> dict[str, Any]:
        """Return the metadata after checking format, version and checksum."""
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 0 < header_bytes <= min(MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
            if (kind := file_kind(self.path)) not in ("", MODEL):
                raise CheckpointError(f"{self.path} is {kind}; expected a safetensors file that xpconv wrote")
            raise self._damaged(f"its header has {header_bytes} bytes")
        header = file.read(header_bytes)
        try:
            entries = json.loads(header, object_pairs_hook=_unique_names)
            metadata = json.loads(entries["__metadata__"][METADATA_KEY], object_pairs_hook=_unique_names)
            format_and_version, checksum = (metadata["format"], metadata["version"]), metadata["sha256"].encode()
            well_formed = (
                isinstance(metadata["description"], dict) and len(checksum) == 64 and header.count(checksum) == 1
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged("it has no metadata of xpconv") from error
        if format_and_version[0] == file_format and format_and_version[1] in range(1, VERSION):
            raise CheckpointError(
                f"{self.path} was written by an older version of xpconv (format version {format_and_version[1]}; "
                f"expected version {VERSION}): train again, or read it with that version of xpconv"
            )
        if format_and_version != (file_format, VERSION):
            raise CheckpointError(
                f"{self.path} has format {printable(repr(format_and_version[0]))}, version "
                f"{printable(format_and_version[1])}; expected {file_format!r}, version {VERSION}"
            )
        digest = hashlib.sha256(
            header_bytes.to_bytes(8, "little") + header.replace(checksum, CHECKSUM_PLACEHOLDER.encode())
        )
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        if not well_formed or digest.hexdigest().encode() != checksum:
            raise self._damaged("its contents do not match its checksum")
        return dict(metadata)

    def _damaged(self, reason: object) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged or not a safetensors file of xpconv ({printable(reason)}): use another copy of it"
        )

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path} cannot be read ({printable(error.strerror or error)}): check its permissions and its disk"
        )

    def read(
        self, expected: Mapping[str, ArraySpec], *, allow_nonfinite: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Return the arrays after checking their names, shapes, dtypes and values.

        Parameters
        ----------
        expected : mapping of str to ArraySpec
        allow_nonfinite : collection of str
            The arrays that may have NaN and infinite values.

        Raises
        ------
        CheckpointError
            If an array is missing, unexpected, of another shape or dtype, or has values that are not finite.
        """
        check_specs(self.path, self.specs, expected)
        try:
            with safe_open(self.path, "numpy") as tensors:
                arrays = {name: tensors.get_tensor(name) for name in expected}
        except OSError as error:
            raise self._unreadable(error) from error
        except SafetensorError as error:
            raise self._damaged(error) from error
        check_finite_arrays(self.path, {name: a for name, a in arrays.items() if name not in allow_nonfinite})
        return arrays


def _unique_names(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the entries of a JSON object, of which programs read the first or the last if a name comes twice."""
    names = dict(entries)
    if len(names) != len(entries):
        raise ValueError("a name comes twice")
    return names


def check_specs(owner: str, specs: Mapping[str, ArraySpec], expected: Mapping[str, ArraySpec]) -> None:
    """Raise a CheckpointError unless the arrays of `owner` have the expected names, shapes and dtypes."""
    for name in sorted(specs.keys() | expected.keys()):
        actual_spec, expected_spec = specs.get(name), expected.get(name)
        if actual_spec != expected_spec:
            raise CheckpointError(
                f"{owner} has {printable(name)} = {_describe(actual_spec)}; expected {_describe(expected_spec)}"
            )


def check_finite_arrays(owner: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a CheckpointError if an array of `owner` has NaN or infinite values."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{owner} has NaN or infinite values in {name}: use an earlier file")


def _describe(spec: ArraySpec | None) -> str:
    return "nothing" if spec is None else f"{spec.dtype} {printable(spec.shape)}"
