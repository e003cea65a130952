"""Who may work in a folder: one alone, or several together, and nobody is held up by the dead."""

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
from rmadapter.support.locks import alone, only, together, whole

HOLD = """
import sys
from pathlib import Path
from rmadapter.support import locks
from rmadapter.support.locks import alone, together
locks.LEASE = 1.0
folder = Path(sys.argv[2])
with alone(folder) if sys.argv[1] == "alone" else together(folder, print, print):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(kind: str, folder: Path) -> Iterator[subprocess.Popen]:
    """A process that is at work in the folder."""
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
    """Locks of the system, and files that only one can create."""
    if request.param == "files":
        pytest.importorskip("filelock", "3.30")
    monkeypatch.setenv(locks.SOFT, str(int(request.param == "files")))
    monkeypatch.setattr(locks, "SECONDS", 0.1)
    monkeypatch.setattr(locks, "LEASE", 1.0)
    return request.param


def nothing() -> None:
    pass


def enter(kind: str, folder: Path) -> list[str]:
    """What is done at the door, or UserError."""
    seen: list[str] = []
    with (
        alone(folder)
        if kind == "alone"
        else together(folder, lambda: seen.append("first"), lambda: seen.append("last"))
    ):
        return seen


@pytest.mark.parametrize(
    ("inside", "comes"), [("alone", "alone"), ("alone", "together"), ("together", "alone")]
)
def test_the_second_is_told_so(inside: str, comes: str, tmp_path: Path, kind_of_lock: str) -> None:
    with another(inside, tmp_path):
        with pytest.raises(
            UserError, match=r"another process is at work in this folder: wait for it, or choose"
        ):
            enter(comes, tmp_path)
        before = list(tmp_path.iterdir())
        assert before  # the first is still protected
        with pytest.raises(UserError, match="at work"):
            enter(comes, tmp_path)


@pytest.mark.parametrize("comes", ["alone", "together"])
@pytest.mark.parametrize("inside", ["alone", "together"])
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


def test_of_several_the_first_and_the_last_clear_up(tmp_path: Path, kind_of_lock: str) -> None:
    seen: list[str] = []
    with together(tmp_path, lambda: seen.append("first"), lambda: seen.append("last")):
        assert seen == ["first"]
        with another("together", tmp_path):
            assert enter("together", tmp_path) == []
        assert seen == ["first"]
    assert seen == ["first", "last"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["alone", "together"])
def test_a_machine_that_died_blocks_nobody_for_long(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process cannot be looked for: that it shows no sign of life has to do."""
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
    enter("alone", tmp_path)
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


def test_a_file_system_whose_locks_hold_on_one_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_who_fails_clears_nothing_up(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(KeyError), together(tmp_path, nothing, lambda: seen.append("last")):
        raise KeyError
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for kind in ("alone", "together"):
        with pytest.raises(
            UserError, match=r"file: cannot be written to \(.+\): choose another folder"
        ):
            enter(kind, tmp_path / "file")


def test_one_of_several_may_want_to_be_alone(tmp_path: Path) -> None:
    done: list[str] = []
    with together(tmp_path, lambda: done.append("first"), lambda: done.append("last"), only=True):
        assert done == ["first"]
        with (
            pytest.raises(UserError, match="another process is at work"),
            together(tmp_path, print, print),
        ):
            pass
    assert done == ["first", "last"]
    with (
        another("together", tmp_path),
        pytest.raises(UserError, match="another process is at work"),
    ):
        together(tmp_path, print, print, only=True).__enter__()


def test_a_lock_by_itself_says_what_its_user_says(tmp_path: Path) -> None:
    taken, path = UserError("somebody has it"), tmp_path / "new/.a.lock"
    with (
        only(path, 0, taken, ""),
        pytest.raises(UserError, match="somebody has it"),
        only(path, 0, taken, ""),
    ):
        pass
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match=r"^cannot: .*\w"),
        only(tmp_path / "file/.a", 0, taken, "cannot: %s"),
    ):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_nothing_remains_of_what_failed(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with whole(tmp_path / "new") as stage:
            (stage / "half.txt").write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".new.part/folder").mkdir(parents=True)
    (tmp_path / ".new.part/old.txt").write_text("of a killed process")
    with whole(tmp_path / "new") as stage:
        (stage / "a.txt").write_text("a")
        with pytest.raises(UserError, match="another process is at work"), whole(tmp_path / "new"):
            pass
        assert stage.is_dir()
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_nobody_comes_in_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def watched(stage: Path, out: Path) -> None:
        with pytest.raises(UserError, match="another process is at work"), whole(tmp_path / "new"):
            pass
        rename(stage, out)

    monkeypatch.setattr(os, "rename", watched)
    with whole(tmp_path / "new") as stage:
        (stage / "a.txt").write_text("a")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
