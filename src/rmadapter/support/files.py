"""Writing files so that none is ever left half written, and reading files that others wrote."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import stat
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

from rmadapter.errors import UserError, quoted

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = (
    2**28
)  # bytes of the largest text that is read: lists of the largest data sets take half of that

PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # names of the temporary files of `atomic`
CHUNK = 1 << 24


@contextmanager
def atomic(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; it replaces `path` if the block succeeds, and is removed
    otherwise.

    sync: wait until the file is on disk; without, a power cut may lose it, so only for what can be
    made again. Raises UserError if the disk is full or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{shortened(path.name)}.", suffix=".part"
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            # mkstemp makes private files; what we leave behind is as readable as any other file
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be written ({reason}); nothing was changed there"
        ) from error


def parts(*folders: Path) -> list[Path]:
    """Temporary files in some folders: left by killed writers, or being written now."""
    found = [
        path for folder in folders for path in folder.glob(".*.part") if PART.fullmatch(path.name)
    ]
    return [path for path in found if path.is_file()]


def reserve(path: Path, size: int) -> None:
    """Reserve space on disk for the first `size` bytes of a file. Raises OSError if there is too
    little.

    If the disk fills up under a file that is mapped into memory, the system ends the process
    without a message.
    """
    with open(path, "rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))


def _umask() -> int:
    with _asking:  # between the two calls, another thread would read 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


_asking = threading.Lock()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; the lone surrogates of file names that are not UTF-8 become
    \\udcXX, as in JSON."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. The library's own `save_file` leaves a file behind when
    it is killed."""
    from safetensors.torch import save

    content = save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()},
        metadata,
    )
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def shortened(name: str, end: bool = False) -> str:
    """The first or last 120 bytes of a name: file systems allow 255 bytes, however many characters
    those are."""
    whole = name.encode(errors="surrogateescape")
    return (whole[-120:] if end else whole[:120]).decode(errors="ignore")


def last_part(path: str) -> str:
    """`pets` from `/home/anna/pets`, whichever system it was written on."""
    return PureWindowsPath(path).name or path


def own_name(path: str) -> str:
    """Of `pets`, `../pets/`, and of `.` within it: `pets`."""
    name = Path(path).name
    return name if name not in ("", "..") or not path else user_path(path).resolve().name


def cache_folder() -> Path:
    """The folder of downloads and unpacked archives; all of it can be made again."""
    own, home = os.environ.get("RMADAPTER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        found = Path(own or home or "~/.cache").expanduser().absolute()
    except RuntimeError:
        raise UserError(
            "there is no home folder: set RMADAPTER_CACHE to a folder for what is kept"
        ) from None
    return found if own else found / "rmadapter"


# Reading what others wrote


def at_home(word: str) -> str:
    """A word of a command with ~ for home after =, where shells leave it, as in --out=~/runs/first."""
    name, equals, value = word.partition("=")
    return (
        f"{name}={user_path(value)}"
        if equals and name.startswith("--") and value.startswith("~")
        else word
    )


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, with ~ for home. Raises UserError for an impossible or
    inaccessible path."""
    try:
        found = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(found)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{quoted(str(path))}: not a usable path ({_reason(error)})") from None
    return found


@contextmanager
def plain_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a plain file to read. Raises OSError, also for a pipe or device, which might never
    answer or end."""
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("a pipe or device, not a file")
        yield file


@contextmanager
def opened(path: Path, kind: str = "a readable file") -> Iterator[BinaryIO]:
    """The same, but raises UserError, which says that the file is not of this kind."""
    try:
        with plain_file(path) as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{_shown(path)}: not {kind} ({_reason(error)})") from None


def _at_once(name: str, flags: int) -> int:
    """Open without waiting for the writer of a pipe."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(
    path: Path, kind: str = "a readable text file", most: int = LARGEST, errors: str = "strict"
) -> str:
    """Read a plain file of UTF-8. Raises UserError as `opened`, also for more than `most` bytes."""
    with opened(path, kind) as file:
        data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
        if data is None or len(data) > most:  # files of the system, as in /proc, have size 0
            raise UserError(f"{path}: not {kind} (more than {most:,} bytes)")
        return data.decode("utf-8-sig", errors)


def read_json(path: Path, most: int = LARGEST, without: Collection[str] = ()) -> Any:
    """Read JSON. without: keys to drop from every object, to save memory. Raises UserError if the
    file is missing, damaged, too large or nested too deeply."""
    kind = "readable JSON"
    text = read_text(path, kind, most)

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key not in without}

    try:
        return json.loads(text, object_pairs_hook=hook if without else None)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {kind} ({type(error).__name__})") from None


def _shown(path: Path) -> str:
    return str(path) if len(str(path)) < 1000 else quoted(str(path))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return type(error).__name__


def path_from(folder: Path, file: Path) -> str:
    """The relative path from a folder to a file, with forward slashes. Links are resolved, as `..`
    after a link leads elsewhere than its text says. On another drive, the whole path."""
    home, whole = os.path.realpath(folder), os.path.join(os.path.realpath(file.parent), file.name)
    try:
        return Path(os.path.relpath(whole, home)).as_posix()
    except ValueError:
        return Path(whole).as_posix()


def inert(text: str) -> str:
    """A cell of CSV that no spreadsheet runs: text that begins like a formula gets an apostrophe in
    front."""
    text = re.sub(r"[\t\r\n]", " ", text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def inert_path(name: str) -> str:
    """The same for a path, which still leads to its file."""
    return f"./{name}" if name.startswith(("=", "+", "-", "@")) else name


def check_new(*paths: Path, option: str = "--out") -> None:
    """Raises UserError for a path where something is, also a link to nothing, or whose folder is a
    file. option: what chose it."""
    for path in paths:
        if path.parent.is_file():
            raise UserError(f"{path.parent}: is a file; choose another {option}")
        if os.path.lexists(path):
            raise UserError(f"{path}: already exists; choose another {option}, or delete it")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
