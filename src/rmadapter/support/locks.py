"""Locks on folders: for one process alone, or for several together.

A lock is the system's own, which releases it when the process dies: a lock file left by a killed
process blocks nobody. Where the system's locks do not reach other machines, the lock is a file that
only one process can create, and that its owner touches as long as it lives.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rmadapter.errors import UserError

DOOR = ".lock"
PRESENT = ".present.lock"
SECONDS = 1.0  # to wait for a process that is about to leave or only looks in
SOFT = "RMADAPTER_SOFT_LOCKS"  # 1 or 0: decides instead of the folder's mount which locks are used
LEASE = 30.0  # seconds without a sign of life after which another machine takes over a lock file
MOUNTS = Path("/proc/self/mounts")


def claim(path: Path) -> Any:
    """A lock of filelock: `acquire(timeout)` and `acquire(blocking=False)` raise its Timeout."""
    from filelock import FileLock

    return _lease(path) if soft(path) else FileLock(path)


# an object recognises a dead owner's lease by its not having changed since it last looked
@functools.cache
def _lease(path: Path) -> Any:
    try:
        from filelock import SoftFileLease
    except ImportError:
        raise UserError(
            "locks on this file system need filelock 3.30 or later: pip install -U filelock"
        ) from None
    return SoftFileLease(path, lease_duration=LEASE)


def soft(path: Path) -> bool:
    """Whether the system's locks in this folder only hold within one machine, as mount options of
    NFS and Lustre may have it. If a file system has no locks at all, filelock detects that and does
    without."""
    if given := os.environ.get(SOFT):
        return given != "0"
    try:
        mounts = [line.split()[1:4] for line in MOUNTS.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return False  # not Linux
    home = os.path.realpath(path)
    above = [mount for mount in mounts if len(mount) == 3 and _holds(mount[0], home)]
    if not above:
        return False
    _, kind, options = max(
        reversed(above), key=lambda mount: len(mount[0])
    )  # of two mounts at one place, the later counts
    local = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
    return kind in ("nfs", "nfs4", "lustre") and not local.isdisjoint(options.split(","))


def _holds(mount: str, path: str) -> bool:
    place = re.sub(
        r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount
    )  # a blank is written \040
    return os.path.commonpath([place, path]) == place


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process at work in a folder, which is created if missing.

    Raises UserError if another process is at work there or nothing can be written there.
    """
    with _door(folder):
        if _others(folder, patient=True):
            raise _taken(folder)
        yield


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder beside `out`; it is renamed to `out` if the block succeeds, and removed otherwise.

    What a killed process left in it is removed first. Raises UserError if another process is at
    work on it or nothing can be written, as on a full disk.
    """
    stage, door = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.part{DOOR}")
    failed = f"{out}: cannot be written (%s); nothing was left there"
    try:
        with only(
            door, SECONDS, _taken(out), failed
        ):  # until after the renaming: who waits would empty the stage
            try:
                if stage.exists():
                    shutil.rmtree(stage)
                stage.mkdir()
                yield stage
                os.rename(stage, out)
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(failed.replace("%s", str(error.strerror or error))) from error


@contextmanager
def together(
    folder: Path, first: Callable[[], object], last: Callable[[], object], only: bool = False
) -> Iterator[None]:
    """Be one of any number of processes at work in a folder. first: called if no other is there.
    last: called after success if no other is left. only: keep all others out, and raise, as
    `alone`."""
    if only:
        with alone(folder):
            first()
            yield
            last()
        return
    mine = folder / f".{secrets.token_hex(4)}{PRESENT}"
    lock = claim(mine)
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
        _release(lock, mine)


def _door(folder: Path, patience: float = 1) -> AbstractContextManager[None]:
    """The lock for coming and going, one process at a time."""
    failed = f"{folder}: cannot be written to (%s): choose another folder"
    return only(folder / DOOR, patience * SECONDS, _taken(folder), failed)


@contextmanager
def only(path: Path, patience: float, taken: UserError, failed: str) -> Iterator[None]:
    """Be the only process with the lock file `path`, whose folder is created if missing. Raises
    `taken` if another has it for longer than `patience` seconds, and UserError(`failed`, with the
    reason for %s) if locking fails."""
    from filelock import Timeout

    lock = claim(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=max(patience, _until_dead(path)))
    except Timeout:
        raise taken from None
    except OSError as error:
        raise UserError(failed.replace("%s", str(error.strerror or error))) from None
    try:
        yield
    finally:
        _release(lock, path)


def _others(folder: Path, mine: Path | None = None, patient: bool = False) -> bool:
    """Whether another process is present; lock files of dead ones are removed. patient: wait until
    certain."""
    from filelock import Timeout

    for path in folder.glob(f".*{PRESENT}"):
        if path == mine:
            continue
        lock = claim(path)
        try:
            lock.acquire(timeout=_until_dead(path) if patient else 0)
        except Timeout:
            return True
        _release(lock, path)
    return False


def _until_dead(path: Path) -> float:
    """Seconds after which a lock can be acquired if its owner is dead."""
    return 1.5 * LEASE if soft(path) else 0


def _release(lock: Any, path: Path) -> None:
    """Release a lock, and remove its file while it is ours: others who have it open find it gone
    and try again."""
    if not soft(path):  # releasing a lease removes its file
        _remove(path)
    lock.release()


def _remove(path: Path) -> None:
    with contextlib.suppress(
        OSError
    ):  # Windows keeps a file that is open; filelock removes it there
        path.unlink()


def _taken(folder: Path) -> UserError:
    return UserError(
        f"{folder}: another process is at work in this folder: wait for it, or choose another folder"
    )
