"""tools/plus_tables.py: pieces as lines, sets apart by what they are for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import plus_tables
import pytest
from plus import PIECES

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
    lines = plus_tables.read(file, file.with_name("study.jsonl"))
    assert len(lines) == 8 * len(PIECES) + 8
    assert lines[0]["hm"] == pytest.approx(2 * 51 * 40 / 91)
    found = plus_tables.tables(lines)
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


def test_it_fills_a_page(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = plus_tables.tables(plus_tables.read(file, file.with_name("study.jsonl")))
    page = file.with_name("page.md")
    page.write_text("\n\n".join(f"<!-- {name} -->\n\nold\n\n<!-- end -->" for name in names))
    monkeypatch.setattr(
        sys,
        "argv",
        ["x", str(file), "--study", str(file.with_name("study.jsonl")), "--page", str(page)],
    )
    plus_tables.main()
    text = page.read_text()
    assert "old" not in text
    assert all(table in text for table in names.values())
