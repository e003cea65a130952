"""tools/plus.py: its pieces against models fitted with these settings; sets for choosing and
reporting."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plus
import pytest
from plus import PIECES

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
        colors.name, "--root", str(colors.parent), "--out", str(out), "--shots", "2", "--seeds",
        "1",
    ]  # fmt: skip
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


BASE = {"dtd10": 50.0, "neu_steel": 60.0, "pacs/photo": 70.0, "rsscn7": 80.0}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [
        {"data": data, "shots": 4, "seed": seed, "precision": "bf16"}
        | {name: {"base": base + 4 * i + seed, "novel": 40.0} for i, name in enumerate(PIECES)}
        for data, base in BASE.items()
        for seed in (1, 2)
    ]
    both = {
        "variant": "both",
        "fields": {},
        "kept": 0,
        "overlap": 0,
        "zero_shot_base": 1,
        "zero_shot_novel": 1,
    }
    study = [
        {key: line[key] for key in ("data", "shots", "seed", "precision")}
        | both
        | {"base": 30.0, "novel": 20.0}
        for line in [*lines, {**lines[0], "seed": 9}]
    ]
    (tmp_path / "study.jsonl").write_text("".join(json.dumps(line) + "\n" for line in study))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "lines.jsonl"


def test_sets_for_choosing_and_for_reporting_stand_apart(file: Path) -> None:
    lines = plus.read(file, file.with_name("study.jsonl"))
    assert len(lines) == 8 * len(PIECES) + 8
    assert lines[0]["hm"] == pytest.approx(2 * 51 * 40 / 91)
    found = plus.tables(lines)
    assert [*found] == ["choosing, 4 shots", "reporting, 4 shots", "differences, 4 shots"]
    place = [*PIECES].index("adapters")
    assert (
        f"| zero-shot | 81.5 | 40.0 | {2 * 81.5 * 40 / 121.5:.1f} | {-4 * place:+.1f}"
        in found["choosing, 4 shots"]
    )
    assert "| zero-shot | 61.5 | 40.0 |" in found["reporting, 4 shots"]
    assert "| RMAdapter | 30.0 | 20.0 | 24.0 |" in found["reporting, 4 shots"]
    assert "explained" not in found["choosing, 4 shots"]
    step = 4 * ([*PIECES].index("RMAdapter+") - place)
    assert f"| RMAdapter+ - adapters | base | {step:+.2f} |" in found["differences, 4 shots"]
