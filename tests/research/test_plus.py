"""plus.py: its pieces equal models that are fitted with these settings, and sets for choosing
and reporting stay apart."""

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
FITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "RMAdapter+": ("rmadapter-plus", {}),
    "adapters": ("rmadapter-plain", {}),
    "regression 2": ("rmadapter-plus", {"head": 2.0}),
    "penalty 3": ("rmadapter-plus", {"penalty": 3.0}),
    "keep 0.25": ("rmadapter-plus", {"keep": 0.25}),
    "and untouched": ("rmadapter-plus", {"general": []}),
}


@pytest.mark.slow
def test_each_piece_equals_a_model_fitted_with_its_settings(
    tmp_path: Path, colors: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Request.make
    out = tmp_path / "out.jsonl"
    words = [colors.name, "--root", str(colors.parent), "--out", str(out), "--shots", "2"]
    words += ["--seeds", "1", "--backbone", tiny_clip.name]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["x", *words])
        patch.setattr(
            plus.Request, "make", lambda values, *rest, **more: make(SMALL | values, *rest, **more)
        )
        plus.main()
    [line] = [json.loads(line) for line in out.read_text().splitlines()]
    common = {**SMALL, "backbone": tiny_clip.name, "seed": 1, "shots": 2, "classes": "base"}
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    for piece, (method, values) in FITTED.items():
        request = make({**common, **values}, method, data=colors.name)
        record = run_task(request.task, request.method, lab, request.name).record
        halves = ("base", "novel")
        expected = {half: pytest.approx(record.metric(half), abs=1e-3) for half in halves}
        assert line[piece] == expected, piece
    before = {half: pytest.approx(record.metric(half, zero_shot=True), abs=1e-3) for half in halves}
    assert line["zero-shot"] == before
    assert len({tuple(line[piece].values()) for piece in PIECES}) > 3


BASE = {"dtd10": 50.0, "neu_steel": 60.0, "pacs/photo": 70.0, "rsscn7": 80.0}


def test_sets_for_choosing_and_for_reporting_have_their_own_tables(tmp_path: Path) -> None:
    runs = [
        {"data": data, "shots": 4, "seed": seed, "precision": "bf16"}
        for data in BASE
        for seed in (1, 2)
    ]
    lines = []
    for run in runs:
        base = BASE[run["data"]] + run["seed"]
        pieces = {name: {"base": base + 4 * i, "novel": 40.0} for i, name in enumerate(PIECES)}
        lines.append(run | pieces)
    both = {"variant": "both", "fields": {}, "kept": 0, "overlap": 0, "base": 30.0, "novel": 20.0}
    both |= {"zero_shot_base": 1, "zero_shot_novel": 1}
    study = [run | both for run in [*runs, {**runs[0], "seed": 9}]]
    for name, some in (("lines", lines), ("study", study)):
        text = "".join(json.dumps(line) + "\n" for line in some)
        (tmp_path / f"{name}.jsonl").write_text(text)
    read = plus.read(tmp_path / "lines.jsonl", tmp_path / "study.jsonl")
    assert len(read) == 8 * len(PIECES) + 8
    assert read[0]["hm"] == pytest.approx(2 * 51 * 40 / 91)
    tables = plus.tables(read)
    assert [*tables] == ["choosing, 4 shots", "reporting, 4 shots", "differences, 4 shots"]
    place = [*PIECES].index("adapters")
    chosen = f"| zero-shot | 81.5 | 40.0 | {2 * 81.5 * 40 / 121.5:.1f} | {-4 * place:+.1f}"
    assert chosen in tables["choosing, 4 shots"]
    assert "| zero-shot | 61.5 | 40.0 |" in tables["reporting, 4 shots"]
    assert "| RMAdapter | 30.0 | 20.0 | 24.0 |" in tables["reporting, 4 shots"]
    step = 4 * ([*PIECES].index("RMAdapter+") - place)
    assert f"| RMAdapter+ - adapters | base | {step:+.2f} |" in tables["differences, 4 shots"]
