"""Who may work in a folder: one alone, or several together, and nobody is held up by the dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmadapter import locks
from rmadapter.errors import UserError
from rmadapter.locks import alone, together

HOLD = """
import sys
from pathlib import Path
from rmadapter.locks import alone, together
folder = Path(sys.argv[2])
with alone(folder) if sys.argv[1] == "alone" else together(folder, print, print):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(kind: str, folder: Path) -> Iterator[subprocess.Popen]:
    """A process that is at work in the folder."""
    words = [sys.executable, "-c", HOLD, kind, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while process.stdout.readline() != "in\n":
            assert process.poll() is None
        yield process
        process.kill()


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


@pytest.mark.parametrize(("inside", "comes"), [("alone", "alone"), ("alone", "together"), ("together", "alone")])
def test_the_second_is_told_so(inside: str, comes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SECONDS", 0.1)
    with another(inside, tmp_path):
        with pytest.raises(UserError, match=r"another process is at work in this folder: wait for it, or choose"):
            enter(comes, tmp_path)
        before = list(tmp_path.iterdir())
        assert before  # the first is still protected
        with pytest.raises(UserError, match="at work"):
            enter(comes, tmp_path)


@pytest.mark.parametrize("comes", ["alone", "together"])
@pytest.mark.parametrize("inside", ["alone", "together"])
def test_a_dead_process_blocks_nobody(inside: str, comes: str, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with another(inside, folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(folder.iterdir())  # its file is still there
        enter(comes, folder)
    assert list(folder.iterdir()) == []


def test_of_several_the_first_and_the_last_clear_up(tmp_path: Path) -> None:
    seen: list[str] = []
    with together(tmp_path, lambda: seen.append("first"), lambda: seen.append("last")):
        assert seen == ["first"]
        with another("together", tmp_path):
            assert enter("together", tmp_path) == []
        assert seen == ["first"]
    assert seen == ["first", "last"]
    assert list(tmp_path.iterdir()) == []


def test_who_fails_clears_nothing_up(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(KeyError), together(tmp_path, nothing, lambda: seen.append("last")):
        raise KeyError
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for kind in ("alone", "together"):
        with pytest.raises(UserError, match=r"file: no folder to write to \(.+\): choose another"):
            enter(kind, tmp_path / "file")


def test_one_of_several_may_want_to_be_alone(tmp_path: Path) -> None:
    done: list[str] = []
    with together(tmp_path, lambda: done.append("first"), lambda: done.append("last"), only=True):
        assert done == ["first"]
        with pytest.raises(UserError, match="another process is at work"), together(tmp_path, print, print):
            pass
    assert done == ["first", "last"]
    with another("together", tmp_path), pytest.raises(UserError, match="another process is at work"):
        together(tmp_path, print, print, only=True).__enter__()
