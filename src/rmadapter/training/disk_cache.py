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
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from rmadapter.errors import UserError
from rmadapter.support.files import PART_NAME, atomic, cache_folder, write_text
from rmadapter.support.terminal import note

GB = 1e9
FEATURES_BYTES = 1e9  # of what is kept unasked, which holds no tokens: 500,000 images of width 512
CLOCK_SKEW = 60.0  # seconds by which the clocks of machines that share the folder may differ
SHARD_BYTES = 2**26  # bytes of a file, roughly; it is copied in memory while it is written
# files of fewer bytes, which are joined beyond this number
SMALL_BYTES, MAX_SMALL_FILES = 2**20, 32
TAG = "CACHEDIR.TAG"  # tells backup programs to leave this folder out (bford.info/cachedir)
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Of rmadapter: `rmadapter cache --clear` removes this folder.\n"
)
FILE_NAME = re.compile(r"[0-9a-f]{16}(\.safetensors)?")


class Rows(NamedTuple):
    """The content of a file.

    Attributes:
        about: Description for people.
        keys: Keys that name what each row was made from.
        parts: Tensors [N, ...] by name.
    """

    about: str
    keys: tuple[str, ...]
    parts: Mapping[str, Tensor]


class Entry(TypedDict):
    """Everything stored under one description.

    Attributes:
        what: Description.
        images: Number of images.
        mb: Megabytes.
        used: Time of the last use in seconds since 1970.
    """

    what: str
    images: int
    mb: float
    used: float


def place() -> Path:
    """Return the folder of the activations in the user's cache."""
    return cache_folder() / "activations"


