"""benchmarks/folder.py: a whole command taken apart."""

from __future__ import annotations

import json
import sys

import folder
import pytest

from rmadapter.backbones import Backbone


def test_the_parts_are_the_whole_and_hold_nothing_twice() -> None:
    found = [
        {"seconds": 20.0 + i, "frozen": 4.0, "train": 5.0, "evaluate": 6.0, "total": 15.0}
        for i in (0, 9, 1)
    ]
    row = folder.row("x", found, {"start": 2.0, "train": 1.0, "test": 1.5})
    assert row == {
        "run": "x", "seconds": 21.0,
        "start": 2.0, "decode": 2.5, "frozen": 3.0, "train": 5.0, "evaluate": 4.5, "rest": 4.0,
    }  # fmt: skip
    assert sum(row[part] for part in folder.PARTS) == row["seconds"]


@pytest.mark.slow
def test_it_times_the_command(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--classes",
        "2",
        "--shots",
        "2",
        "--tests",
        "2",
        "--repeat",
        "1",
        "--pixels",
        "40",
        "30",
    ]
    given = [
        "--backbone",
        tiny_clip.name,
        "--methods",
        "linear-probe-zero-shot",
        "--precisions",
        "fp32",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["x", *small, *given, "--set", "device=cpu"])
    folder.main()
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert row["run"] == "linear-probe-zero-shot, fp32"
    assert row["seconds"] > row["start"] > 0
    assert row["train"] > 0
    assert found["machine"]["cores"] > 0
