"""Write files so that none is ever left half written, read files that others wrote, and compare
them with their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from rmadapter.errors import UserError, quoted

if TYPE_CHECKING:
    from torch import Tensor


JsonObject: TypeAlias = dict[str, Any]  # an object of JSON
MAX_TEXT_BYTES = 2**28  # of a text that is read; lists of the largest data sets take half as many
MAX_JSON_MEMORY = 2_000_000_000  # bytes that the values of a text may take in Python
# Files that only the folder of a run has: its record, and the images that were drawn.
RECORD, SPLIT = "run.json", "split.json"
RUNS = "runs"  # folder of the runs that no --out names
SUMS = "SHA256SUMS"
MAX_SUMS_BYTES = 2**20
PART_NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # names of the temporary files of `atomic`
CHUNK_BYTES = 1 << 24
# names that Windows reserves, with any suffix
RESERVED_NAME = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE)
UNSAFE_CHARACTER = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # in a folder name, on some system


@contextmanager
def atomic(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` if the block succeeds, and is
    removed otherwise.

    Args:
        path: The file.
        sync: Whether to wait until the file is on disk; without, a power cut may lose it.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{shortened(path.name)}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".part")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            # mkstemp makes private files; the finished file is as readable as any other
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); nothing was changed") from error


def parts(*folders: Path) -> list[Path]:
    """Return the temporary files in folders, whether being written or left by killed processes."""
    hidden = [path for folder in folders for path in folder.glob(".*.part")]
    return [path for path in hidden if PART_NAME.fullmatch(path.name) and path.is_file()]


def reserve(path: Path, size: int) -> None:
    """Reserve space on disk for the first bytes of a file. Raises OSError if there is too little.

    Without space for a file that is mapped into memory, the system kills the process.
    """
    with open(path, "rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, CHUNK_BYTES):
            file.write(bytes(min(CHUNK_BYTES, size - start)))


def _umask() -> int:
    with _umask_lock:  # between the two calls, another thread would read 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


_umask_lock = threading.Lock()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with the same ends of lines on every system. Lone surrogates,
    which stand for bytes of file names that are not UTF-8, become \\udcXX, as in JSON."""
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace", "\n")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; the library's `save_file` may leave half a file."""
    from safetensors.torch import save

    copies = {name: one.detach().cpu().clone().contiguous() for name, one in tensors.items()}
    content = save(copies, metadata)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def shortened(name: str, end: bool = False) -> str:
    """Return the first 120 bytes of a name, or the last ones with `end`; file systems allow 255."""
    whole = name.encode(errors="surrogatepass")
    return (whole[-120:] if end else whole[:120]).decode(errors="ignore")


def folder_name(label: str) -> str:
    """Return a label as a folder name that is valid on any system."""
    name = UNSAFE_CHARACTER.sub("_", label).strip().rstrip(". ") or "_"
    return f"{name}_" if RESERVED_NAME.fullmatch(name.partition(".")[0].rstrip()) else name


def last_part(path: str) -> str:
    """Return the last component of a POSIX or Windows path."""
    return PureWindowsPath(path).name or path


def own_name(path: str) -> str:
    """Return the name of a folder, and resolve `.` and `..` for it."""
    name = Path(path).name
    return name if name not in ("", "..") or not path else user_path(path).resolve().name


def cache_folder() -> Path:
    """Return the user's cache folder. Everything in it can be made again.

    It is RMADAPTER_CACHE, else rmadapter/ in XDG_CACHE_HOME, else ~/.cache/rmadapter.
    """
    cache = os.environ.get("RMADAPTER_CACHE")
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(cache or home or "~/.cache").expanduser().absolute()
    except RuntimeError:
        raise UserError("there is no home folder: set RMADAPTER_CACHE to a folder") from None
    return folder if cache else folder / "rmadapter"


def check_own(file: Path) -> None:
    """Check that a file of the cache and its folder are this user's, as far as they exist.

    Raises:
        UserError: One is a link, belongs to another user but root, or may be written by all.
    """
    for path in (file, file.parent):
        with contextlib.suppress(OSError):
            state = path.lstat()
            foreign = hasattr(os, "geteuid") and state.st_uid not in (os.geteuid(), 0)
            if foreign or stat.S_ISLNK(state.st_mode) or (os.name == "posix" and state.st_mode & 2):
                raise UserError(f"{path}: a link, or others may write it; it is not used")


# Reading what others wrote


