"""Fetches archives from the network (resumed and checked) and unpacks them only below their folder."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rmadapter.errors import UserError
from rmadapter.support.checksums import sha256
from rmadapter.support.files import read_text, write_text

CHUNK = 1 << 20
FEW, BLOCK = 10_000, 4096  # files that any archive may hold; bytes that one takes on most disks
TRIES = 5  # in a row without new bytes
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
DIGESTS = ".archives.sha256"  # in the format of sha256sum, one line per archive


def fetch(
    url: str,
    path: Path,
    digest: str = "",
    most: int = 1 << 40,
    show: Callable[[int], Any] | None = None,
) -> None:
    """Fetch a file, resuming an earlier call. digest: "md5:..." or "sha256:...", "" if unknown.

    show: called with the number of bytes so far. Raises UserError if the connection is lost too
    often, for more than `most` bytes, and for a wrong digest, in which case the file is removed.
    """
    if path.exists():
        return
    part, tries = path.with_name(f"{path.name}.part"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _get(url, part, before, most, show or (lambda _: None)):
                break
            error: Exception | None = None
        except (OSError, http.client.HTTPException) as cut:
            error = cut
        tries = 1 if part.exists() and part.stat().st_size > before else tries + 1
        if tries == TRIES or isinstance(error, urllib.error.HTTPError):
            raise UserError(
                f"{url}: {error or 'connection lost'}; run the same command again to resume"
            ) from error
    kind, _, wanted = digest.partition(":")
    if wanted and sha256(part, kind) != wanted:
        part.unlink()
        raise UserError(f"{url}: the {kind} of the file is not {wanted}, so it was removed")
    os.replace(part, path)


def _get(url: str, part: Path, start: int, most: int, show: Callable[[int], Any]) -> bool:
    """Append what is missing to `part`; False if the connection ended before the file."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing after `start`
            return True
        raise
    with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
        size, length = file.tell(), answer.headers.get("Content-Length", "")
        end = size + int(length) if length.isdecimal() else 0
        _check(url, end, most)
        while block := answer.read(CHUNK):
            size += len(block)
            _check(url, size, most)
            file.write(block)
            show(size)
    return not end or size == end


def _check(url: str, size: int, most: int) -> None:
    if size > most:
        raise UserError(f"{url}: {size:,} bytes, more than this archive can have ({most:,})")


def remember(archive: Path, book: Path) -> None:
    """Record an archive's SHA-256 in `book`. If another one is recorded, remove the archive and
    raise UserError."""
    lines = read_text(book, "a list of digests").splitlines() if book.exists() else []
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = sha256(archive)
    if known.setdefault(archive.name, found) != found:
        archive.unlink()
        raise UserError(
            f"{archive.name}: not the file of the first download (sha256 {found[:12]}; {book} has "
            f"{known[archive.name][:12]}), so it was removed; if the new one is right, delete that line"
        )
    write_text(book, "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items())))


# Unpacking


def unpack(archive: Path, folder: Path, most: int = 1 << 40, *, fresh: bool = False) -> int:
    """Unpack a zip or tar file, and archives inside it, below a folder; returns how many of `most`
    bytes are left.

    fresh: the folder is empty, so a file that exists is a duplicate (two inner archives may share
    names) and raises UserError. Also raises UserError for links, members that leave the folder,
    more than `most` bytes or FEW files and another for each BLOCK bytes, and damaged archives.
    Files already unpacked stay.
    """
    room = _Room(most, FEW + most // BLOCK)
    _unpack(archive, folder, room, fresh)
    return room.bytes


@dataclass
class _Room:
    """What may still be unpacked."""

    bytes: int
    files: int


def _unpack(archive: Path, folder: Path, room: _Room, fresh: bool) -> None:
    most = room.bytes
    try:
        for name, size, content in (_of_zip if archive.suffix.lower() == ".zip" else _of_tar)(
            archive
        ):
            path = folder / _inside(name, archive)
            room.bytes, room.files = room.bytes - size, room.files - 1
            if room.bytes < 0:
                raise UserError(
                    f"{archive}: unpacks to more than {most:,} bytes, so it is not what it says"
                )
            if room.files < 0:
                raise UserError(
                    f"{archive}: unpacks to far too many files, so it is not what it says"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            if fresh and path.exists():
                raise UserError(
                    f"{archive}: holds {name!r:.80} twice, or an archive in it does; unpack it first"
                )
            with content() as packed, open(path, "wb") as file:
                shutil.copyfileobj(packed, file, CHUNK)
            hidden = any(
                part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts
            )  # Finder's notes
            if name.lower().endswith(ARCHIVES) and not hidden:
                _unpack(path, path.parent, room, fresh)
                path.unlink()
    except UserError:
        raise
    except Exception as error:  # on damaged archives their readers raise nearly anything
        raise UserError(
            f"{archive}: cannot be unpacked ({error or type(error).__name__})"
        ) from error


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    drive = re.match("[A-Za-z]:", name) or (
        os.name == "nt" and ":" in name
    )  # other colons are Windows's alone
    if (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or drive
        or "\\" in name
        or "\0" in name
    ):
        raise UserError(
            f"{archive}: holds {name!r:.80}, which leads out of its folder; nothing in it can be trusted"
        )
    return path


Member = tuple[str, int, Callable[[], Any]]


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(
                    f"{archive}: holds {info.filename!r:.80}, which is a link or a device"
                )
            if info.is_dir():
                _inside(_written(info), archive)
            else:  # no more than file_size comes out, whatever the data
                yield _written(info), info.file_size, lambda info=info: file.open(info)  # type: ignore[misc]


def _written(info: zipfile.ZipInfo) -> str:
    """The name of a zip's member. The Finder and Info-ZIP write UTF-8 without saying so, PowerShell
    backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:  # zipfile took it for the first PC's character set
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    climbs = name.startswith("\\") or ":" in name or ".." in re.split(r"[/\\]", name)
    return name if climbs else name.replace("\\", "/")


def _of_tar(archive: Path) -> Iterator[Member]:
    opened = gzip.open if archive.suffix.lower() in (".gz", ".tgz") else open
    with (
        opened(archive, "rb") as packed,
        tarfile.open(fileobj=(sparing := _Sparing(packed)), mode="r:") as file,  # type: ignore
    ):
        for member in file:
            if not (member.isdir() or member.isreg()):
                raise UserError(
                    f"{archive}: holds {member.name!r:.80}, which is a link or a device"
                )
            if member.isdir():
                _inside(
                    f"{member.name}/x", archive
                )  # its name may be ".", as `tar -C photos .` has it
            else:
                yield member.name, member.size, lambda member=member: file.extractfile(member)  # type: ignore[misc]
        if sparing.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
            raise ValueError("its end is missing, or it is damaged in between")


class _Sparing:
    """A file that refuses large reads: a tar header may claim any size. last: what was read last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.last = file, b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 * CHUNK:
            raise ValueError("a header of absurd size")
        self.last = self._file.read(size)
        return self.last
