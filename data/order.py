"""An order of n things that a key decides: the same under every version of every library.

The indices are sorted by SHA-256 of the key and the index.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray


def keyed_order(n: int, key: str) -> NDArray[np.int64]:
    """The indices 0 to n - 1 in the order of a key; int64[n]."""
    digests = b"".join([sha256(f"{key} {index}".encode()).digest() for index in range(n)])
    # As four big-endian words they sort as the bytes do; the last key of lexsort is the first that counts.
    words = np.frombuffer(digests, dtype=">u8").reshape(n, 4).astype(np.uint64)
    return np.lexsort(words.T[::-1])
