"""Locks on folders, exclusive or shared, and folders that are built aside and then renamed.

The system releases its own locks when a process dies, so a lock file that a killed process left
blocks nobody. Where the system's locks do not reach other machines, the lock is a file that only
one process can create, and that its owner touches as long as it lives.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"
PRESENT = ".present.lock"
WAIT_SECONDS = 1.0  # to wait for a process that is about to leave or only looks in
SOFT = "RMADAPTER_SOFT_LOCKS"  # 1 or 0: decides instead of the folder's mount which locks are used
LEASE = 30.0  # seconds without a sign of life after which another machine takes over a lock file
MOUNTS = Path("/proc/self/mounts")


def claim(path: Path) -> BaseFileLock:
    """Return the lock of filelock for a lock file; its `acquire` raises filelock.Timeout."""
    from filelock import FileLock

    return _lease(path) if soft(path) else FileLock(path)


# One object a path: it recognises a dead owner because the lease has not changed since its last
# look.
@functools.cache
def _lease(path: Path) -> BaseFileLock:
    try:
        from filelock import SoftFileLease
    except ImportError:
        raise UserError(
            "locks on this file system need filelock 3.30 or later: pip install -U filelock"
        ) from None
    return SoftFileLease(path, lease_duration=LEASE)


def soft(path: Path) -> bool:
    """Return whether the system's locks in this folder hold only within one machine, which mount
    options of NFS and Lustre decide.

    Where a file system has no locks at all, filelock notices and does without.
    """
    setting = os.environ.get(SOFT)
    if setting:
        return setting != "0"
    try:
        mounts = [line.split()[1:4] for line in MOUNTS.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return False  # not Linux
    home = os.path.realpath(path)
    above = [mount for mount in mounts if len(mount) == 3 and _holds(mount[0], home)]
    if not above:
        return False
    # of two mounts at one place, the later counts
    _, kind, options = max(reversed(above), key=lambda mount: len(mount[0]))
    local = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
    return kind in ("nfs", "nfs4", "lustre") and not local.isdisjoint(options.split(","))


def _holds(mount: str, path: str) -> bool:
    # a blank is written \040
    place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount)
    return os.path.commonpath([place, path]) == place


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder exclusively; it is created if missing, and removed if the block fails before it
    has written anything.

    Raises UserError if another process works in the folder or nothing can be written to it.
    """
    new = not folder.exists()
    try:
        with _entry(folder):
            if _others(folder, patient=True):
                raise _busy(folder)
            yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
        raise


@contextmanager
def shared(
    folder: Path, first: Callable[[], object], last: Callable[[], object], alone: bool = False
) -> Iterator[None]:
    """Hold a shared lock on a folder. first: called if no other process holds one. last: called
    after success if no other process is left. alone: lock the folder like `exclusive` instead."""
    if alone:
        with exclusive(folder):
            first()
            yield
            last()
        return
    presence = folder / f".{secrets.token_hex(4)}{PRESENT}"
    lock = claim(presence)
    with _entry(folder):
        if not _others(folder):
            first()
        lock.acquire()
    try:
        yield
        with _entry(folder, patience=30):  # other processes may be running `last`
            if not _others(folder, presence):
                last()
    finally:
        _release(lock, presence)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`. It is renamed to `out` if the block succeeds, and removed
    otherwise.

    Leftovers of a killed process are removed first. Raises UserError if another process is writing
    `out` or the disk refuses.
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

    build: called with a new folder beside `out`, which is renamed to `out` afterwards. ready:
    whether `out` can be used as it is; by default, whether it is a folder. Raises UserError if the
    cache cannot be written.
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

    Raises `busy` if another process holds it for longer than `patience` seconds, and
    UserError(`failed`, with the reason for %s) if locking fails.
    """
    from filelock import Timeout

    lock = claim(path)
    timeout = max(patience, _until_dead(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if timeout == math.inf else timeout)
    except Timeout:
        raise busy from None
    except OSError as error:
        raise UserError(failed.replace("%s", str(error.strerror or error))) from None
    try:
        yield
    finally:
        _release(lock, path)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file `path`."""
    from filelock import Timeout

    if not path.exists():
        return False
    lock = claim(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _others(folder: Path, presence: Path | None = None, patient: bool = False) -> bool:
    """Return whether another process works in a folder, and remove the lock files of dead ones.
    presence: this process's own file. patient: wait until the answer is certain."""
    from filelock import Timeout

    for path in folder.glob(f".*{PRESENT}"):
        if path == presence:
            continue
        lock = claim(path)
        try:
            lock.acquire(timeout=_until_dead(path) if patient else 0)
        except Timeout:
            return True
        _release(lock, path)
    return False


def _until_dead(path: Path) -> float:
    """Return the seconds after which a lock of a dead process can be acquired."""
    return 1.5 * LEASE if soft(path) else 0


def _release(lock: BaseFileLock, path: Path) -> None:
    """Release a lock and remove its file first: a process that has it open notices and tries
    again."""
    if not soft(path):  # releasing a lease removes its file
        _remove(path)
    lock.release()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps an open file; filelock removes it there
        path.unlink()


def _busy(folder: Path) -> UserError:
    return UserError(
        f"{folder}: another process is at work in this folder: "
        "wait for it, or choose another folder"
    )
