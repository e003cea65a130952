"""Frozen activations on disk for later commands: rows of images, up to a limit in bytes.

A file is named by its content, written atomically and never changed, so processes need no locks:
one that finds a file gone computes its rows again. Nothing that goes wrong here ends a run.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmadapter.errors import UserError
from rmadapter.support.files import PART, atomic, cache_folder, write_text
from rmadapter.support.terminal import note

GB = 1e9
SHARD = 2**26  # bytes of a file, roughly; it is copied in memory while it is written
TAG = "CACHEDIR.TAG"  # tells backup programs to leave this folder out (bford.info/cachedir)
OURS = "Signature: 8a477f597d28d172789f06886806bc55\n# Of rmadapter: `rmadapter cache --clear` removes this folder.\n"
NAME = re.compile(r"[0-9a-f]{16}(\.safetensors)?")


class Rows(NamedTuple):
    """What a file holds. about: a description, for people. keys: say what each row was made from.
    parts: [N, ...]."""

    about: str
    keys: tuple[str, ...]
    parts: Mapping[str, Tensor]


def place() -> Path:
    return cache_folder() / "activations"


@dataclass(frozen=True)
class Store:
    """limit: bytes of all files together; beyond it, the least recently used are removed."""

    folder: Path
    limit: float = 0

    @classmethod
    def of(cls, gigabytes: float) -> Store | None:
        """The store in the user's cache; None if nothing may be kept."""
        return cls(place(), gigabytes * GB) if gigabytes else None

    def read(self, name: str, keys: Sequence[str], parts: Mapping[str, Tensor]) -> list[int]:
        """Fill in the rows of each part [N, ...] that are stored under a name, by their keys;
        return the other rows."""
        places: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            places.setdefault(key, []).append(row)
        for file in sorted((self.folder / name).glob("*.safetensors")) if self._ours() else ():
            found = _checked(file, parts, places) if places else None
            for i, key in enumerate(found.keys if found else ()):
                for row in places.pop(key, ()):
                    for part, tensor in parts.items():
                        tensor[row] = found.parts[part][i]  # type: ignore[union-attr]
        return sorted(row for rows in places.values() for row in rows)

    def write(
        self,
        name: str,
        about: str,
        keys: Sequence[str],
        parts: Mapping[str, Tensor],
        rows: Sequence[int],
    ) -> None:
        """Store some rows, and remove the least recently used files beyond the limit. Does nothing
        if the rows alone exceed it, or if nothing can be written."""
        each = sum(part[0].numel() * part.element_size() for part in parts.values()) if rows else 0
        if not each or each * len(rows) > self.limit or not self._open():
            return
        size = max(SHARD // each, 1)
        with suppress(UserError):  # disk full, or the folder was cleared: computed again later
            for some in (rows[start : start + size] for start in range(0, len(rows), size)):
                own = {part: tensor[list(some)].contiguous() for part, tensor in parts.items()}
                _write(self.folder / name, Rows(about, tuple(keys[row] for row in some), own))
        files = sorted(self.files(), key=lambda one: one[1].st_mtime)
        total = sum(status.st_size for _, status in files)
        for file, status in files:
            if total > self.limit:
                with suppress(OSError):  # Windows keeps files that are open
                    file.unlink()
                total -= status.st_size

    def files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file with rows."""
        for file in self.folder.glob("*/*.safetensors") if self._ours() else ():
            with suppress(OSError):
                yield file, file.stat()

    def contents(self) -> list[dict[str, Any]]:
        """What is stored, by description: number of images, MB, and time of last use in seconds
        since 1970."""
        found: dict[str, dict[str, Any]] = {}
        for file, status in self.files():
            if rows := _read(file):
                one = found.setdefault(
                    rows.about, {"what": rows.about, "images": 0, "mb": 0.0, "used": 0.0}
                )
                one["images"] += len(rows.keys)
                one["mb"] += status.st_size / 1e6
                one["used"] = max(one["used"], status.st_mtime)
        return sorted(found.values(), key=lambda one: one["what"])

    def clear(self) -> int:
        """Remove everything at once; returns the bytes freed. Raises UserError, and removes
        nothing, if the folder holds anything that this class did not write."""
        size = sum(status.st_size for _, status in self.files())
        if self.folder.exists() or self.folder.is_symlink():
            if not self._open():
                raise UserError(
                    f"{self.folder}: not a folder that rmadapter made; nothing was removed"
                )
            for path in sorted(self.folder.rglob("*")):
                if not _known(path):
                    raise UserError(
                        f"{path}: not an rmadapter file: move it elsewhere first; nothing was removed"
                    )
            # A reader has its file open; a writer finds the folder gone, and makes a new one the
            # next time.
            os.replace(
                self.folder, self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(4)}")
            )
        for gone in self.folder.parent.glob(
            f".{self.folder.name}.????????"
        ):  # also if a process was killed here
            shutil.rmtree(gone, ignore_errors=True)
        return size

    def _ours(self) -> bool:
        with suppress(OSError, UnicodeDecodeError):
            return (
                not self.folder.is_symlink()
                and (self.folder / TAG).read_text(encoding="utf-8") == OURS
            )
        return False

    def _open(self) -> bool:
        """Make the folder, readable only by this user. False if the folder is not ours."""
        with suppress(OSError, UserError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (
                not self._ours()
                and not self.folder.is_symlink()
                and all(map(_known, self.folder.iterdir()))
            ):
                self.folder.chmod(0o700)  # made by a writer after `clear` took its folder away
                write_text(self.folder / TAG, OURS)
        return self._ours()


def _known(path: Path) -> bool:
    name = path.name
    return not path.is_symlink() and (
        name == TAG or bool(NAME.fullmatch(name) or PART.fullmatch(name))
    )


def _write(folder: Path, rows: Rows) -> None:
    from safetensors.torch import save

    name = hashlib.sha256(" ".join(rows.keys).encode()).hexdigest()[:16]
    about = {"about": rows.about, "keys": " ".join(rows.keys), "sum": _sum(rows.parts)}
    with atomic(
        folder / f"{name}.safetensors", sync=False
    ) as part:  # the sum detects damage from a power cut
        part.write_bytes(save(dict(rows.parts), about))


def _read(file: Path, check: bool = False) -> Rows | None:
    """Read a file. check: read and verify its tensors too. None if it is gone or damaged; a damaged
    one is removed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
            parts = {part: opened.get_tensor(part) for part in opened.keys()} if check else {}  # noqa: SIM118
            if check and _sum(parts) != about["sum"]:
                raise ValueError
            return Rows(about["about"], tuple(about["keys"].split()), parts)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        note(f"{file}: damaged, so its activations are computed again")
        with suppress(OSError):
            file.unlink()
        return None


def _checked(file: Path, parts: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> Rows | None:
    """The rows of a file, if some are wanted and they have the dtypes and shapes of `parts`."""
    head = _read(file)
    if head is None or not any(key in wanted for key in head.keys):
        return None
    rows = _read(file, check=True)
    kinds = {part: (tensor.dtype, tensor.shape[1:]) for part, tensor in parts.items()}
    if rows is None or kinds != {
        part: (tensor.dtype, tensor.shape[1:]) for part, tensor in rows.parts.items()
    }:
        return None
    with suppress(OSError):
        os.utime(file)
    return rows


def _sum(parts: Mapping[str, Tensor]) -> str:
    total = 0
    for part in sorted(parts):
        total = zlib.crc32(parts[part].contiguous().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
