"""Fingerprints that tell one array from another."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np

from xpconv.backend import Array, to_host

__all__ = ["DIGEST_BYTES", "fingerprint", "image_digests", "row_checksums"]

BLOCK_BYTES = 1 << 24
DIGEST_BYTES = 6  # of each image: two of 100,000 images are equal by chance in one of 50,000 data sets


def fingerprint(a: Array) -> dict[str, Any]:
    """Return the shape, the dtype and the CRC-32 of all values, the same for every library and memory layout.

    Examples
    --------
    >>> fingerprint(np.zeros((2, 3), np.uint8))
    {'shape': [2, 3], 'dtype': 'uint8', 'crc32': 2982322595}
    """
    host, total = to_host(a), 0
    for block in _blocks(np.atleast_1d(host)):
        total = crc32(block.view(np.uint8).data, total)
    return {"shape": list(host.shape), "dtype": host.dtype.name, "crc32": total}


def row_checksums(a: Array) -> np.ndarray:
    """Return the CRC-32 of each row of an array (N, ...), the same for every library and memory layout.

    Returns
    -------
    array (N,) of uint32

    Examples
    --------
    >>> row_checksums(np.zeros((2, 3), np.uint8))
    array([4282505490, 4282505490], dtype=uint32)
    """
    host = to_host(a)
    rows = (row for block in _blocks(host) for row in block.reshape(len(block), -1).view(np.uint8))
    return np.fromiter((crc32(row.data) for row in rows), np.uint32, len(host))


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in little-endian, contiguous blocks of rows, so that no large array is copied at once."""
    step = max(BLOCK_BYTES * len(rows) // max(rows.nbytes, 1), 1)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        yield np.ascontiguousarray(block, block.dtype.newbyteorder("<"))


def image_digests(X: np.ndarray) -> list[bytes]:
    """Return a digest of each image, to find the images that two arrays share.

    Examples
    --------
    >>> digests = image_digests(np.array([[1, 2], [3, 4], [1, 2]], np.uint8))
    >>> digests[0] == digests[2], digests[0] == digests[1]
    (True, False)
    """
    return [blake2b(np.ascontiguousarray(image).tobytes(), digest_size=DIGEST_BYTES).digest() for image in X]
