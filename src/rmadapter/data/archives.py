"""Zip and tar files: fetch them from the network, resumed and checked, and unpack them only below
their folder, once into the cache."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
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
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

from rmadapter.data.budget import Budget
from rmadapter.data.decode import image_formats
from rmadapter.data.names import SPLITS
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import (
    cache_folder,
    read_text,
    sha256,
    shortened,
    state_of,
    walk,
    write_text,
)
from rmadapter.support.locks import build_once

CHUNK_BYTES = 1 << 20
MAX_TRIES = 5  # in a row without new bytes
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
TEXT_NAMES = re.compile(
    r"(readme|licen[cs]e|copying)(\.(txt|md|rst|html|pdf))?|.*\.md", re.IGNORECASE
)  # no data
NESTED_COST = 50  # files that unpacking an archive in an archive costs
MAX_LISTING = 2**24  # bytes of the list of files of a zip of unknown origin
MEMORY_FACTOR = 10  # bytes of memory that a byte of a zip's list of files costs
DIGESTS_FILE = ".archives.sha256"  # in the format of sha256sum, one line per archive


def fetch(
    url: str,
    path: Path,
    digest: str = "",
    most: int = 1 << 40,
    show: Callable[[int], object] = lambda size: None,
) -> None:
    """Fetch a file, resuming an earlier call.

    Args:
        url: Its address.
        path: Where it goes; nothing is fetched if it is there.
        digest: "md5:..." or "sha256:...", "" if unknown.
        most: Bytes that it may have.
        show: Called with the number of bytes so far.

    Raises:
        UserError: The connection is lost too often, the file has too many bytes, or a wrong digest,
            in which case it is removed.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    tries = 0
    while True:
        before = part.stat().st_size
        try:
            _get(url, part, before, most, show)
            break
        except (OSError, http.client.HTTPException) as error:
            tries = 1 if part.stat().st_size > before else tries + 1
            if tries == MAX_TRIES or isinstance(error, urllib.error.HTTPError):
                raise UserError(f"{url}: {error}; run the same command again to resume") from error
    kind, _, wanted = digest.partition(":")
    if wanted and sha256(part, kind) != wanted:
        part.unlink()
        raise UserError(f"{url}: the {kind} of the file is not {wanted}, so it was removed")
    os.replace(part, path)


