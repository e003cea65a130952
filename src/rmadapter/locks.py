"""Who is at work in a folder: one process alone, or several together.

A lock is the system's own, which takes it from a process that dies: a file that a killed one left blocks nobody.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rmadapter.errors import UserError

DOOR = ".lock"
PRESENT = ".present.lock"
SECONDS = 1.0  # to wait for somebody who is about to leave, or only looks in


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The only one at work in a folder, which is made when it is missing.

    Raises UserError when another is at work there, and when nothing can be written there.
    """
    with _door(folder):
        if _others(folder):
            raise _taken(folder)
        yield


@contextmanager
def together(
    folder: Path, first: Callable[[], object], last: Callable[[], object], only: bool = False
) -> Iterator[None]:
    """One of any number at work in a folder. first: is done when nobody else is there; last: when all went well and
    nobody else is left. only: as `alone`, which keeps everybody out, and as which it raises."""
    from filelock import FileLock

    if only:
        with alone(folder):
            first()
            yield
            last()
        return
    mine = folder / f".{secrets.token_hex(4)}{PRESENT}"
    lock = FileLock(mine)
    with _door(folder):
        if not _others(folder):
            first()
        lock.acquire()
    try:
        yield
        with _door(folder, patience=30):  # others may be clearing up
            if not _others(folder, mine):
                last()
    finally:
        _remove(mine)
        lock.release()


@contextmanager
def _door(folder: Path, patience: float = 1) -> Iterator[None]:
    """Who comes and goes does so one at a time."""
    from filelock import FileLock, Timeout

    path = folder / DOOR
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience * SECONDS)
    except Timeout:
        raise _taken(folder) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: no folder to write to ({reason}): choose another") from None
    try:
        yield
    finally:
        _remove(path)  # while it is ours: whoever opened it before finds it gone, and looks again
        lock.release()


def _others(folder: Path, mine: Path | None = None) -> bool:
    """Whether somebody else is present; files of the dead are removed."""
    from filelock import FileLock, Timeout

    for path in folder.glob(f".*{PRESENT}"):
        if path == mine:
            continue
        try:
            with FileLock(path).acquire(blocking=False):
                _remove(path)
        except Timeout:
            return True
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
        path.unlink()


def _taken(folder: Path) -> UserError:
    return UserError(f"{folder}: another process is at work in this folder: wait for it, or choose another folder")
