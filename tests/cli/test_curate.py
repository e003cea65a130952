"""The verb suspects."""

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


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def table(data: Path) -> list[object]:
    """A table of the images with columns of other names, and the options that name them."""
    lines = ["photo,kind"]
    for path in sorted(data.glob("train/*/*.png")):
        lines.append(f"{path.relative_to(data).as_posix()},{path.parent.name}")
    (data / "list.csv").write_text("\n".join(lines))
    return [data / "list.csv", "--image-column", "photo", "--label-column", "kind"]


# Suspects


def test_decisions_on_suspects_make_a_cleaned_copy(
    rmadapter: Command, data: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "s/suspects.csv"
    done = rmadapter.done("suspects", data, "--out", tmp_path / "s", "--quiet")
    assert done.err == ""
    assert f"suspects: {listed}\npage: {tmp_path / 's/suspects.html'}\n" in done.out
    assert "of 28 images: broken 1, two labels 2, wrong label" in done.out
    refused(rmadapter("suspects", data, "--out", tmp_path / "s"), "suspects.csv: already exists")
    decisions = {"train/blue/is red.png": "relabel", "train/green/broken.png": "drop"}
    rows = read_rows(listed)
    for row in rows:
        row["decision"] = decisions.get(row["image"], "")
    # as spreadsheets write it in some countries
    write_rows(tmp_path / "decided.csv", rows, delimiter=";")
    apply = ["suspects", data, "--apply", tmp_path / "decided.csv"]
    done = rmadapter(*apply, "--out", tmp_path / "clean")
    assert done.out == f"{tmp_path / 'clean'}: 43 images, 1 with another label; 1 left out\n"
    assert (tmp_path / "clean/train/red/is red.png").is_file()
    assert not (tmp_path / "clean/train/green/broken.png").exists()
    assert (data / "train/green/broken.png").exists()
    refused(rmadapter(*apply), "--out")
    facts = rmadapter.json(*apply, "--out", tmp_path / "again")
    counts = {"images": 43, "relabelled": 1, "dropped": 1, "without": []}
    assert facts == {"cleaned": str(tmp_path / "again"), **counts}


@pytest.mark.ci
def test_suspects_are_printed_as_json_and_as_a_table(
    rmadapter: Command, data: Path, tmp_path: Path
) -> None:
    found = rmadapter.json("suspects", data, "-q")
    by_name = {one["image"]: one for one in found}
    wrong = by_name["train/blue/is red.png"]
    assert set(wrong) == {"image", "given", "suggested", "confidence", "reasons", "neighbours"}
    assert (wrong["given"], wrong["suggested"]) == ("blue", "red")
    assert set(wrong["neighbours"][0]) == {"image", "label", "similarity"}
    shown = rmadapter("suspects", data, "-q").out
    assert "train/blue/is red.png" in shown
    assert f"{len(found)} of 28 images: broken 1" in shown
    facts = rmadapter.json("suspects", data, "--out", tmp_path / "x.csv", "-q")
    assert (facts["suspects"], facts["page"]) == (str(tmp_path / "x.csv"), str(tmp_path / "x.html"))
    assert (facts["images"], facts["found"]["broken"]) == (28, 1)


def test_columns_of_other_names_can_be_named(rmadapter: Command, table: list[object]) -> None:
    reasons = {one["image"]: one["reasons"] for one in rmadapter.json("suspects", *table, "-q")}
    assert "wrong label" in reasons["train/blue/is red.png"]
    assert "train/green/broken.png" in reasons


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_the_command_on_the_page_works(
    rmadapter: Command,
    data: Path,
    table: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = table if kind == "table" else [data]
    rmadapter.done("suspects", *words, "--out", "s", "-q")
    page = Page(tmp_path / "s/suspects.html").text
    command = page.partition("and run ")[2].partition(" to write a cleaned copy")[0]
    rmadapter.done(*shlex.split(command)[1:])
    assert (tmp_path / ("CLEAN.csv" if kind == "table" else "CLEAN")).exists()


def test_mistakes_in_suspects_are_named(rmadapter: Command, data: Path, tmp_path: Path) -> None:
    file, apply = tmp_path / "file", ["--apply", tmp_path / "s.csv"]
    file.write_text("")
    trains = "--method, --backbone and --set"
    for words, hint in (
        ([tmp_path / "nowhere"], "nowhere"),
        ([data, "--out", data / "train/suspects"], "whose folders are classes"),
        ([data, "--out", file], "is a file"),
        ([data, "--set", "rank=3"], "rank"),
        ([data, "--method", "linear-prob"], "linear-probe"),
        ([data, *apply], "--apply: name the cleaned copy with --out"),
        ([data, *apply, "--out", tmp_path / "clean", "--method", "tip-adapter"], trains),
        ([data, *apply, "--out", tmp_path / "clean", "--backbone", "pocket"], trains),
        ([data, *apply, "--out", tmp_path / "clean", "--set", "shots=2"], trains),
    ):
        refused(rmadapter("suspects", *words), hint)


# labels


def test_labels_are_counted_and_written_in_other_formats(
    rmadapter: Command, colors: Path, tmp_path: Path
) -> None:
    counts = json.loads(rmadapter.done("labels", colors, "--json").out)
    assert counts["train"] == {"blue": 6, "green": 6, "night_sky": 6, "red": 6}
    shown = rmadapter.done("labels", colors / "train").out
    assert "night_sky" in shown
    out = tmp_path / "labels.json"
    words = ("labels", colors / "train", "--to", "coco", "--out", out, "--json")
    assert json.loads(rmadapter.done(*words).out)["images"] == 24
    assert len(json.loads(out.read_text())["annotations"]) == 24
    refused(rmadapter(*words), "labels.json: already exists")
    other = ("labels", colors, "--to", "coco", "--out", tmp_path / "b.json")
    refused(rmadapter(*other), "no splits")
    refused(rmadapter("labels", tmp_path / "gone"), "gone: no such file")
