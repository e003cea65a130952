"""docs/pocket.md, the model card: its table and its checksums are those of what was measured and of
what is shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rmadapter.backbones.pocket import DELTA_SHA256, DIGEST, TEXT, VISION

DOCS = Path(__file__).parents[2] / "docs"
CARD = (DOCS / "pocket.md").read_text(encoding="utf-8")
HEADS = re.escape("| classes | images | chance | `pocket-1` | `pocket` |")


def measured() -> dict[tuple[str, str], dict[str, Any]]:
    """(template, set) -> cells that the table has to have, and the lines of both versions."""
    lines = [
        json.loads(line)
        for line in (DOCS / "results/pocket.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        found.setdefault((line["template"], line["set"]), {})[line["backbone"]["name"]] = line
    return found


def test_tables_are_the_lines() -> None:
    tables = re.findall(rf"^\| (.*\{{\}}.*?) {HEADS}\n\|[-|]+\n((?:\|.*\n)+)", CARD, re.M)
    told = {}
    for template, rows in tables:
        for row in rows.splitlines():
            name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
            told[template, name] = cells
    lines = measured()
    assert told.keys() == lines.keys()
    for key, line in lines.items():
        new, old = line["pocket"], line["pocket-1"]
        assert (new["classes"], new["images"]) == (old["classes"], old["images"])
        figures = (100 / new["classes"], old["accuracy"], new["accuracy"])
        assert told[key] == [
            str(new["classes"]),
            f"{new['images']:,}",
            *(f"{figure:.1f}" for figure in figures),
        ], key


def test_lines_are_of_the_weights_that_are_shipped() -> None:
    for lines in measured().values():
        assert lines["pocket"]["backbone"]["digest"] == DIGEST
        assert all(
            line["versions"].keys() >= {"torch", "timm", "open_clip_torch"}
            for line in lines.values()
        )


def test_checksums_are_those_of_what_is_used() -> None:
    for digest in (DELTA_SHA256, DIGEST, VISION.sha256, TEXT.sha256):
        assert digest in CARD
