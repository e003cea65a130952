"""docs/studies/unfamiliar.md, and what other pages say of it, against the lines behind it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import unfamiliar
from unfamiliar import REPORT, over

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
    there, missing = (
        {data for data, _ in runs},
        re.findall(r"Nothing was fitted to (.+?), for lack of time", " ".join(page().split())),
    )
    assert there == {*unfamiliar.CHOOSE, *REPORT} - {
        data for names in missing for data in names.split(" or ")
    }
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


@pytest.mark.parametrize("name", ["docs/studies/unfamiliar.md", "docs/usage.md"])
def test_its_area_stands_beside_the_claim(name: str) -> None:
    near, far = (f"{over(LINES, REPORT, CHOSEN, kind):.2f}" for kind in ("near", "far"))
    text = " ".join(page(name).split())
    assert (
        f"AUROC {far} against images of other sets, {near} against further classes of the same set"
        in text
    )


def test_better_is_said_where_the_interval_is_beyond_zero() -> None:
    kinds = re.findall(r"better than max-softmax on (near|far) images", " ".join(page().split()))
    beyond = [kind for kind in ("near", "far") if unfamiliar.difference(LINES, CHOSEN, kind)[1] > 0]
    assert sorted(set(kinds)) == sorted(beyond)


def test_the_reconstruction_error_beside_its_control() -> None:
    found = [
        over(LINES, REPORT, score, "far")
        for score in ("reconstruction", "reconstruction, untrained")
    ]
    for name in ("docs/studies/findings.md", "docs/methods.md"):
        assert f"{found[0]:.2f} on average, {found[1]:.2f} for an untrained branch" in " ".join(
            page(name).split()
        )
