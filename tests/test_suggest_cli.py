"""The verb `suggest`: a table, JSON, and a list with its page; with a run and without."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from shell import Command, its_backbone, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


def test_a_list_with_its_page(rmadapter: Command, finished: Path, colors: Path, tmp_path: Path) -> None:
    command = ["suggest", finished, colors, *its_backbone(finished), "--n", 5, "--rule", "margin", "-q"]
    done = rmadapter(*command, "--out", tmp_path / "s.csv")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("5 of 40 images by the rule margin, 16 known already")
    assert done.out.endswith(f"list: {tmp_path / 's.csv'}\npage: {tmp_path / 's.html'}\n")
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    facts = json.loads(rmadapter(*command, "--json").out)
    assert [one["image"] for one in facts["suggestions"]] == [row["image"] for row in rows]
    assert (facts["rule"], facts["pool"], facts["known"]) == ("margin", 40, 16)
    assert "looks like" in rmadapter(*command).out
    refused(rmadapter(*command, "--out", tmp_path / "s.csv"), "already exists")


def test_the_start(rmadapter: Command, colors: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmadapter.suggest.propose.load_backbone", lambda name: tiny_clip)
    command = ["suggest", "--start", colors / "train", "--n", 6, "--json", "-q"]
    facts = json.loads(rmadapter(*command).out)
    assert len(facts["suggestions"]) == 6
    assert facts["suggestions"][0]["best"] == []
    named = json.loads(rmadapter(*command, "--names", "red, blue", "--rule", "balanced").out)
    assert {part["class"] for one in named["suggestions"] for part in one["best"]} == {"red", "blue"}
    done = rmadapter("suggest", "--start", colors / "train", "--n", 60)
    assert "note: 24 images instead of 60" in done.err


def test_mistakes_are_one_sentence(rmadapter: Command, finished: Path, colors: Path) -> None:
    refused(rmadapter("suggest", finished), "--start")
    refused(rmadapter("suggest", finished, colors, "--names", "a,b"), "--names needs --start")
    refused(rmadapter("suggest", finished, colors, "--out", "list.txt"), "ends in .csv")
    refused(rmadapter("suggest", colors, colors), "not a finished run")
    refused(rmadapter("suggest", finished, colors, "--rule", "magic"), "unknown rule")
