"""Locks on folders, exclusive or shared, and folders that are built aside and then renamed.

The system releases its locks when a process dies, so a lock file that a killed process left blocks
nobody. On a disk of the network, its mount options decide whether locks reach other machines.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.errors import UserError
from rmadapter.support.files import parts

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"
PRESENT = ".present.lock"
WAIT_SECONDS = 1.0  # to wait for a process that is about to leave or only looks in


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder exclusively, and remove temporary files there that killed processes left; it is
    created if missing, and removed if the block fails before it has written anything.

    Args:
        folder: The folder.

    Raises:
        UserError: Another process works in the folder, or nothing can be written to it.
    """
    new = not folder.exists()
    try:
        with _entry(folder):
            if _others(folder):
                raise _busy(folder)
            for leftover in parts(folder):
                leftover.unlink(missing_ok=True)
            yield
    except BaseException:
        if new:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise


@contextmanager
def shared(
    folder: Path, first: Callable[[], object], last: Callable[[], object], alone: bool = False
) -> Iterator[None]:
    """Hold a shared lock on a folder.

    Args:
        folder: The folder.
        first: Function that is called if no other process holds a lock.
        last: Function that is called after success if no other process is left.
        alone: Whether to lock the folder like `exclusive` instead.

    Raises:
        UserError: As for `exclusive`.
    """
    from filelock import FileLock

    if alone:
        with exclusive(folder):
            first()
            yield
            last()
        return
    presence = folder / f".{secrets.token_hex(4)}{PRESENT}"
    lock = FileLock(presence)
    with _entry(folder):
        if not _others(folder):
            first()
        lock.acquire()
    try:
        yield
        with _entry(folder, patience=30):  # other processes may be running `last`
            if not _others(folder, without=presence):
                last()
    finally:
        _release(lock, presence)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`. It is renamed to `out` if the block succeeds, and removed
    otherwise.

    Leftovers of a killed process are removed first.

    Args:
        out: The folder, which is not there yet.

    Raises:
        UserError: Another process is writing `out`, or the disk refuses.
    """
    failed = f"{out}: cannot be written (%s); nothing was left there"
    try:
        with hold(_stage_lock(out), WAIT_SECONDS, _busy(out), failed), _stage(out) as stage:
            yield stage
    except OSError as error:
        raise UserError(failed.replace("%s", str(error.strerror or error))) from error


def build_once(
    out: Path, build: Callable[[Path], object], ready: Callable[[], bool] | None = None
) -> None:
    """Build the folder `out` of the cache unless it exists. Other processes wait until it does.

    Args:
        out: The folder.
        build: Function that is called with a new folder beside `out`, which is renamed to `out`
            afterwards.
        ready: Function that says whether `out` can be used as it is; by default, whether it is a
            folder.

    Raises:
        UserError: The cache cannot be written.
    """
    ready = ready or out.is_dir
    if ready():
        return
    failed = f"{out}: cannot be written (%s); point RMADAPTER_CACHE elsewhere"
    try:
        with hold(_stage_lock(out), math.inf, _busy(out), failed):
            if not ready():  # another process may have built it meanwhile
                shutil.rmtree(out, ignore_errors=True)
                with _stage(out) as stage:
                    build(stage)
    except OSError as error:
        raise UserError(failed.replace("%s", str(error.strerror or error))) from error


def _stage_lock(out: Path) -> Path:
    return out.with_name(f".{out.name}.part{LOCK}")


@contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` and rename it at the end, while its lock is held."""
    stage = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(stage, ignore_errors=True)  # a killed process left it
        stage.mkdir(exist_ok=True)  # a child of that process may still be removing its files
        yield stage
        os.rename(stage, out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _entry(folder: Path, patience: float = 1) -> AbstractContextManager[None]:
    """Hold the lock that a process needs to start or end its work in a folder."""
    failed = f"{folder}: cannot be written to (%s): choose another folder"
    return hold(folder / LOCK, patience * WAIT_SECONDS, _busy(folder), failed)


@contextmanager
def hold(path: Path, patience: float, busy: UserError, failed: str) -> Iterator[None]:
    """Hold the lock file `path`, whose folder is created if missing.

    Args:
        path: The lock file.
        patience: Seconds to wait for another process that holds it.
        busy: Error to raise if that one still holds it.
        failed: Message, with %s for the reason, if locking fails.

    Raises:
        UserError: `busy`, or one with `failed`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if patience == math.inf else patience)
    except Timeout:
        raise busy from None
    except OSError as error:
        raise UserError(failed.replace("%s", str(error.strerror or error))) from None
    try:
        yield
    finally:
        _release(lock, path)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file `path`, and remove that of a dead one."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _release(lock, path)
    return False


def _others(folder: Path, without: Path | None = None) -> bool:
    """Return whether another process works in a folder, and remove the lock files of dead ones.

    Args:
        folder: The folder.
        without: Lock file of this process.
    """
    return any(is_held(path) for path in folder.glob(f".*{PRESENT}") if path != without)


def _release(lock: BaseFileLock, path: Path) -> None:
    """Release a lock and remove its file first: a process that has it open notices and tries
    again."""
    with suppress(OSError):  # Windows keeps an open file; filelock removes it there
        path.unlink()
    lock.release()


def _busy(folder: Path) -> UserError:
    return UserError(
        f"{folder}: another process is at work in this folder: "
        "wait for it, or choose another folder"
    )
