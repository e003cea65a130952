"""The user's cache folder: what it holds, by kind, and how it is cleared.

Everything of a known kind can be made again. Other files are neither counted nor removed, since
RMADAPTER_CACHE may name a folder that holds more.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rmadapter.support.files import PART_NAME, cache_folder, walk
from rmadapter.support.locks import LOCK, is_held

CLEARED_PREFIX = ".cleared-"  # prefix of what is being removed; a killed process leaves it
WRITER_SECONDS = 3600.0  # for which the temporary file of a writer counts as in use


@dataclass(frozen=True)
class Kind:
    """Entries of the cache.

    Args:
        about: What they hold.
        folder: Folder that they are in, in the cache.
        name: Pattern of their names.
        file: Pattern of the names of files in them.
    """

    about: str
    folder: str
    name: str
    file: str = ".*"


KINDS = {
    "activations": Kind(
        "activations of frozen blocks", "activations", "[0-9a-f]{16}", r"[0-9a-f]{16}\.safetensors"
    ),
    "backbones": Kind(
        "digests and class weights of backbones",
        "backbones",
        r"[0-9a-f]{32}\.(json|safetensors)",
    ),
    "crops": Kind("images cut out of images", "crops", "[0-9a-f]{2}", r".+-[0-9a-f]{24}\.png"),
    "datasets": Kind("tables of `datasets`", "datasets/parquet", "default-[0-9a-f]{16}"),
    "images": Kind("images taken out of tables", "images", "[0-9a-f]{2}", "[0-9a-f]{24}-.+"),
    "pocket": Kind("the backbone `pocket`", "", "pocket-[0-9a-f]{12}"),
    "serve": Kind("runs exported by `serve`", "serve", "[0-9a-f]{32}"),
    "unpacked": Kind("unpacked archives", "unpacked", ".+-[0-9a-f]{16}"),
    "web": Kind("what `export --to web` needs", "", r"onnxruntime-web-.+\.tgz"),
}


@dataclass(frozen=True)
class Usage:
    """What the cache holds of a kind.

    Args:
        kind: Name of the kind.
        about: What its entries hold.
        files: Number of files.
        bytes: Their size.
        used: Time of the last use in seconds since 1970, or 0.
    """

    kind: str
    about: str
    files: int
    bytes: int
    used: float


def usage(kind: str) -> Usage:
    """Count the files of a kind. Links are not followed."""
    count, size, used = 0, 0, 0.0
    for entry in _entries(kind):
        for file in _files(entry):
            with suppress(OSError):
                status = file.lstat()
                count, size = count + 1, size + status.st_size
                used = max(used, status.st_mtime, status.st_atime)
    return Usage(kind, KINDS[kind].about, count, size, used)


def clear(kind: str) -> list[Path]:
    """Remove everything of a kind, and return the entries that stay because they are in use.

    In use are entries that a process is building, and those with files that are being written. A
    process that has opened a file can read on; one that opens it later misses it.
    """
    _remove_cleared()
    busy: list[Path] = []
    for entry in _entries(kind):
        if _in_use(entry):
            busy.append(entry)
            continue
        # Renamed first: other processes see all of an entry or nothing.
        with suppress(FileNotFoundError):
            os.replace(entry, cache_folder() / f"{CLEARED_PREFIX}{secrets.token_hex(4)}")
    _remove_cleared()
    return busy


def _entries(kind: str) -> Iterator[Path]:
    """Yield the entries of a kind, and what is left of unfinished ones."""
    facts, folder = KINDS[kind], cache_folder()
    for part in Path(facts.folder).parts:
        folder = folder / part
        if folder.is_symlink():
            return
    name = re.compile(rf"{facts.name}|\.{facts.name}\.(part|files)")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if name.fullmatch(path.name) and not path.is_symlink():
            names = [file.name for file in _files(path)] if path.is_dir() else []
            if all(re.fullmatch(facts.file, one) or PART_NAME.fullmatch(one) for one in names):
                yield path


def _files(path: Path, locks: bool = False) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, _, names in walk(path):
        for name in names:
            if name.endswith(LOCK) == locks:
                yield Path(folder, name)


def _in_use(entry: Path) -> bool:
    name = re.sub(r"^\.(.+)\.(part|files)$", r"\1", entry.name)
    beside = [entry.with_name(f".{name}.part{LOCK}"), entry.with_name(f".{name}{LOCK}")]
    if any(map(is_held, [*beside, *_files(entry, locks=True)])):
        return True
    for file in _files(entry):
        with suppress(OSError):
            # a time far in the future is of before the clock was set back, not of a writer
            age = abs(time.time() - file.stat().st_mtime)
            if PART_NAME.fullmatch(file.name) and age < WRITER_SECONDS:
                return True
    return False


def _remove_cleared() -> None:
    for path in cache_folder().glob(f"{CLEARED_PREFIX}????????"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
