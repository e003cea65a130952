"""SHA256SUMS: the digest of every file in a folder as it was saved; `sha256sum -c SHA256SUMS` reads
it too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rmadapter.errors import UserError
from rmadapter.support.files import CHUNK, read_text, write_text

SUMS = "SHA256SUMS"
SUMS_BYTES = 2**20  # bytes of it
Sign = tuple[int, int, int]


def sha256(file: Path, kind: str = "sha256") -> str:
    """SHA-256 of a file in hex, or another kind of hashlib's. Raises UserError if it is not a
    readable file."""
    try:
        if not file.is_file():
            raise FileNotFoundError(2, "no such file")
        found = hashlib.new(kind)
        with open(file, "rb") as opened:
            while part := opened.read(CHUNK):
                found.update(part)
        return found.hexdigest()
    except OSError as error:
        raise UserError(f"{file}: not readable ({error.strerror or error})") from None


def write_sums(
    folder: Path, names: Iterable[str], to_come: Mapping[str, str] | None = None
) -> None:
    """Write SHA256SUMS for the named files that exist. to_come: SHA-256 of files that are written
    next."""
    there = {name: sha256(folder / name) for name in names if (folder / name).is_file()} | dict(
        to_come or {}
    )
    write_text(folder / SUMS, "".join(f"{there[name]}  {name}\n" for name in sorted(there)))


def check_sums(folder: Path, needed: Iterable[str] = ()) -> None:
    """Raises UserError if a file has changed since it was saved, or if a needed one is not listed.

    A folder without SHA256SUMS passes: it may be about to be saved. So does
    a listed file that is gone.
    """
    if not (folder / SUMS).exists():
        return
    sums = _read(folder / SUMS)
    for name, wanted in sums.items():
        if (folder / name).exists() and sha256(folder / name) != wanted:
            raise UserError(
                f"{folder / name}: does not match {SUMS}; the folder is damaged or mixed: restore the "
                f"file, or delete its line in {SUMS} if you changed it yourself"
            )
    for name in needed:
        if name not in sums:
            raise UserError(f"{folder / name}: not listed in {SUMS}; it belongs to another run")


def sign(folder: Path) -> Sign | None:
    """A value that changes when the folder is saved again, since SHA256SUMS is removed first and
    written last. None while it is missing."""
    try:
        found = (folder / SUMS).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(file: Path) -> dict[str, str]:
    """SHA-256 by file name; accepts only files in the folder itself."""
    try:
        lines = read_text(file, most=SUMS_BYTES).splitlines()
    except UnicodeDecodeError:
        raise UserError(
            f"{file}: not a text file; restore it, or delete it to do without"
        ) from None
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line) for line in lines]
    if not all(found):
        raise UserError(
            f"{file}: not lines of a SHA-256 and a name; restore it, or delete it to do without"
        )
    return {match[2]: match[1] for match in found if match}
