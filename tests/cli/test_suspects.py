"""The verb `suspects`: a table, JSON, a list with its page, and from the decided list to a cleaned
copy."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from rmadapter.backbones import Backbone
from tests.helpers.html import Page
from tests.helpers.images import write_damaged_colors
from tests.helpers.shell import Command, refused, rmadapter

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


def test_mistakes_are_one_sentence(rmadapter: Command, data: Path, tmp_path: Path) -> None:
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