def at_home(word: str) -> str:
    """Expand `~` after `=` in an option, which shells do not, as in --out=~/runs/first."""
    name, _, value = word.partition("=")
    if name.startswith("--") and value.startswith("~"):
        return f"{name}={user_path(value)}"
    return word


def user_path(path: str | Path) -> Path:
    """Return a path with `~` expanded. Raises UserError for an impossible or inaccessible path."""
    try:
        expanded = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(expanded)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{quoted(str(path))}: not a usable path ({_reason(error)})") from None
    return expanded


def walk(
    folder: str | Path,
    followlinks: bool = False,
    onerror: Callable[[OSError], object] | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder with the names of its folders and files, as `os.walk`, at any depth: before
    Python 3.12 that one fails below a thousand."""
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    is_folder = False
                    with contextlib.suppress(OSError):  # a link to itself
                        is_folder = entry.is_dir()
                    (folders if is_folder else files).append(entry.name)
        except OSError as error:
            if onerror:
                onerror(error)
            continue
        yield place, folders, files
        for name in reversed(folders):
            path = os.path.join(place, name)
            if followlinks or not os.path.islink(path):
                waiting.append(path)


def check_files(folder: Path) -> None:
    """Raise UserError for a pipe, a device or a broken link in a folder: a library that opens it by
    its name may wait or read for ever."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.is_file() or entry.is_dir()):
                raise UserError(f"{folder / entry.name}: neither a file nor a folder; remove it")


@contextmanager
def plain_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a plain file for reading. Raises OSError, also for a pipe or device, which may never
    end."""
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("a pipe or device, not a file")
        yield file


@contextmanager
def opened(path: Path, kind: str = "a readable file") -> Iterator[BinaryIO]:
    """Open a plain file for reading. Raises UserError that says that the file is not `kind`."""
    try:
        with plain_file(path) as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{_shown(path)}: not {kind} ({_reason(error)})") from None


def _at_once(name: str, flags: int) -> int:
    """Open a file without waiting for the writer of a pipe."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(
    path: Path,
    kind: str = "a readable text file",
    max_bytes: int = MAX_TEXT_BYTES,
    errors: str = "strict",
) -> str:
    """Read a plain UTF-8 file. Raises UserError like `opened`, also for more bytes than allowed."""
    with opened(path, kind) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(max_bytes + 1) if size <= max_bytes else None
        if data is None or len(data) > max_bytes:  # files of the system, as in /proc, have size 0
            raise UserError(f"{path}: not {kind} (more than {max_bytes:,} bytes)")
        return data.decode("utf-8-sig", errors)


