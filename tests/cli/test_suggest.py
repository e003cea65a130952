"""The verb `suggest`: a table, JSON, and a list with its page; with a run and without."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


def test_a_list_with_its_page(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    command = [
        "suggest",
        finished,
        colors,
        *backbone_option(finished),
        "--n",
        5,
        "--rule",
        "margin",
        "-q",
    ]
    done = rmadapter(*command, "--out", tmp_path / "s.csv")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("5 of 40 images by the rule margin, 16 known already")
    assert done.out.endswith(f"list: {tmp_path / 's.csv'}\npage: {tmp_path / 's.html'}\n")
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    facts = json.loads(rmadapter(*command, "--json").out)
    found = [Path(os.path.normpath(tmp_path / row["image"])) for row in rows]
    assert [Path(one["image"]) for one in facts["suggestions"]] == found
    assert [row["guess"] for row in rows] == [
        one["best"][0]["class"] for one in facts["suggestions"]
    ]
    assert (facts["rule"], facts["pool"], facts["known"]) == ("margin", 40, 16)
    assert "looks like" in rmadapter(*command).out
    refused(rmadapter(*command, "--out", tmp_path / "s.csv"), "already exists")


def test_the_start(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.curate.suggest.load_backbone", lambda name: tiny_clip)
    command = ["suggest", "--start", colors / "train", "--n", 6, "--json", "-q"]
    facts = json.loads(rmadapter(*command).out)
    assert len(facts["suggestions"]) == 6
    assert facts["suggestions"][0]["best"] == []
    named = json.loads(rmadapter(*command, "--names", "red, blue", "--rule", "balanced").out)
    assert {part["class"] for one in named["suggestions"] for part in one["best"]} == {
        "red",
        "blue",
    }
    done = rmadapter("suggest", "--start", colors / "train", "--n", 60)
    assert "note: 24 images instead of 60" in done.err


def test_the_list_is_a_table_to_fill_in(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    """A model is not trained on its own guesses because a user took the next step too early."""
    pool = shutil.copytree(colors / "test", tmp_path / "new")
    its, out = backbone_option(finished), tmp_path / "s.csv"
    assert rmadapter("suggest", finished, pool, *its, "--n", 4, "--out", out, "-q").code == 0
    add = ["add", finished, out, "--old-data", colors, *its, "--out", tmp_path / "next", "-q"]
    refused(rmadapter(*add), "s.csv, line 2: the label is empty")
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": Path(row["image"]).parent.name} for row in rows)
    assert rmadapter(*add).code == 0


def test_tables_and_bad_files(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    its, bad = backbone_option(finished), tmp_path / "bad.png"
    bad.write_bytes(b"no")
    (tmp_path / "pool.csv").write_text(f"photo\n{colors / 'test/red/0.png'}\n{bad}\n")
    command = ["suggest", finished, tmp_path / "pool.csv", *its, "--n", 1, "-q"]
    refused(rmadapter(*command), "name one with --image-column")
    refused(
        rmadapter(*command, "--image-column", "photo"),
        "lies outside the data's folder",
        "--allow-outside",
    )
    command += ["--image-column", "photo", "--allow-outside"]
    refused(
        rmadapter(*command),
        "bad.png: not an image",
        "--skip-bad (skip_bad=True) leaves out such files",
    )
    done = rmadapter(*command, "--skip-bad")
    assert done.code == 0
    assert "1 of 1 images" in done.out


def test_mistakes_are_one_sentence(rmadapter: Command, finished: Path, colors: Path) -> None:
    refused(rmadapter("suggest", finished), "--start")
    refused(rmadapter("suggest", finished, colors, "--names", "a,b"), "--names needs --start")
    refused(rmadapter("suggest", finished, colors, "--out", "list.txt"), "ends in .csv")
    refused(rmadapter("suggest", colors, colors), "not a run")
    refused(rmadapter("suggest", finished, colors, "--rule", "magic"), "unknown rule")
