"""Keep a server small in which threads decode images of any size (glibc)."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def keep_little_memory() -> None:
    """Make glibc map what is larger than 1 MiB, so that it is given back when freed, and keep the
    rest in two places instead of eight per core: by default each thread keeps what its images
    took."""
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
        mallopt(-8, 2)  # M_ARENA_MAX


def give_back_memory() -> None:
    """Give kept memory back to the system."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
