"""SHA256SUMS: digests of the files in a folder, which `sha256sum -c SHA256SUMS` checks, too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rmadapter.errors import UserError
from rmadapter.support.files import CHUNK, read_text, write_text

SUMS = "SHA256SUMS"
SUMS_BYTES = 2**20  # most bytes of such a file
Sign = tuple[int, int, int]


def sha256(file: Path, kind: str = "sha256") -> str:
    """Return the SHA-256 of a file in hex, or another digest of hashlib. Raises UserError for a
    file that cannot be read."""
    try:
        if not file.is_file():
            raise FileNotFoundError(2, "no such file")
        digest = hashlib.new(kind)
        with open(file, "rb") as opened:
            while part := opened.read(CHUNK):
                digest.update(part)
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"{file}: not readable ({error.strerror or error})") from None


def write_sums(
    folder: Path, names: Iterable[str], to_come: Mapping[str, str] | None = None
) -> None:
    """Write SHA256SUMS for the named files that exist. to_come: SHA-256 of files that are written
    next."""
    sums = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    sums |= to_come or {}
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def check_sums(folder: Path, needed: Iterable[str] = ()) -> None:
    """Raises UserError if a file has changed since it was saved, or a needed one is not listed.

    A folder without SHA256SUMS passes, as it may be about to be saved. A missing file passes, too.
    """
    if not (folder / SUMS).exists():
        return
    sums = _read(folder / SUMS)
    for name, wanted in sums.items():
        if (folder / name).exists() and sha256(folder / name) != wanted:
            raise UserError(
                f"{folder / name}: does not match {SUMS}: restore the file, or delete its line in "
                f"{SUMS} if you changed it yourself"
            )
    for name in needed:
        if name not in sums:
            raise UserError(f"{folder / name}: not listed in {SUMS}; it belongs to another run")


def sign(folder: Path) -> Sign | None:
    """Return a value that changes when the folder is saved again, or None while SHA256SUMS, which
    is removed first and written last, is missing."""
    try:
        status = (folder / SUMS).stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(file: Path) -> dict[str, str]:
    """Return SHA-256 by file name; only files in the folder itself may be listed."""
    try:
        lines = read_text(file, most=SUMS_BYTES).splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text file; restore or delete it") from None
    matches = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line) for line in lines]
    if not all(matches):
        raise UserError(f"{file}: not lines of a SHA-256 and a name; restore or delete it")
    return {match[2]: match[1] for match in matches if match}
