"""tests/hostile/kills.py: runs of ours have no faults, and a careless command has all of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.hostile import kills


@pytest.mark.slow
@pytest.mark.parametrize("only", ["fit coop", "fit prompt-kd", "data", "convert", "serve", "tune"])
def test_killed_runs_end_like_others(only: str) -> None:
    if only == "tune":
        pytest.importorskip("optuna", reason="needs the extra tune: `make scale` installs it")
    # runs are forked, which torch refuses to train in where this process has trained before
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        [row] = alone.submit(kills.kill_runs, 2, seed=1, only=only).result()
    assert row["kills"] == 2
    assert {row[fault] for fault in kills.FAULTS} == {0}


def careless() -> None:
    """Write other weights and one more file after each kill, print a traceback and leave a
    child."""
    print("Traceback")
    with subprocess.Popen(["sleep", "5"], start_new_session=True):
        out = Path(sys.argv[-1])
        out.mkdir(exist_ok=True)
        (out / f".{os.getpid()}.part").write_text("")
        (out / "model.safetensors").write_text(str(len(list(out.iterdir()))))
        time.sleep(0.5)
        os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("only", ["fit coop", "data"])
def test_faults_are_noticed(monkeypatch: pytest.MonkeyPatch, only: str) -> None:
    monkeypatch.setattr(kills.cli, "main", careless)
    monkeypatch.setattr(kills, "PATIENCE", 0.1)
    [row] = kills.kill_runs(1, seed=1, only=only)
    for fault in ("other weights", "leftovers", "orphans", "tracebacks"):
        assert row[fault], fault
