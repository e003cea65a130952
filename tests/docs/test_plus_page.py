"""docs/studies/plus.md: its tables are those of its lines."""

from __future__ import annotations

from pathlib import Path

from plus import CHOSEN_ON, STUDY, read, tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/studies/plus.md").read_text(encoding="utf-8")
LINES = read(ROOT / "docs/results/plus.jsonl", STUDY)
REPORTED = {
    n: [x for x in LINES if x["data"] not in CHOSEN_ON and x["shots"] == n] for n in (4, 16)
}


def test_every_table_is_that_of_the_lines() -> None:
    found = tables(LINES)
    assert len(found) == 6
    for name, table in found.items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" in PAGE, name


def test_a_line_says_what_was_run() -> None:
    runs = [(line["data"], line["shots"], line["seed"], line["variant"]) for line in LINES]
    assert len(set(runs)) == len(runs)
    assert {line["precision"] for line in LINES} == {"bf16"}
    for lines in REPORTED.values():
        assert {line["seed"] for line in lines} == {1, 2, 3}
        assert {"dtd10", "sign_digits", "pacs/photo", "neu_steel"} <= {
            line["data"] for line in lines
        }
