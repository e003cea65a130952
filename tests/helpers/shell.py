"""The command line as a shell sees it, and a full disk, for tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.cli import main as cli
from tests.helpers import commands


class Answer(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """The command line in this process, where the libraries are imported already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._output = monkeypatch, capsys

    def __call__(self, *words: object) -> Answer:
        self._patch.setattr(sys, "argv", ["rmadapter", *map(str, words)])
        self._patch.setattr("typer.main.get_command", lambda app: commands.parser())
        self._output.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Answer(int(stop.value.code or 0), *self._output.readouterr())

    def done(self, *words: object) -> Answer:
        """Run a command that must succeed."""
        answer = self(*words)
        assert answer.code == 0, answer.err
        return answer

    def json(self, *words: object) -> Any:
        """Return what a command prints with --json; it must succeed."""
        return json.loads(self.done(*words, "--json").out)


@pytest.fixture
def rmadapter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    before = signal.getsignal(signal.SIGINT)
    yield Command(monkeypatch, capsys)
    signal.signal(signal.SIGINT, before)
    if hasattr(signal, "alarm"):
        signal.alarm(0)


def run_process(*words: object) -> Answer:
    code = "from rmadapter.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def backbone_option(run: Path) -> list[str]:
    """The user's word for the folder that a run names as its backbone."""
    return ["--backbone", read_record(run / "run.json").backbone.name]


def refused(answer: Answer, *hints: str) -> None:
    assert answer.code == 2
    assert answer.out == ""
    (line,) = answer.err.splitlines()
    assert line.startswith("rmadapter: ")
    for hint in hints:
        assert hint in line


@contextmanager
def limited_file_size(limit: int = 1000) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: the kernel ends a write in its middle, as a full disk
    does."""
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fit_command(data: Path, backbone: Backbone, out: Path, *more: object) -> list[object]:
    """Return a command that fits a model of a tiny backbone."""
    return ["fit", data, "--backbone", backbone.name, "--out", out, *more]


def quick_options(shots: int, epochs: int = 1) -> list[object]:
    """Return options with which `fit` trains a tiny model in a second."""
    settings = ("first_block=3", "rank=4", f"epochs={epochs}", "device=cpu")
    words = (word for setting in settings for word in ("--set", setting))
    return ["--method", "rmadapter", "--shots", shots, *words]
