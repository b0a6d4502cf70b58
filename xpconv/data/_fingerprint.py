"""Fingerprints that tell one array from another."""

from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np

from xpconv.backend import Array, to_host

__all__ = ["DIGEST_BYTES", "fingerprint", "image_digests"]

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
    rows = np.atleast_1d(host)
    step = max(BLOCK_BYTES * len(rows) // max(host.nbytes, 1), 1)
    for start in range(0, len(rows), step):  # in blocks, since one that is not contiguous is copied
        block = rows[start : start + step]
        total = crc32(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).view(np.uint8).data, total)
    return {"shape": list(host.shape), "dtype": host.dtype.name, "crc32": total}


def image_digests(X: np.ndarray) -> list[bytes]:
    """Return a digest of each image, to find the images that two arrays share.

    Examples
    --------
    >>> digests = image_digests(np.array([[1, 2], [3, 4], [1, 2]], np.uint8))
    >>> digests[0] == digests[2], digests[0] == digests[1]
    (True, False)
    """
    return [blake2b(np.ascontiguousarray(image).tobytes(), digest_size=DIGEST_BYTES).digest() for image in X]
