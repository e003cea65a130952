"""Locks on folders, exclusive and shared; dead processes block nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter.support import locks
from rmadapter.support.locks import build_once, exclusive, hold, shared, staged_folder

HOLD = """
import sys
from pathlib import Path
from rmadapter.support.locks import exclusive, shared
folder = Path(sys.argv[2])
with exclusive(folder) if sys.argv[1] == "exclusive" else shared(folder, print, print):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(kind: str, folder: Path) -> Iterator[subprocess.Popen]:
    """Start a process that holds the lock of the folder."""
    words, pipe = [sys.executable, "-c", HOLD, kind, str(folder)], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        while process.stdout.readline() != "in\n":
            assert process.poll() is None
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)


def enter(kind: str, folder: Path) -> list[str]:
    """Lock the folder once; return the calls of `shared`."""
    calls: list[str] = []
    with exclusive(folder) if kind == "exclusive" else logged(folder, calls):
        return calls


def logged(folder: Path, calls: list[str], alone: bool = False) -> AbstractContextManager[None]:
    """Hold a shared lock that lists its calls."""
    first, last = partial(calls.append, "first"), partial(calls.append, "last")
    return shared(folder, first, last, alone)


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(UserError, match="another process is at work"):
        yield


@pytest.mark.parametrize(
    ("inside", "comes"),
    [("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")],
)
def test_a_second_process_is_refused(inside: str, comes: str, tmp_path: Path) -> None:
    with another(inside, tmp_path):
        for _ in range(2):  # the first is still protected
            with pytest.raises(UserError, match=f"^{tmp_path}: another process is at work"):
                enter(comes, tmp_path)
            assert list(tmp_path.iterdir())


@pytest.mark.parametrize("comes", ["exclusive", "shared"])
@pytest.mark.parametrize("inside", ["exclusive", "shared"])
def test_a_dead_process_blocks_nobody(inside: str, comes: str, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with another(inside, folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(folder.iterdir())  # its file is still there
        enter(comes, folder)
    assert list(folder.iterdir()) == []


def test_shared_calls_first_and_last(tmp_path: Path) -> None:
    calls: list[str] = []
    with logged(tmp_path, calls), another("shared", tmp_path):
        assert enter("shared", tmp_path) == []
        assert calls == ["first"]
    assert calls == ["first", "last"]
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_in_which_nothing_was_written_is_removed_after_a_failure(
    tmp_path: Path,
) -> None:
    def fail(folder: Path, files: Sequence[str]) -> None:
        with exclusive(folder):
            for name in files:
                (folder / name).touch()
            raise KeyError

    (tmp_path / "old").mkdir()
    for name, files, left in (("new", "", False), ("old", "", True), ("used", "a", True)):
        with pytest.raises(KeyError):
            fail(tmp_path / name, files)
        assert (tmp_path / name).exists() == left


def test_last_is_not_called_after_a_failure(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(KeyError), logged(tmp_path, calls):
        raise KeyError
    assert calls == ["first"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_folder_that_cannot_be_written_to_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file: cannot be written to \(.+\)"):
        enter(kind, tmp_path / "file")


def test_shared_with_alone_locks_the_folder(tmp_path: Path) -> None:
    calls: list[str] = []
    with logged(tmp_path, calls, alone=True), refused():
        assert calls == ["first"]
        enter("shared", tmp_path)
    assert calls == ["first", "last"]
    with another("shared", tmp_path), refused(), logged(tmp_path, [], alone=True):
        pass


def test_hold_raises_the_errors_of_its_caller(tmp_path: Path) -> None:
    taken, path = UserError("somebody has it"), tmp_path / "new/.a.lock"

    def enter_lock(path: Path) -> None:
        with hold(path, 0, taken, "cannot: %s"):
            pass

    with hold(path, 0, taken, ""), pytest.raises(UserError, match="somebody has it"):
        enter_lock(path)
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"^cannot: .*\w"):
        enter_lock(tmp_path / "file/.a")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_failed_stage_is_removed(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "new") as stage:
            (stage / "half.txt").write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())


def files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def test_the_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".new.part/folder").mkdir(parents=True)
    (tmp_path / ".new.part/old.txt").write_text("of a killed process")
    with staged_folder(tmp_path / "new") as stage:
        (stage / "a.txt").write_text("a")
        with refused(), staged_folder(tmp_path / "new"):
            pass
        assert stage.is_dir()
    assert files(tmp_path) == ["new/a.txt"]


def test_who_locks_a_folder_removes_what_a_killed_process_was_writing(tmp_path: Path) -> None:
    (tmp_path / ".metadata.csv.a1b2c3d4.part").write_text("half of it")
    (tmp_path / ".own.part").write_text("of the user")
    with logged(tmp_path, []):
        assert len(files(tmp_path)) >= 2
    with exclusive(tmp_path):
        pass
    assert files(tmp_path) == [".own.part"]


def test_the_lock_is_held_until_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def watched(stage: Path, out: Path) -> None:
        with refused(), staged_folder(tmp_path / "new"):
            pass
        rename(stage, out)

    monkeypatch.setattr(os, "rename", watched)
    with staged_folder(tmp_path / "new") as stage:
        (stage / "a.txt").write_text("a")
    assert files(tmp_path) == ["new/a.txt"]


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(stage: Path) -> None:
        built.append(stage)
        (stage / "a.txt").write_text("a")

    (tmp_path / "cache/.new.part/old").mkdir(parents=True)
    for _ in range(2):
        build_once(tmp_path / "cache/new", build)
    assert len(built) == 1
    assert files(tmp_path / "cache") == ["new/a.txt"]
    (tmp_path / "cache/new/b.txt").write_text("b")
    build_once(tmp_path / "cache/new", build, lambda: len(built) == 2)  # not ready: built again
    assert files(tmp_path / "cache") == ["new/a.txt"]


def test_a_folder_that_cannot_be_built_leaves_nothing(tmp_path: Path) -> None:
    def build(stage: Path) -> None:
        (stage / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"new: .*No space.*RMADAPTER_CACHE"):
        build_once(tmp_path / "new", build)
    assert not list(tmp_path.iterdir())
