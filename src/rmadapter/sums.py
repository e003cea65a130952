"""SHA256SUMS: what every file of a folder was when it was saved; `sha256sum -c SHA256SUMS` reads it, too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rmadapter.errors import UserError
from rmadapter.files import CHUNK, write_text

SUMS = "SHA256SUMS"
Sign = tuple[int, int, int]


def sha256(file: Path) -> str:
    """In hex. Raises UserError for what is no readable file."""
    try:
        if not file.is_file():
            raise FileNotFoundError(2, "no such file")
        found = hashlib.sha256()
        with open(file, "rb") as opened:
            while part := opened.read(CHUNK):
                found.update(part)
        return found.hexdigest()
    except OSError as error:
        raise UserError(f"{file}: not readable ({error.strerror or error})") from None


def write_sums(folder: Path, names: Iterable[str], to_come: Mapping[str, str] | None = None) -> None:
    """For those of the named files that are there. to_come: SHA-256 of others that will be there next."""
    there = {name: sha256(folder / name) for name in names if (folder / name).is_file()} | dict(to_come or {})
    write_text(folder / SUMS, "".join(f"{there[name]}  {name}\n" for name in sorted(there)))


def check_sums(folder: Path, needed: Iterable[str] = ()) -> None:
    """Raises UserError for a file that has changed since, and for a needed one that was not among them.

    A folder without SHA256SUMS passes, for earlier versions wrote none. So does a file that is gone.
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
    """What is another one when the folder was saved again: SHA256SUMS is removed first, and written last. None while it
    is not there."""
    try:
        found = (folder / SUMS).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(file: Path) -> dict[str, str]:
    """SHA-256 by name; names of files in the folder itself alone."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else [""]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({type(error).__name__})") from None
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line) for line in lines]
    if not all(found):
        raise UserError(f"{file}: not lines of a SHA-256 and a name; restore it, or delete it to do without")
    return {match[2]: match[1] for match in found if match}
