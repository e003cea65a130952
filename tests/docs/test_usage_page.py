"""docs/usage.md against the records behind it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, stdev

from rmadapter.artifacts.record import parse_record
from rmadapter.methods import load_method
from rmadapter.settings import settings_of

SINCE = {
    "target": "input",
    "target_norm": False,
    "local": True,
}  # settings since those runs, as they had it
DOCS = Path(__file__).parents[2] / "docs"


def test_the_demos_table_is_that_of_its_records() -> None:
    lines = (DOCS / "results/demo.jsonl").read_text(encoding="utf-8").splitlines()
    records = [parse_record(line, "demo.jsonl") for line in lines]
    assert [record.task.seed for record in records] == [1, 2, 3, 4, 5]
    shipped = json.loads(json.dumps(settings_of(load_method("rmadapter"))))
    assert all({**SINCE, **record.method.settings} == shipped for record in records)
    names = {"base": "base classes", "novel": "novel classes", "hm": "harmonic mean"}
    names |= {score.name: score.name for score in records[0].scores[2:]}
    expected = []
    for name, title in names.items():
        found = [record.metric(name) or 0 for record in records]
        score, before = records[0].score(name), records[0].metric(name, zero_shot=True) or 0
        cells = [
            title,
            str(score.images) if score else "",
            f"{before:.1f}",
            ", ".join(f"{x:.1f}" for x in found),
        ]
        expected.append([*cells, f"{fmean(found) - before:+.1f}", f"± {stdev(found):.1f}"])
    text = (DOCS / "usage.md").read_text(encoding="utf-8").split("### Demo")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.split("|")] for row in re.findall(r"^\|(.*)\|$", text, re.M)
    ]
    assert sorted(rows[2:]) == sorted(expected)
