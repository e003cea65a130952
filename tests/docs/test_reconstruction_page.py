"""docs/studies/reconstruction.md: its tables are those of its lines."""

from __future__ import annotations

from pathlib import Path

from reconstruction_tables import (
    CHOOSE,
    MAIN,
    by_set,
    dialled,
    read,
    tables,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/studies/reconstruction.md").read_text(encoding="utf-8")
EVERY = dialled(read(ROOT / "docs/results/reconstruction.jsonl"))
LINES = [line for line in EVERY if line["backbone"] == "pocket"]
LATER = [line for line in EVERY if line["data"] in CHOOSE and line["precision"] == "fp32"]
REPORTED = {
    n: [line for line in LINES if line["data"] not in CHOOSE and line["shots"] == n]
    for n in (4, 16)
}


def test_every_table_is_that_of_the_lines() -> None:
    found = tables(read(ROOT / "docs/results/reconstruction.jsonl"))
    assert len(found) >= 9
    for name, table in found.items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end -->" in PAGE, name


def test_a_line_says_what_was_run() -> None:
    names = ("backbone", "precision", "data", "shots", "seed", "variant")
    runs = [tuple(line[name] for name in names) for line in EVERY]
    assert len(set(runs)) == len(runs)
    for line in EVERY:
        assert len(line["split"]) == 64
        assert line["versions"]["torch"]
        later = (
            line in LATER or line["data"] == "grocery" or line["variant"].startswith("combination")
        )
        assert (line["precision"] == "fp32") == later
    for shots, lines in REPORTED.items():
        sets = {line["data"] for line in lines}
        assert {seed for line in lines for seed in [line["seed"]]} == {1, 2, 3}, shots
        assert all(
            {d for d in sets if d in by_set(lines, one, "hm")} >= {"dtd10", "neu_steel"}
            for one in MAIN
        )
