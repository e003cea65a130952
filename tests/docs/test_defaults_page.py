"""docs/studies/defaults.md against the trials behind it and the settings of the package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rmadapter.methods import load_method
from rmadapter.settings import settings_of

DOCS = Path(__file__).parents[2] / "docs"
TRIALS = [json.loads(line) for line in (DOCS / "results/defaults.jsonl").read_text().splitlines()]
BEFORE = {"consistency_unit": "feature", "lambda_image_con": 20, "lambda_text_con": 50}
BEFORE |= {"lambda_image_rec": 1, "lambda_text_rec": 1, "learning_rate": 0.003}
ROW = re.compile(r"^\| (pocket\S*) \| (\S+) \| (.+?), (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.M)


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
    between = {**chosen, "learning_rate": 0.003}
    rows = ROW.findall((DOCS / "studies/defaults.md").read_text(encoding="utf-8"))
    shown = 0
    for backbone, scale, data, shots, *figures in rows:
        names = (
            {backbone, f"{backbone} at logit scale {scale}"}
            if float(scale) in (50, 100)
            else {backbone}
        )
        found = [
            t
            for t in TRIALS
            if t["backbone"] in names and (t["data"], str(t["shots"])) == (data, shots)
        ]
        found = [t for t in found if (t["backbone"] != backbone) == (len(names) == 2)]
        assert figures == [change(found, fields) for fields in (BEFORE, between, chosen)]
        shown += sum(t["fields"] in (BEFORE, between, chosen) for t in found)
    assert shown == sum(trial["fields"] in (BEFORE, between, chosen) for trial in TRIALS) > 30


def test_more_passes_over_few_images_change_what_the_page_says() -> None:
    text = (DOCS / "studies/defaults.md").read_text(encoding="utf-8")
    trials = [trial for trial in TRIALS if set(trial["fields"]) <= {"epochs"}]
    plain = load_method("rmadapter").recipe.epochs  # type: ignore[attr-defined]
    means = {}
    for shots, epochs in sorted({(t["shots"], t["fields"].get("epochs", plain)) for t in trials}):
        found = [
            t for t in trials if (t["shots"], t["fields"].get("epochs", plain)) == (shots, epochs)
        ]
        assert {t["data"] for t in found} == {"rsscn7", "trashnet", "office_caltech/web"}
        assert len(found) == 3
        means[shots, epochs] = [
            sum(t[h] - t[f"zero_shot_{h}"] for t in found) / 3 for h in ("base", "novel")
        ]
        base, novel = means[shots, epochs]
        assert f"| {shots} | {epochs} | {base:+.1f} / {novel:+.1f} |" in text
