"""The commands that say what there is to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmadapter.data.catalog.sets import CATALOG
from rmadapter.methods import METHODS
from rmadapter.methods.uses import ABOUT
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


def test_methods_lists_all_with_the_papers_counts(rmadapter: Command) -> None:
    code, out, _ = rmadapter("methods", "--json")
    assert code == 0
    found: dict[str, Any] = {method["name"]: method for method in json.loads(out)}
    assert list(found) == list(METHODS)
    assert found["mma"]["parameters"] == 674_560  # as its paper has it, ViT-B/16
    assert found["zero-shot"]["parameters"] == 0
    assert found["rmadapter"]["settings"]["rank"] == 32
    assert all(method["source"] and method["title"] for method in found.values())
    apart = {
        name: method["uses"]["track"]
        for name, method in found.items()
        if method["uses"]["track"] != "ranked"
    }
    assert apart == {
        "zero-shot-descriptions": "extra data",
        "tda": "test time",
        "prompt-kd": "teacher",
    }


def test_methods_fits_80_columns_and_names_all(rmadapter: Command) -> None:
    code, out, _ = rmadapter("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert {*ABOUT} == {*METHODS}
    for name in METHODS:
        assert f" {name} " in out


def test_data_lists_all_and_says_what_one_lacks(rmadapter: Command, tmp_path: Path) -> None:
    code, out, _ = rmadapter("data", "--json")
    assert (code, [row["key"] for row in json.loads(out)]) == (0, list(CATALOG))
    code, out, _ = rmadapter("data", "dtd", "--check", tmp_path, "--json")
    [row] = json.loads(out)
    assert (code, row["name"], row["status"]) == (0, "dtd", "absent")
    refused(rmadapter("data", "--download"), "--download needs the name of one data set")
