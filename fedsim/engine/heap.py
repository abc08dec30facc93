"""Memory that stays: what a step lets go of, the next one needs again.

glibc hands large blocks back to the system as soon as they are free, and asks for them again a moment later; the system
then fills them with zeros, page by page. A step of a network of 1.6 million parameters spent more time on that than on
its arithmetic (benchmarks/engine/NOTES.md).
"""

from __future__ import annotations

import functools
import os
import platform

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
BLOCK = 2**30  # bytes: smaller blocks stay
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep() -> bool:
    """Tells glibc's malloc, in this process, to keep what is freed. Does nothing with another libc, or where the
    environment has settings of its own; says whether it did something."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS):
        return False
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP, BLOCK)) and bool(mallopt(TRIM, BLOCK))
