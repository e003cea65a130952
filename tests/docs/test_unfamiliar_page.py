"""docs/studies/unfamiliar.md, and what other pages say of it, against the lines behind it."""

from __future__ import annotations

import json
from pathlib import Path

import unfamiliar
from unfamiliar import REPORT

from rmadapter.training.contract import NEIGHBOUR

ROOT = Path(__file__).parents[2]
LINES = [
    json.loads(line)
    for line in (ROOT / "docs/results/unfamiliar.jsonl").read_text("utf-8").splitlines()
]
CHOSEN = f"neighbour {NEIGHBOUR}, frozen"


def page(name: str = "docs/studies/unfamiliar.md") -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_pair_is_there_once_and_of_one_backbone() -> None:
    runs = [(line["data"], line["seed"]) for line in LINES if not line["far"]]
    assert {data for data, _ in runs} <= {*unfamiliar.CHOOSE, *REPORT}
    assert sorted((line["data"], line["seed"], line["far"]) for line in LINES) == sorted(
        (data, seed, far) for data, seed in runs for far in ("", *unfamiliar.far_of(data))
    )
    assert (
        len({line["digest"] for line in LINES})
        == len({tuple(line["scores"]) for line in LINES})
        == 1
    )


def test_the_tables_are_those_of_the_lines() -> None:
    found = unfamiliar.tables(LINES)
    assert found.count("\n\n") == 2
    for table in found.split("\n\n"):
        assert table in page()


def test_the_product_has_the_score_that_was_chosen() -> None:
    assert unfamiliar.best(LINES, filter(unfamiliar.usable, LINES[0]["scores"])) == CHOSEN
