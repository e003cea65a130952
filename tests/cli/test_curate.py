"""The verbs suspects and suggest."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from tests.helpers.html import Page
from tests.helpers.images import write_damaged_colors
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.fixture
def data(
    colors: Path, tmp_path: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr("rmadapter.runs.lab.load_backbone", lambda name: tiny_clip)
    return write_damaged_colors(colors, tmp_path / "data")


def test_from_a_folder_to_a_cleaned_one(rmadapter: Command, data: Path, tmp_path: Path) -> None:
    done = rmadapter("suspects", data, "--out", tmp_path / "s", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (
        f"suspects: {tmp_path / 's/suspects.csv'}\npage: {tmp_path / 's/suspects.html'}\n"
        in done.out
    )
    assert "of 28 images: broken 1, two labels 2, wrong label" in done.out
    refused(rmadapter("suspects", data, "--out", tmp_path / "s"), "suspects.csv: already exists")
    with open(tmp_path / "s/suspects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["decision"] = {
            "train/blue/is red.png": "relabel",
            "train/green/broken.png": "drop",
        }.get(row["image"], "")
    with open(tmp_path / "decided.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, rows[0].keys(), delimiter=";"
        )  # as spreadsheets write it in some countries
        writer.writeheader()
        writer.writerows(rows)
    apply = ["suspects", data, "--apply", tmp_path / "decided.csv"]
    done = rmadapter(*apply, "--out", tmp_path / "clean")
    assert done.out == f"{tmp_path / 'clean'}: 43 images, 1 with another label; 1 left out\n"
    assert (tmp_path / "clean/train/red/is red.png").is_file()
    assert not (tmp_path / "clean/train/green/broken.png").exists()
    assert (data / "train/green/broken.png").exists()
    refused(rmadapter(*apply), "--out")
    facts = json.loads(rmadapter(*apply, "--out", tmp_path / "again", "--json").out)
    assert facts == {
        "cleaned": str(tmp_path / "again"),
        "images": 43,
        "relabelled": 1,
        "dropped": 1,
        "without": [],
    }


def test_json_and_a_table_on_stdout(rmadapter: Command, data: Path, tmp_path: Path) -> None:
    found = json.loads(rmadapter("suspects", data, "--json", "-q").out)
    by_name = {one["image"]: one for one in found}
    wrong = by_name["train/blue/is red.png"]
    assert set(wrong) == {"image", "given", "suggested", "confidence", "reasons", "neighbours"}
    assert (wrong["given"], wrong["suggested"]) == ("blue", "red")
    assert set(wrong["neighbours"][0]) == {"image", "label", "similarity"}
    done = rmadapter("suspects", data, "-q")
    assert "train/blue/is red.png" in done.out
    assert f"{len(found)} of 28 images: broken 1" in done.out
    facts = json.loads(rmadapter("suspects", data, "--out", tmp_path / "x.csv", "--json", "-q").out)
    assert facts["suspects"] == str(tmp_path / "x.csv")
    assert facts["page"] == str(tmp_path / "x.html")
    assert facts["images"] == 28
    assert facts["found"]["broken"] == 1


def test_a_table_with_columns_of_other_names(rmadapter: Command, data: Path) -> None:
    rows = [
        f"{path.relative_to(data).as_posix()},{path.parent.name}"
        for path in sorted(data.glob("train/*/*.png"))
    ]
    (data / "list.csv").write_text("\n".join(["photo,kind", *rows]))
    columns = ["--image-column", "photo", "--label-column", "kind"]
    found = json.loads(rmadapter("suspects", data / "list.csv", *columns, "--json", "-q").out)
    assert "train/blue/is red.png" in {
        one["image"] for one in found if "wrong label" in one["reasons"]
    }
    assert "train/green/broken.png" in {one["image"] for one in found}


def test_the_command_on_the_page_works(
    rmadapter: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder, and of a table whose columns have names of their own."""
    rows = [
        f"{path.relative_to(data).as_posix()},{path.parent.name}"
        for path in sorted(data.glob("train/*/*.png"))
    ]
    (data / "list.csv").write_text("\n".join(["photo,kind", *rows]))
    columns = ["--image-column", "photo", "--label-column", "kind"]
    monkeypatch.chdir(tmp_path)
    for name, words, copy in (
        ("a", [data], "CLEAN"),
        ("b", [data / "list.csv", *columns], "CLEAN.csv"),
    ):
        assert rmadapter("suspects", *words, "--out", name, "-q").code == 0
        page = Page(tmp_path / name / "suspects.html").text
        command = page[
            page.index("and run rmadapter ") + len("and run ") : page.index(
                " to write a cleaned copy"
            )
        ]
        done = rmadapter(*shlex.split(command)[1:])
        assert done.code == 0, done.err
        assert (tmp_path / copy).exists()


def test_what_suspects_refuses(rmadapter: Command, data: Path, tmp_path: Path) -> None:
    refused(rmadapter("suspects", tmp_path / "nowhere"), "nowhere")
    refused(
        rmadapter("suspects", data, "--out", data / "train/suspects"), "whose folders are classes"
    )
    (tmp_path / "file").write_text("")
    refused(rmadapter("suspects", data, "--out", tmp_path / "file"), "is a file")
    refused(rmadapter("suspects", data, "--set", "rank=3"), "rank")
    refused(rmadapter("suspects", data, "--method", "linear-prob"), "linear-probe")
    refused(
        rmadapter("suspects", data, "--apply", tmp_path / "s.csv"),
        "--apply: name the cleaned copy with --out",
    )
    for options in (["--method", "tip-adapter"], ["--backbone", "pocket"], ["--set", "shots=2"]):
        applied = rmadapter(
            "suspects", data, "--apply", tmp_path / "s.csv", "--out", tmp_path / "clean", *options
        )
        refused(applied, "--method, --backbone and --set")


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


def test_what_suggest_refuses(rmadapter: Command, finished: Path, colors: Path) -> None:
    refused(rmadapter("suggest", finished), "--start")
    refused(rmadapter("suggest", finished, colors, "--names", "a,b"), "--names needs --start")
    refused(rmadapter("suggest", finished, colors, "--out", "list.txt"), "ends in .csv")
    refused(rmadapter("suggest", colors, colors), "not a run")
    refused(rmadapter("suggest", finished, colors, "--rule", "magic"), "unknown rule")
