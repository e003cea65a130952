"""docs/studies/performance.md: its tables and picture are those of the result files."""

from __future__ import annotations

import drawing
import performance
import pytest
from performance import RESULTS, ROOT

from rmadapter.support.files import read_json

pytestmark = pytest.mark.real_plots

PAGE = (ROOT / "docs/studies/performance.md").read_text(encoding="utf-8")
TABLES = performance.tables(RESULTS, ROOT / "docs/results/steps.jsonl")
STEPS = {row["classes"]: row for row in read_json(RESULTS / "public.json")["mma"]}


def test_every_table_is_that_of_the_result_files() -> None:
    assert [*TABLES] == ["steps", "profile", "folder", "half"]
    for name, table in TABLES.items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" in PAGE, name


def test_the_picture_is_drawn_from_them() -> None:
    drawn = drawing.drawn(read_json(RESULTS / "public.json")["mma"])
    assert drawn.count("<path") == (ROOT / "docs/studies/performance.svg").read_text(
        encoding="utf-8"
    ).count("<path")
    assert "performance.svg" in PAGE


def test_steps_are_compared_after_they_were_found_the_same() -> None:
    assert [*STEPS] == [10, 50, 200]
    for row in STEPS.values():
        assert max(row["differences"].values()) < 1e-4
        assert len(row["public_all_seconds"]) >= 3
        assert 0 < performance.share(row, "fp32") < 1
