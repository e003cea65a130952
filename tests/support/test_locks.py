"""Locks on folders, exclusive and shared; dead processes block nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter.support import locks
from rmadapter.support.locks import build_once, exclusive, hold, shared, staged_folder

HOLD = """
import sys
from pathlib import Path
from rmadapter.support import locks
from rmadapter.support.locks import exclusive, shared
locks.LEASE = 1.0
folder = Path(sys.argv[2])
with exclusive(folder) if sys.argv[1] == "exclusive" else shared(folder, print, print):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(kind: str, folder: Path) -> Iterator[subprocess.Popen]:
    """Start a process that holds the lock of the folder."""
    words = [sys.executable, "-c", HOLD, kind, str(folder)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        while process.stdout.readline() != "in\n":
            assert process.poll() is None
        yield process
        process.kill()


@pytest.fixture(params=["system", "files"])
def kind_of_lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use the locks of the system, and then files that only one process can create."""
    if request.param == "files":
        pytest.importorskip("filelock", "3.30")
    monkeypatch.setenv(locks.SOFT, str(int(request.param == "files")))
    monkeypatch.setattr(locks, "SECONDS", 0.1)
    monkeypatch.setattr(locks, "LEASE", 1.0)
    return request.param


def nothing() -> None:
    pass


def enter(kind: str, folder: Path) -> list[str]:
    """Lock the folder once; return the calls of `shared`."""
    seen: list[str] = []
    with (
        exclusive(folder)
        if kind == "exclusive"
        else shared(folder, lambda: seen.append("first"), lambda: seen.append("last"))
    ):
        return seen


@pytest.mark.parametrize(
    ("inside", "comes"),
    [("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")],
)
def test_a_second_process_is_refused(
    inside: str, comes: str, tmp_path: Path, kind_of_lock: str
) -> None:
    with another(inside, tmp_path):
        with pytest.raises(UserError, match=str(tmp_path)):
            enter(comes, tmp_path)
        before = list(tmp_path.iterdir())
        assert before  # the first is still protected
        with pytest.raises(UserError, match="at work"):
            enter(comes, tmp_path)


@pytest.mark.parametrize("comes", ["exclusive", "shared"])
@pytest.mark.parametrize("inside", ["exclusive", "shared"])
def test_a_dead_process_blocks_nobody(
    inside: str, comes: str, tmp_path: Path, kind_of_lock: str
) -> None:
    folder = tmp_path / "new"
    with another(inside, folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(folder.iterdir())  # its file is still there
        enter(comes, folder)
    assert list(folder.iterdir()) == []


def test_shared_calls_first_and_last(tmp_path: Path, kind_of_lock: str) -> None:
    seen: list[str] = []
    with shared(tmp_path, lambda: seen.append("first"), lambda: seen.append("last")):
        assert seen == ["first"]
        with another("shared", tmp_path):
            assert enter("shared", tmp_path) == []
        assert seen == ["first"]
    assert seen == ["first", "last"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["exclusive", "shared"])
def test_the_lock_of_a_dead_machine_expires(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process cannot be looked up from here, so only its missing sign of life counts."""
    pytest.importorskip("filelock", "3.30")
    monkeypatch.setenv(locks.SOFT, "1")
    monkeypatch.setattr(locks, "LEASE", 1.0)
    with another(inside, tmp_path) as process:
        process.kill()
        process.wait()
    for path in tmp_path.iterdir():
        path.write_text(
            "".join(
                f"host=elsewhere{i}\n" if line.startswith("host=") else line
                for i, line in enumerate(path.read_text().splitlines(keepends=True))
            )
        )
        assert "host=elsewhere" in path.read_text()
    started = time.monotonic()
    enter("exclusive", tmp_path)
    assert time.monotonic() - started > 0.9
    assert list(tmp_path.iterdir()) == []


MOUNTED = """\
/dev/vda / ext4 rw,relatime 0 0
server:/a /shared nfs4 rw,vers=4.2,local_lock=none,addr=10.0.0.1 0 0
server:/b /shared/old\\040one nfs rw,vers=3,nolock,local_lock=all 0 0
ost@tcp:/c /lustre lustre rw,flock,lazystatfs 0 0
ost@tcp:/d /scratch lustre rw,localflock 0 0
server:/e /twice nfs rw,local_lock=flock 0 0
server:/e /twice nfs4 rw,local_lock=none 0 0
"""


def test_soft_reads_the_mount_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(locks.SOFT, raising=False)
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    assert not locks.soft(Path("/shared"))  # no Linux
    (tmp_path / "mounts").write_text(MOUNTED)
    found = {
        name: locks.soft(Path(name, "results", "x.lock"))
        for name in (
            "/",
            "/shared",
            "/shared/old one",
            "/lustre",
            "/scratch",
            "/sharedelse",
            "/twice",
        )
    }
    assert [name for name, soft in found.items() if soft] == ["/shared/old one", "/scratch"]
    monkeypatch.setenv(locks.SOFT, "0")
    assert not locks.soft(Path("/scratch"))


def test_last_is_not_called_after_a_failure(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(KeyError), shared(tmp_path, nothing, lambda: seen.append("last")):
        raise KeyError
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for kind in ("exclusive", "shared"):
        with pytest.raises(
            UserError, match=r"file: cannot be written to \(.+\): choose another folder"
        ):
            enter(kind, tmp_path / "file")


def test_shared_with_alone_locks_the_folder(tmp_path: Path) -> None:
    done: list[str] = []
    with shared(tmp_path, lambda: done.append("first"), lambda: done.append("last"), alone=True):
        assert done == ["first"]
        with (
            pytest.raises(UserError, match="another process is at work"),
            shared(tmp_path, print, print),
        ):
            pass
    assert done == ["first", "last"]
    with (
        another("shared", tmp_path),
        pytest.raises(UserError, match="another process is at work"),
    ):
        shared(tmp_path, print, print, alone=True).__enter__()


def test_hold_raises_the_errors_of_its_caller(tmp_path: Path) -> None:
    taken, path = UserError("somebody has it"), tmp_path / "new/.a.lock"
    with (
        hold(path, 0, taken, ""),
        pytest.raises(UserError, match="somebody has it"),
        hold(path, 0, taken, ""),
    ):
        pass
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match=r"^cannot: .*\w"),
        hold(tmp_path / "file/.a", 0, taken, "cannot: %s"),
    ):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_failed_stage_is_removed(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "new") as stage:
            (stage / "half.txt").write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".new.part/folder").mkdir(parents=True)
    (tmp_path / ".new.part/old.txt").write_text("of a killed process")
    with staged_folder(tmp_path / "new") as stage:
        (stage / "a.txt").write_text("a")
        with (
            pytest.raises(UserError, match="another process is at work"),
            staged_folder(tmp_path / "new"),
        ):
            pass
        assert stage.is_dir()
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_the_lock_is_held_until_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def watched(stage: Path, out: Path) -> None:
        with (
            pytest.raises(UserError, match="another process is at work"),
            staged_folder(tmp_path / "new"),
        ):
            pass
        rename(stage, out)

    monkeypatch.setattr(os, "rename", watched)
    with staged_folder(tmp_path / "new") as stage:
        (stage / "a.txt").write_text("a")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(stage: Path) -> None:
        built.append(stage)
        (stage / "a.txt").write_text("a")

    (tmp_path / "cache/.new.part/old").mkdir(parents=True)
    for _ in range(2):
        build_once(tmp_path / "cache/new", build)
    assert len(built) == 1
    assert [file.name for file in (tmp_path / "cache/new").iterdir()] == ["a.txt"]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["new"]
    (tmp_path / "cache/new/b.txt").write_text("b")
    build_once(tmp_path / "cache/new", build, lambda: len(built) == 2)  # not ready: built again
    assert [file.name for file in (tmp_path / "cache/new").iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_built_leaves_nothing(tmp_path: Path) -> None:
    def build(stage: Path) -> None:
        (stage / "half.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"new: .*No space.*RMADAPTER_CACHE"):
        build_once(tmp_path / "new", build)
    assert not list(tmp_path.iterdir())
