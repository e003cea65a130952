"""docs/studies/performance.md: its tables and picture are those of the result files, and its sentences say
what they say."""

from __future__ import annotations

import drawing
import performance
import pytest
from performance import RESULTS, ROOT
from reconstruction_tables import CHOOSE, difference, read

from rmadapter.support.files import read_json

pytestmark = pytest.mark.real_plots

PAGE = (ROOT / "docs/studies/performance.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
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


def test_what_is_said_of_mmas_step() -> None:
    fifty, many = STEPS[50], STEPS[200]
    assert f"is {fifty['bf16_ratio']:.1f} times as fast with 50 classes (aim: 5)" in TEXT
    assert f"and {many['bf16_ratio']:.1f} times as fast with 200 (aim: 11, missed)" in TEXT
    ends = {
        kind: sorted(performance.share(row, kind) for row in STEPS.values())
        for kind in ("fp32", "bf16")
    }
    shares = [
        f"{100 * ends[kind][0]:.0f} to {ends[kind][-1]:.0%}".replace("%", " %")
        for kind in ("bf16", "fp32")
    ]
    assert (
        f"at {shares[0]} of the rate of large products in bfloat16, {shares[1]} in float32" in TEXT
    )
    limit = many["public_least_seconds"] / (many["least_operations"] / many["bf16_gflops"] / 1e9)
    assert f"it would be {limit:.1f} times as fast with 200 classes" in TEXT


def test_what_is_said_of_the_profile() -> None:
    (half,) = (
        row for row in read_json(RESULTS / "profiling.json")["rows"] if row["format"] == "bf16"
    )
    assert f"In bfloat16 products take {half['products']:.0%} of it".replace("%", " %") in TEXT


def test_what_is_said_of_half_the_steps() -> None:
    lines = read(ROOT / "docs/results/steps.jsonl")
    chosen, reported = (
        [x for x in lines if (x["data"] in CHOOSE) == chosen] for chosen in (True, False)
    )
    plain, fast = performance.HALF
    parts = []
    for some in (chosen, reported):
        mean, half, _, _ = difference(some, fast, "both", "hm")
        assert half
        parts.append(f"{mean:+.1f} ({mean - half:.1f} to {mean + half:+.1f})")
    assert f"HM {parts[0]} on the data sets for choosing, {parts[1]} on the others" in TEXT
    lost = [-difference(some, plain, "both", "base")[0] for some in (chosen, reported)]
    assert f"they lose {lost[0]:.1f} and {lost[1]:.1f} points of base accuracy" in TEXT
    assert "shown |" in TABLES["half"]
    assert "| ahead |" not in TABLES["half"]
    assert "| behind |" not in TABLES["half"]
