"""Fingerprints that tell one data set from another."""

from typing import Any
from zlib import crc32

import numpy as np

from xpconv.backend import Array, to_host

__all__ = ["checksum", "fingerprint"]


def fingerprint(X: Array, y: Array) -> dict[str, Any]:
    """Return the shape of `X` and checksums of about 16 evenly spaced images and of all labels.

    Examples
    --------
    >>> fingerprint(np.zeros((2, 3)), np.array([0, 1]))
    {'shape': [2, 3], 'images': 4069045141, 'labels': 538004427}
    """
    images = X[:: max(X.shape[0] // 16, 1)]
    return {"shape": list(X.shape), "images": checksum(images), "labels": crc32(to_host(y).astype("<i8").tobytes())}


def checksum(array: Array) -> int:
    """Return the CRC-32 of an array's values, the same for every library, dtype and memory layout.

    Examples
    --------
    >>> checksum(np.ones(2)) == checksum(np.ones(2, np.float32))
    True
    """
    return crc32(np.ascontiguousarray(to_host(array), "<f8").tobytes())
