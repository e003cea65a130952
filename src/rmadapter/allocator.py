"""Training on a CPU frees and takes the same large tensors in every step; let the C library keep them in between."""

from __future__ import annotations

import contextlib
import ctypes


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed, for this process and from now on; False with any other C library.

    By default it takes every large tensor from the system and gives it back at once, and the system then fills each of
    its pages with zeros anew: a third of a million pages per training step of ViT-B/16 with 1,000 classes. The price is
    that the process stays as large as it once was.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD: what is smaller never comes from the system alone. M_TRIM_THRESHOLD: nothing is given back.
        return bool(mallopt(-3, 2**31 - 1) and mallopt(-1, -1))
    return False


def give_back_memory() -> None:
    """Give what is kept back to the system, once; nothing with a C library that cannot."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