def _get(url: str, part: Path, start: int, most: int, show: Callable[[int], object]) -> None:
    """Append what is missing to `part`. Raises OSError or HTTPException if the connection ends
    before the file."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing after `start`
            return
        raise
    with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
        size = file.tell()
        length = answer.headers.get("Content-Length", "")
        end = size + int(length) if length.isdecimal() else 0
        _check_size(url, end, most)
        while block := answer.read(CHUNK_BYTES):
            size += len(block)
            _check_size(url, size, most)
            file.write(block)
            show(size)
    if end and size != end:
        raise ConnectionError("connection lost")


def _check_size(url: str, size: int, most: int) -> None:
    if size > most:
        raise UserError(f"{url}: {size:,} bytes, more than this archive can have ({most:,})")


def remember(archive: Path, book: Path) -> None:
    """Record an archive's SHA-256 in `book`. If another one is recorded, remove the archive and
    raise UserError."""
    known: dict[str, str] = {}
    for line in read_text(book, "a list of digests").splitlines() if book.exists() else []:
        digest, _, name = line.partition("  ")
        known[name] = digest
    digest = sha256(archive)
    first = known.setdefault(archive.name, digest)
    if first != digest:
        archive.unlink()
        raise UserError(
            f"{archive.name}: not the file of the first download (sha256 {digest[:12]}; {book} has "
            f"{first[:12]}), so it was removed; if the new one is right, delete that line"
        )
    write_text(book, "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items())))


# Unpacking


def unpack(archive: Path, folder: Path, budget: Budget, *, fresh: bool = False) -> None:
    """Unpack a zip or tar file, and archives inside it, below a folder.

    Args:
        archive: The file.
        folder: Where its members go; those already unpacked stay after an error.
        budget: What unpacking may take.
        fresh: Whether the folder is empty, so that a file that exists is a duplicate, which is
            refused: two inner archives may share names.

    Raises:
        UserError: Links, members that leave the folder, what the budget does not allow, or a
            damaged archive.
    """
    is_zip = archive.suffix.lower() == ".zip"
    try:
        if is_zip:
            budget.take("memory", MEMORY_FACTOR * listing_size(archive), archive)
        for name, size, content in (_zip_members if is_zip else _tar_members)(archive, budget):
            path = folder / _inside(name, archive)
            budget.take("disk", size, archive)
            path.parent.mkdir(parents=True, exist_ok=True)
            if fresh and path.exists():
                raise UserError(
                    f"{archive}: holds {name!r:.80} twice, or an archive in it does; unpack it "
                    "first"
                )
            with content() as packed, open(path, "wb") as file:
                shutil.copyfileobj(packed, file, CHUNK_BYTES)
            # of these, Finder's notes are hidden
            hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
            if name.lower().endswith(ARCHIVE_SUFFIXES) and not hidden:
                budget.take("files", NESTED_COST, archive)
                unpack(path, path.parent, budget, fresh=fresh)
                path.unlink()
    except UserError:
        raise
    except Exception as error:  # on damaged archives their readers raise nearly anything
        reason = error or type(error).__name__
        raise UserError(f"{archive}: cannot be unpacked ({quoted(str(reason))})") from error


def _inside(name: str, archive: Path) -> PurePosixPath:
    """Return the path of a member. Raises UserError if it leaves the archive's folder."""
    path = PurePosixPath(name)
    drive = re.match("[A-Za-z]:", name) or (os.name == "nt" and ":" in name)
    odd = drive or "\\" in name or "\0" in name
    if odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(
            f"{archive}: holds {name!r:.80}, which leads out of its folder; nothing in it can be "
            "trusted"
        )
    return path


Member: TypeAlias = "tuple[str, int, Callable[[], IO[bytes]]]"  # name, bytes, and what opens it


def _zip_members(archive: Path, budget: Budget) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        budget.take("files", len(file.infolist()), archive)  # before the first is written
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(
                    f"{archive}: holds {info.filename!r:.80}, which is a link or a device"
                )
            if info.is_dir():
                _inside(_zip_name(info), archive)
            else:  # no more than file_size comes out, whatever the data
                yield _zip_name(info), info.file_size, partial(file.open, info)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a zip's member. The Finder and Info-ZIP write UTF-8 without saying so,
    PowerShell backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:  # zipfile took it for the first PC's character set
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    climbs = name.startswith("\\") or ":" in name or ".." in re.split(r"[/\\]", name)
    return name if climbs else name.replace("\\", "/")


def listing_size(archive: Path) -> int:
    """Return the bytes of the list of files at a zip's end, as its end says, before the list is
    read; 0 if the zip has no end."""
    with open(archive, "rb") as file:
        length = archive.stat().st_size
        file.seek(max(0, length - 2**16 - 100))
        tail = file.read()
        place = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" else tail.rfind(b"PK\5\6")
        if place < 0:
            return 0
        size = int.from_bytes(tail[place + 12 : place + 16], "little")
        locator = tail[max(0, place - 20) : place]
        if locator[:4] == b"PK\6\7":  # of a large zip: where the end for large zips is
            file.seek(min(int.from_bytes(locator[8:16], "little"), length))
            before = tail[max(0, place - 76) : place]  # zipfile may look there instead
            ends = [one for one in (file.read(48), before[:48]) if one[:4] == b"PK\6\6"]
            large_sizes = [int.from_bytes(one[40:48], "little") for one in ends]
            size = max(size % (2**32 - 1), *large_sizes, 0)
        return size


def _tar_members(archive: Path, budget: Budget) -> Iterator[Member]:
    unzip = gzip.open if archive.suffix.lower() in (".gz", ".tgz") else open
    with ExitStack() as stack:
        bounded = _BoundedFile(stack.enter_context(unzip(archive, "rb")))  # type: ignore[arg-type]
        file = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))  # type: ignore[call-overload]
        for member in file:
            budget.take("files", 1, archive)
            if not (member.isdir() or member.isreg()):
                raise UserError(
                    f"{archive}: holds {member.name!r:.80}, which is a link or a device"
                )
            if member.isdir():  # its name may be ".", as `tar -C photos .` has it
                _inside(f"{member.name}/x", archive)
            else:
                yield member.name, member.size, partial(file.extractfile, member)
        if bounded.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
            raise ValueError("its end is missing, or it is damaged in between")


