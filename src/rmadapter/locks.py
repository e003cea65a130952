"""Who is at work in a folder: one process alone, or several together.

A lock is the system's own, which takes it from a process that dies: a file that a killed one left blocks nobody. Where
the system's locks do not reach other machines, it is a file that only one can create, and that its owner touches as
long as it lives.
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
SECONDS = 1.0  # to wait for somebody who is about to leave, or only looks in
SOFT = "RMADAPTER_SOFT_LOCKS"  # 1 or 0, where the folder's mount is not to say which locks are taken
LEASE = 30.0  # seconds without a sign of life, after which another machine takes a file of the dead
MOUNTS = Path("/proc/self/mounts")


def claim(path: Path) -> Any:
    """A lock as filelock has them: `acquire(timeout)` and `acquire(blocking=False)` raise its Timeout."""
    from filelock import FileLock

    return _lease(path) if soft(path) else FileLock(path)


@functools.cache  # a lease of the dead is known by its not having changed since the same object looked before
def _lease(path: Path) -> Any:
    try:
        from filelock import SoftFileLease
    except ImportError:
        raise UserError("locks on this file system need filelock 3.30 or later: pip install -U filelock") from None
    return SoftFileLease(path, lease_duration=LEASE)


def soft(path: Path) -> bool:
    """Whether the system's locks in this folder hold on one machine alone, as those of NFS and Lustre by their mount's
    options may. Where a file system has none at all, filelock knows it and does without."""
    if given := os.environ.get(SOFT):
        return given != "0"
    try:
        mounts = [line.split()[1:4] for line in MOUNTS.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return False  # no Linux
    home = os.path.realpath(path)
    above = [mount for mount in mounts if len(mount) == 3 and _holds(mount[0], home)]
    if not above:
        return False
    _, kind, options = max(
        reversed(above), key=lambda mount: len(mount[0])
    )  # of two at one place the later one is seen
    local = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
    return kind in ("nfs", "nfs4", "lustre") and not local.isdisjoint(options.split(","))


def _holds(mount: str, path: str) -> bool:
    place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount)  # a blank is \040
    return os.path.commonpath([place, path]) == place


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The only one at work in a folder, which is made when it is missing.

    Raises UserError when another is at work there, and when nothing can be written there.
    """
    with _door(folder):
        if _others(folder, patient=True):
            raise _taken(folder)
        yield


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which takes that name when the block ends well, and vanishes otherwise.

    What a killed process left of it is removed first. Raises UserError when another process is at work on it, and
    where nothing can be written, as on a full disk.
    """
    stage = out.with_name(f".{out.name}.part")
    try:
        with alone(stage):
            try:
                for left in stage.iterdir():
                    if left.name != DOOR:
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield stage
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                raise
        os.rename(stage, out)
    except OSError as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); nothing was left there") from error


@contextmanager
def together(
    folder: Path, first: Callable[[], object], last: Callable[[], object], only: bool = False
) -> Iterator[None]:
    """One of any number at work in a folder. first: is done when nobody else is there; last: when all went well and
    nobody else is left. only: as `alone`, which keeps everybody out, and as which it raises."""
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
    """Who comes and goes does so one at a time."""
    failed = f"{folder}: cannot be written to (%s): choose another folder"
    return only(folder / DOOR, patience * SECONDS, _taken(folder), failed)


@contextmanager
def only(path: Path, patience: float, taken: UserError, failed: str) -> Iterator[None]:
    """The only one with the lock of this name, in a folder that is made when it is missing. Raises `taken` where
    another has it for longer than these seconds, and UserError, `failed` with the reason for %s, where it cannot be."""
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
    """Whether somebody else is present; files of the dead are removed. patient: wait until that is certain."""
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
    """Seconds after which a lock can be had if its owner is dead."""
    return 1.5 * LEASE if soft(path) else 0


def _release(lock: Any, path: Path) -> None:
    """And remove the file while it is ours: whoever opened it before finds it gone, and looks again."""
    if not soft(path):  # releasing a lease is removing its file
        _remove(path)
    lock.release()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
        path.unlink()


def _taken(folder: Path) -> UserError:
    return UserError(f"{folder}: another process is at work in this folder: wait for it, or choose another folder")