@dataclass(frozen=True)
class Store:
    """A folder of activations.

    Args:
        folder: Folder.
        limit: Bytes of all files together, beyond which the least recently used are removed.
    """

    folder: Path
    limit: float = 0

    @classmethod
    def of(cls, gigabytes: float) -> Store | None:
        """Return the store in the user's cache; None if nothing may be kept."""
        return cls(place(), gigabytes * GB) if gigabytes else None

    @classmethod
    def of_features(cls) -> Store:
        """Return the store in the user's cache for features, which nobody asked to keep: it removes
        no more than it adds where the files take more already."""
        store = cls(place())
        return replace(store, limit=max(FEATURES_BYTES, sum(s.st_size for _, s in store.files())))

    def read(self, name: str, keys: Sequence[str], parts: Mapping[str, Tensor]) -> list[int]:
        """Fill in the rows of each part [N, ...] that are stored under a name, by their keys;
        return the other rows."""
        missing: dict[str, list[int]] = {}  # key -> rows
        for row, key in enumerate(keys):
            missing.setdefault(key, []).append(row)
        for file in sorted((self.folder / name).glob("*.safetensors")) if self._is_ours() else ():
            stored = _matching(file, parts, missing)
            if stored is None:
                continue
            for i, key in enumerate(stored.keys):
                for row in missing.pop(key, ()):
                    for part, tensor in parts.items():
                        tensor[row] = stored.parts[part][i]
        return sorted(row for rows in missing.values() for row in rows)

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
        if not each or each * len(rows) > self.limit or not self._make():
            return
        size = max(SHARD_BYTES // each, 1)
        # disk full, or the folder was cleared: computed again later
        with suppress(UserError, OSError):
            for start in range(0, len(rows), size):
                batch = list(rows[start : start + size])
                kept = {part: tensor[batch].contiguous() for part, tensor in parts.items()}
                _write(self.folder / name, Rows(about, tuple(keys[row] for row in batch), kept))
        files = sorted(self.files(), key=_last_use)
        total = sum(status.st_size for _, status in files)
        for file, status in files:
            if total > self.limit:
                with suppress(OSError):  # Windows keeps files that are open
                    file.unlink()
                    file.parent.rmdir()  # unless it holds others
                total -= status.st_size

    def files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield every file with rows."""
        for file in self.folder.glob("*/*.safetensors") if self._is_ours() else ():
            with suppress(OSError):
                yield file, file.stat()

    def contents(self) -> list[Entry]:
        """Summarise what is stored, sorted by description."""
        entries: dict[str, Entry] = {}
        for file, status in self.files():
            rows = _read(file)
            if rows is None:
                continue
            empty = Entry(what=rows.about, images=0, mb=0.0, used=0.0)
            entry = entries.setdefault(rows.about, empty)
            entry["images"] += len(rows.keys)
            entry["mb"] += status.st_size / 1e6
            entry["used"] = max(entry["used"], status.st_mtime)
        return sorted(entries.values(), key=lambda entry: entry["what"])

    def clear(self) -> int:
        """Remove everything at once and return the bytes freed. Raises UserError, and removes
        nothing, if the folder holds anything that this class did not write."""
        size = sum(status.st_size for _, status in self.files())
        if self.folder.exists() or self.folder.is_symlink():
            if not self._make():
                raise UserError(f"{self.folder}: rmadapter did not make it; nothing was removed")
            for path in sorted(self.folder.rglob("*")):
                if not _is_known(path):
                    raise UserError(
                        f"{path}: not a file of rmadapter, move it elsewhere; nothing was removed"
                    )
            # A reader has its file open; a writer that finds the folder gone makes a new one.
            trash = f".{self.folder.name}.{secrets.token_hex(4)}"
            os.replace(self.folder, self.folder.with_name(trash))
        # Including what a killed process left behind.
        for trashed in self.folder.parent.glob(f".{self.folder.name}.????????"):
            shutil.rmtree(trashed, ignore_errors=True)
        return size

    def _is_ours(self) -> bool:
        with suppress(OSError, UnicodeDecodeError):
            tag = (self.folder / TAG).read_text(encoding="utf-8")
            return not self.folder.is_symlink() and tag == TAG_TEXT
        return False

    def _make(self) -> bool:
        """Make the folder, readable only by this user. Return False if it belongs to others."""
        with suppress(OSError, UserError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            untagged = not self._is_ours() and not self.folder.is_symlink()
            if untagged and all(map(_is_known, self.folder.iterdir())):
                self.folder.chmod(0o700)  # made by a writer after `clear` took its folder away
                write_text(self.folder / TAG, TAG_TEXT)
        return self._is_ours()


def _is_known(path: Path) -> bool:
    """Return whether this module may have written the file or folder."""
    known = path.name == TAG or FILE_NAME.fullmatch(path.name) or PART_NAME.fullmatch(path.name)
    return bool(known) and not path.is_symlink()


def _write(folder: Path, rows: Rows) -> None:
    from safetensors.torch import save

    name = hashlib.sha256(" ".join(rows.keys).encode()).hexdigest()[:16]
    # The sum detects damage from a power cut.
    about = {"about": rows.about, "keys": " ".join(rows.keys), "sum": checksum(rows.parts)}
    with atomic(folder / f"{name}.safetensors", sync=False) as part:
        part.write_bytes(save(dict(rows.parts), about))


def _read(file: Path, check: bool = False) -> Rows | None:
    """Read a file; return None if it is gone or damaged, and remove a damaged one.

    Args:
        file: File to read.
        check: Whether to read and verify its tensors, too.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
            parts = {part: opened.get_tensor(part) for part in opened.keys()} if check else {}  # noqa: SIM118
            if check and checksum(parts) != about["sum"]:
                raise ValueError
            return Rows(about["about"], tuple(about["keys"].split()), parts)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        note(f"{file}: damaged and removed; its activations are computed again")
        with suppress(OSError):
            file.unlink()
        return None


def _matching(file: Path, parts: Mapping[str, Tensor], keys: Mapping[str, object]) -> Rows | None:
    """Return the rows of a file that has any of the keys, in the formats and shapes of `parts`."""
    head = _read(file) if keys else None
    if head is None or not any(key in keys for key in head.keys):
        return None
    rows = _read(file, check=True)
    if rows is None or _kinds(rows.parts) != _kinds(parts):
        return None
    with suppress(OSError):
        os.utime(file)
    return rows


def _last_use(file: tuple[Path, os.stat_result]) -> float:
    """Return the time of the last use; 0 for one in the future, of before the clock was set back,
    which would outlive all that is written now."""
    used = file[1].st_mtime
    return used if used < time.time() + CLOCK_SKEW else 0.0


def _kinds(parts: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {part: (tensor.dtype, tensor.shape[1:]) for part, tensor in parts.items()}


def checksum(parts: Mapping[str, Tensor], text: str = "") -> str:
    """Return a CRC-32 of tensors with their names and shapes, and of a text, which damage
    changes."""
    total = zlib.crc32(text.encode())
    for name, part in sorted(parts.items()):
        total = zlib.crc32(f"{name} {part.dtype} {[*part.shape]}".encode(), total)
        plain = part.detach().cpu().contiguous().reshape(-1)
        total = zlib.crc32(plain.view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