class _BoundedFile:
    """A file that refuses large reads: a tar header may claim any size. `last` is what was read
    last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last = b""
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 * CHUNK_BYTES:
            raise ValueError("a header of absurd size")
        self.last = self._file.read(size)
        return self.last


def unpack_zip(archive: Path, folder: Path, max_bytes: int, max_files: int) -> Path:
    """Unpack a zip of unknown origin into a new folder.

    Args:
        archive: The zip.
        folder: New folder, which is removed if that fails.
        max_bytes: Bytes of the zip, packed or not.
        max_files: Files that it may hold.

    Returns:
        The `inner` folder.

    Raises:
        UserError: Too many files or bytes, a damaged zip, or as `unpack`.
    """
    if listing_size(archive) > MAX_LISTING:
        raise UserError(
            f"{archive.name}: lists far more files than the {max_files:,} that are allowed"
        )
    try:
        with zipfile.ZipFile(archive) as file:
            count = len(file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{archive.name}: not a readable zip file ({error})") from None
    if count > max_files:
        raise UserError(
            f"{archive.name}: holds {count:,} files, and at most {max_files:,} are allowed"
        )
    folder.mkdir(parents=True)
    try:
        unpack(archive, folder, Budget.of_disk(max_bytes))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return inner(folder)


# Unpacked once, into the cache


def is_packed(path: Path) -> bool:
    """Return whether a path names a zip or tar file, which need not exist."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked_folder(archive: Path) -> Path:
    """Return the cache folder for an archive, which need not exist yet; a changed archive gets
    another one."""
    word = f"{archive.resolve()} {state_of(os.stat(archive))}"
    key = hashlib.sha256(word.encode(errors="surrogateescape")).hexdigest()[:16]
    suffix = next(suffix for suffix in ARCHIVE_SUFFIXES if archive.name.lower().endswith(suffix))
    return cache_folder() / "unpacked" / f"{shortened(archive.name[: -len(suffix)])}-{key}"


def unpack_once(archive: Path, budget: Budget) -> Path:
    """Return the folder with the contents of a zip or tar file, which is unpacked once unless it
    changes.

    Raises:
        UserError: As for `unpack`, and if the cache cannot be written.
    """
    folder = unpacked_folder(archive)
    count = folder.with_name(f".{folder.name}.files")

    def complete() -> bool:  # a program that deletes old files from caches may have taken some
        return folder.is_dir() and not (count.is_file() and _files(folder) != count.read_text())

    def build(stage: Path) -> None:
        budget.allow_file(os.stat(archive).st_size)
        unpack(archive, stage, budget, fresh=True)
        count.write_text(_files(stage), newline="\n", encoding="utf-8")

    build_once(folder, build, complete)
    return folder


def _files(folder: Path) -> str:
    """Return the number of files, as text."""
    return str(sum(len(files) for _, _, files in walk(folder)))


def inner(folder: Path) -> Path:
    """Return the innermost folder of an unpacked archive.

    A folder is entered if it holds nothing but one folder and texts about the data. A folder of a
    split is not entered, nor one of nothing but images, which is a class.
    """
    while True:
        inside = [entry for entry in folder.iterdir() if not _is_about(entry)]
        one = len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink()
        if not one or inside[0].name.casefold() in SPLITS or _is_class(inside[0]):
            return folder
        folder = inside[0]


def _is_about(entry: Path) -> bool:
    text = bool(TEXT_NAMES.fullmatch(entry.name)) and entry.is_file()
    return text or entry.name.startswith((".", "__MACOSX"))


def _is_class(folder: Path) -> bool:
    return all(
        entry.suffix.lower() in image_formats() and entry.is_file() for entry in folder.iterdir()
    )
