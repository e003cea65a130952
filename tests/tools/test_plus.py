"""tools/plus.py: its pieces against models that were fitted with these settings, and that it goes
on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plus
import pytest

from rmadapter.backbones import Backbone
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.settings import Machine

SMALL = {"first_block": 3, "rank": 4, "epochs": 20, "learning_rate": 0.03}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Request.make
    monkeypatch.setattr(
        plus.Request, "make", lambda values, *rest, **more: make({**SMALL, **values}, *rest, **more)
    )


def run(
    out: Path, colors: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    given = [
        colors.name,
        "--root",
        str(colors.parent),
        "--out",
        str(out),
        "--shots",
        "2",
        "--seeds",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["x", *given, "--backbone", backbone.name])
    plus.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_pieces_are_models_of_these_settings(
    tmp_path: Path, colors: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = run(tmp_path / "out.jsonl", colors, tiny_clip, monkeypatch)
    common = {**SMALL, "backbone": tiny_clip.name, "seed": 1, "shots": 2, "classes": "base"}
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    others: dict[str, tuple[str, dict[str, Any]]] = {
        "RMAdapter+": ("rmadapter-plus", {}),
        "adapters": ("rmadapter-plain", {}),
        "regression 2": ("rmadapter-plus", {"head": 2.0}),
        "penalty 3": ("rmadapter-plus", {"penalty": 3.0}),
        "keep 0.25": ("rmadapter-plus", {"keep": 0.25}),
        "and untouched": ("rmadapter-plus", {"general": []}),
    }
    for piece, (method, values) in others.items():
        wanted = Request.make({**common, **values}, method, data=colors.name)
        record = run_task(wanted.task, wanted.method, lab, wanted.name).record
        assert line[piece] == {
            name: pytest.approx(record.metric(name), abs=1e-3) for name in ("base", "novel")
        }, piece
    zero_shot = {
        name: pytest.approx(record.metric(name, zero_shot=True), abs=1e-3)
        for name in ("base", "novel")
    }
    assert line["zero-shot"] == zero_shot
    assert len({tuple(line[piece].values()) for piece in plus.PIECES}) > 3  # they do differ


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_finished_lines_are_kept(
    tmp_path: Path, colors: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "out.jsonl", colors, tiny_clip, monkeypatch)
    monkeypatch.setattr(plus, "trial", lambda *words: pytest.fail("it runs again"))
    assert run(tmp_path / "out.jsonl", colors, tiny_clip, monkeypatch) == first
    assert len(first[0]["split"]) == 64
