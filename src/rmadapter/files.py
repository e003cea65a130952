"""Writing files so that nothing is ever left half written."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rmadapter.errors import UserError

PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # as `atomic` calls its temporary files
CHUNK = 1 << 24
ACTIVATIONS = ".activations"  # a folder in that of a run, which only an unfinished one needs


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well and vanishes otherwise.

    Raises UserError when the disk is full or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            # mkstemp makes private files; what we leave behind is as readable as any other file
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason}); nothing was changed there") from error


def parts(*folders: Path) -> list[Path]:
    """What writers that were killed left in some folders, and what others are writing there now."""
    return [path for folder in folders for path in folder.glob(".*.part") if PART.fullmatch(path.name)]


def reserve(path: Path, size: int) -> None:
    """Take room for the first bytes of a file. Raises OSError when there is too little.

    Where a disk fills under a file that is mapped into memory, the system ends the process without a word.
    """
    with open(path, "rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; the lone surrogates of file names that are not UTF-8 become \\udcXX, as in JSON."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable JSON ({type(error).__name__})") from None
