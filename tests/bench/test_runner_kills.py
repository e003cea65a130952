"""Benches that are killed, started again, and at work in one folder beside others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.errors import UserError
from tests.helpers.bench_runs import (
    QUICK,
    VALUES,
    Bench,
    bench,
    bench_command,
    finished_bench,
    records,
)

__all__ = ["bench", "finished_bench"]  # fixtures


def start(command: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment)


def wait_for(out: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until there are so many records."""
    deadline = time.monotonic() + 120
    while len(records(out)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def done_by(log: Path) -> list[str]:
    """The runs that a process did itself, one a line on stderr."""
    return re.findall(r"^(base-to-novel .+): finished ", log.read_text(encoding="utf-8"), re.M)


@pytest.mark.slow
def test_a_killed_bench_starts_again(bench: Bench, tmp_path: Path) -> None:
    """Nine jobs of three methods and three seeds: none is missing, and none that was finished is
    done again."""
    out, first, second, third = (tmp_path / name for name in ("out", "1.log", "2.log", "3.log"))
    killed = start(bench_command(bench, out), first)
    wait_for(out, 3, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = records(out)
    assert 3 <= len(before) < 9
    both = [start(bench_command(bench, out), log) for log in (second, third)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    after = records(out)
    assert len(after) == 9
    assert {path: after[path] for path in before} == before
    assert {read_record(out / path).status for path in after} == {"finished"}
    again = Counter(done_by(second) + done_by(third))
    assert sum(again.values()) == len(after) - len(before)
    assert set(again.values()) <= {1}
    assert not list(out.rglob("*.lock"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_workers_end_with_their_parent(bench: Bench, tmp_path: Path, name: str) -> None:
    number, log = signal.Signals[name], tmp_path / "log"
    parent = start(bench_command(bench, tmp_path / "out", "--jobs", "2"), log)
    wait_for(tmp_path / "out", 1, parent)
    workers = [
        child
        for child in psutil.Process(parent.pid).children(recursive=True)
        if "spawn_main" in str(child.cmdline())
    ]
    assert len(workers) == 2
    parent.send_signal(number)
    assert parent.wait(timeout=60) == (130 if number == signal.SIGINT else -number)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert "Traceback" not in log.read_text()


@pytest.mark.ci
@pytest.mark.parametrize(
    "when", ["before its last record", "between its last record and its clean-up"]
)
def test_files_of_a_killed_bench_are_removed_by_the_next(
    finished_bench: Path, bench: Bench, tmp_path: Path, when: str
) -> None:
    out = Path(shutil.copytree(finished_bench, tmp_path / "out"))
    before, [path, *_] = records(out), sorted(out.rglob("*.json"))
    left = [out / ".lock", out / ".0123abcd.present.lock", path.with_suffix(".lock")]
    left += [
        path.with_name(f".{path.name}.abcd_123.part"),
        out / ".activations/train/.frozen.bin.abcdefgh.part",
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    if when == "before its last record":
        path.unlink()
    bench.run(out)
    assert {file for file in out.rglob("*") if file.is_file()} == {out / name for name in before}
    assert not (out / ".activations").exists()


@pytest.mark.ci
def test_two_benches_with_different_settings_at_once_never_mix(
    finished_bench: Path,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While we are at it, another process writes the record of a run with another number of
    epochs."""
    longer = {**VALUES, "rmadapter": {**QUICK, "epochs": 3}}
    monkeypatch.setattr(
        "rmadapter.bench.runner.work",
        lambda *_, **__: shutil.copytree(finished_bench, tmp_path, dirs_exist_ok=True),
    )
    with pytest.raises(UserError, match="was run with a different value of epochs"):
        bench.run(tmp_path, bench.jobs(), values=longer)
