"""docs/defaults.md against the trials behind it, and against the settings that the package has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rmadapter.methods import load_method
from rmadapter.settings import settings_of

DOCS = Path(__file__).parents[1] / "docs"
TRIALS = [json.loads(line) for line in (DOCS / "results/defaults.jsonl").read_text().splitlines()]
BEFORE = {"consistency_unit": "feature", "lambda_image_con": 20, "lambda_text_con": 50}
BEFORE |= {"lambda_image_rec": 1, "lambda_text_rec": 1}
ROW = re.compile(r"^\| (pocket\S*) \| (\S+) \| (\S+), (\d+) \| (.+?) \| (.+?) \|$", re.M)


def change(found: list[dict[str, Any]], fields: dict[str, Any]) -> str:
    """As the page writes it; of exactly one trial, or of none."""
    texts = [
        f"{t['base'] - t['zero_shot_base']:+.1f} / {t['novel'] - t['zero_shot_novel']:+.1f}"
        for t in found
        if t["fields"] == fields
    ]
    assert len(texts) <= 1
    return texts[0] if texts else "not run"


def test_the_table_is_that_of_the_trials_and_leaves_none_out() -> None:
    settings = settings_of(load_method("rmadapter"))
    chosen = {name: settings[name] for name in BEFORE}
    rows = ROW.findall((DOCS / "defaults.md").read_text(encoding="utf-8"))
    shown = 0
    for backbone, scale, data, shots, before, after in rows:
        names = {backbone, f"{backbone} at logit scale {scale}"} if float(scale) in (50, 100) else {backbone}
        found = [t for t in TRIALS if t["backbone"] in names and (t["data"], str(t["shots"])) == (data, shots)]
        found = [t for t in found if (t["backbone"] != backbone) == (len(names) == 2)]
        assert [before, after] == [change(found, BEFORE), change(found, chosen)]
        shown += sum(t["fields"] in (BEFORE, chosen) for t in found)
    assert shown == sum(trial["fields"] in (BEFORE, chosen) for trial in TRIALS) > 20