def read_json(
    path: Path,
    max_bytes: int = MAX_TEXT_BYTES,
    without: Collection[str] = (),
    take: Callable[[int], object] | None = None,
) -> Any:
    """Read JSON.

    Args:
        path: The file.
        max_bytes: Largest size of the file.
        without: Keys to drop from every object, which saves memory.
        take: Function that is called with the bytes of memory that the values may take, before
            there are any; by default, more than MAX_JSON_MEMORY are refused.

    Raises:
        UserError: The file is missing, damaged, too large or nested too deeply.
    """
    kind = "readable JSON"
    text = read_text(path, kind, max_bytes)
    if without:  # lists of numbers, as of segmentations, would be most of the values
        keys = "|".join(map(re.escape, without))
        text = re.sub(rf'"({keys})"\s*:\s*\[[\[\]\s\d.,eE+-]*\]', r'"\1":0', text)
    memory = json_memory(text)
    if take:
        take(memory)
    elif memory > MAX_JSON_MEMORY:
        raise UserError(f"{path}: not {kind} (its values take over {MAX_JSON_MEMORY:,} bytes)")

    def hook(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return {key: value for key, value in pairs if key not in without}

    try:
        return json.loads(text, object_pairs_hook=hook if without else None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {kind} ({type(error).__name__})") from None


def json_memory(text: str) -> int:
    """Return about how many bytes Python needs at most for a text of JSON and its values."""
    costs = {"{": 240, "[": 64, ",": 32, '"': 30}  # of an object, a list, a value, half a text
    return len(text) + sum(cost * text.count(mark) for mark, cost in costs.items())


def _shown(path: Path) -> str:
    return str(path) if len(str(path)) < 1000 else quoted(str(path))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return type(error).__name__


def path_from(folder: Path, file: Path) -> str:
    """Return the relative path from a folder to a file, with forward slashes and links resolved.
    Return the whole path if the file is on another drive."""
    home = os.path.realpath(folder)
    return relative_path(os.path.join(os.path.realpath(file.parent), file.name), home)


def relative_path(file: str | Path, folder: str | Path) -> str:
    """Return the relative path from a folder to a file, with forward slashes and links as they are.
    Return the whole path if the file is on another drive."""
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:
        return Path(file).as_posix()


def inert(text: str) -> str:
    """Neutralise a text for spreadsheets: an apostrophe precedes what begins like a formula."""
    text = re.sub(r"[\t\r\n]", " ", text)
    return f"'{text}" if _is_formula(text) else text


def inert_path(name: str) -> str:
    """Neutralise a path for spreadsheets; it still opens."""
    return f"./{name}" if _is_formula(name) else name


def _is_formula(text: str) -> bool:
    """Return whether a text begins like a formula, also in full width, or after characters that
    nobody sees."""
    for mark in text:
        if not mark.isspace() and unicodedata.category(mark) not in ("Cc", "Cf"):
            return unicodedata.normalize("NFKC", mark).startswith(("=", "+", "-", "@"))
    return False


def check_new(*paths: Path) -> None:
    """Raise UserError if a path exists, even as a broken link, or its folder is a file."""
    for path in paths:
        if path.parent.is_file():
            raise UserError(f"{path.parent}: is a file; choose another --out")
        if os.path.lexists(path):
            raise UserError(f"{path}: already exists; choose another --out, or delete it")


def csv_text(header: Sequence[object], rows: Iterable[Sequence[object]], end: str = "\n") -> str:
    """Return the text of a CSV file, whose lines have the given end.

    Cells with semicolons, tabs or returns are quoted, too: where a comma is the decimal mark,
    spreadsheets split at semicolons, and some readers end a line at a return.
    """
    lines = [",".join(map(_csv_cell, row)) for row in (header, *rows)]
    return "".join((line or '""') + end for line in lines)


def _csv_cell(value: object) -> str:
    text = "" if value is None else str(value)
    if re.search(r'[",;\t\r\n]', text):
        text = text.replace('"', '""')
        return f'"{text}"'
    return text


# SHA256SUMS: digests of the files in a folder, which `sha256sum -c SHA256SUMS` checks, too


def sha256(file: Path, kind: str = "sha256") -> str:
    """Return the SHA-256 of a file in hex, or another digest of hashlib. Raises UserError as
    `opened`."""
    digest = hashlib.new(kind)
    with opened(file) as content:
        while part := content.read(CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()


def read_bytes(file: Path, max_bytes: int = -1) -> bytes:
    """Return the content of a file, at most so many bytes. Raises UserError as `opened`."""
    with opened(file) as content:
        return content.read(max_bytes)


def write_sums(
    folder: Path, names: Iterable[str], to_come: Mapping[str, str] | None = None
) -> None:
    """Write SHA256SUMS for files of a folder.

    Args:
        folder: The folder.
        names: Files to list, if they exist.
        to_come: SHA-256 of files that are written next.
    """
    sums = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    sums |= to_come or {}
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def check_sums(folder: Path, needed: Iterable[str] = (), without: Collection[str] = ()) -> None:
    """Compare the files of a folder with its SHA256SUMS.

    A folder without SHA256SUMS passes, as it may be about to be saved. A missing file passes, too.

    Args:
        folder: The folder.
        needed: Files that must be listed.
        without: Files that are not compared.

    Raises:
        UserError: A file has changed since it was saved, or a needed one is not listed.
    """
    if not (folder / SUMS).exists():
        return
    sums = _read_sums(folder / SUMS)
    for name, wanted in sums.items():
        compared = name not in without and (folder / name).exists()
        if compared and sha256(folder / name) != wanted:
            raise UserError(
                f"{folder / name}: does not match {SUMS}: restore the file, or delete its line in "
                f"{SUMS} if you changed it yourself"
            )
    for name in needed:
        if name not in sums:
            raise UserError(f"{folder / name}: not listed in {SUMS}; it belongs to another run")


def state_of(status: os.stat_result) -> str:
    """Return what changes with a file's contents, even if another file of the same size and time
    takes its place."""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _read_sums(file: Path) -> dict[str, str]:
    """Return SHA-256 by file name; only files in the folder itself may be listed."""
    try:
        lines = read_text(file, max_bytes=MAX_SUMS_BYTES).splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text file; restore or delete it") from None
    matches = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line) for line in lines]
    if not all(matches):
        raise UserError(f"{file}: not lines of a SHA-256 and a name; restore or delete it")
    return {match[2]: match[1] for match in matches if match}
