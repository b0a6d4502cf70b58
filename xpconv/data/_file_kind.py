"""Recognise files that are not of the expected format, so that errors can say what they are."""

import os
from pathlib import Path

__all__ = ["file_kind", "is_picture"]

PICTURES = {
    b"\x89PNG\r\n\x1a\n": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"II*\x00": "a TIFF picture",
    b"MM\x00*": "a TIFF picture",
    b"RIFF": "a WebP picture",
    b"BM": "a BMP picture",
}
KINDS = {
    **PICTURES,
    b"PK\x03\x04": "a zip archive, as .npz files of NumPy and .pt files of PyTorch are",
    b"\x93NUMPY": "an array file of NumPy (.npy)",
    **{b"\x80" + bytes([protocol]): "a Python pickle" for protocol in range(2, 6)},
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as .h5 files of Keras are",
    b"%PDF": "a PDF document",
}
MODEL = "a safetensors file, as models are"


def file_kind(path: str | os.PathLike[str]) -> str:
    """Return what a file is by its first bytes, or "" if they tell nothing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.safetensors")
    ...     size = path.write_bytes(bytes([128, 4, 149]))
    ...     file_kind(path)
    'a Python pickle'
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    if not start:
        return "an empty file"
    if start[4:9] == b"\0\0\0\0{":  # the length of a header below 4 GiB, and its first byte
        return MODEL
    text = start.isascii() and start.decode().translate(dict.fromkeys(b"\t\n\r")).isprintable()
    return next((kind for magic, kind in KINDS.items() if start.startswith(magic)), "a text file" if text else "")


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a picture by its first bytes.

    Examples
    --------
    >>> is_picture("no/such/file.png")
    False
    """
    return file_kind(path) in PICTURES.values()
