"""Freed memory stays with the process: large tensors would otherwise be mapped and zeroed anew each time.

glibc maps every allocation above a threshold by itself and gives it back when it is freed. A training step
frees and takes the same sizes hundreds of times, and a tenth of its time goes into fresh pages
(docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys

# The numbers of glibc's mallopt.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MOST = 2**31 - 1  # bytes: what mallopt takes at most


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = ((MMAP_THRESHOLD, 2**30), (TRIM_THRESHOLD, MOST), (TOP_PAD, 2**26))
    return all(mallopt(which, size) == 1 for which, size in settings)
