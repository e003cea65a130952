"""The note on files that are not read, and advice on how to read them."""

from __future__ import annotations

import os
from collections import Counter

from rmadapter.data.decode_limits import formats

HEIC = (".heic", ".heics", ".heif", ".heifs", ".hif")
RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip


def advice(name: str) -> str:
    """How to make images with the suffix of `name` readable; "" if unknown. `name` may be the
    suffix alone."""
    suffix = os.path.splitext(f"x{name}" if name.startswith(".") else name)[1].lower()
    if suffix in RAW:
        return f"{suffix} is a camera's RAW format: convert it to JPEG first"
    return (
        f"pip install 'rmadapter[heic]' to read {suffix}"
        if suffix in HEIC and suffix not in formats()
        else ""
    )


def ignored_note(ignored: Counter[str]) -> str:
    """ "5 files ignored: .heic 3, .txt 2; pip install 'rmadapter[heic]' reads .heic", or nothing.

    ignored: number of files by suffix or by other reason.
    """
    ordered = sorted(ignored, key=lambda kind: (-ignored[kind], kind))
    kinds = ", ".join(f"{kind} {ignored[kind]}" for kind in ordered)
    more = dict.fromkeys(
        text for kind in ordered if kind.startswith(".") and (text := advice(kind))
    )
    count = ignored.total()
    return "; ".join([f"{count} file{'s' * (count > 1)} ignored: {kinds}", *more]) if count else ""
