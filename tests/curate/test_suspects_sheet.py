"""suspects.csv and suspects.html: what they hold, whatever images and classes are called."""

from __future__ import annotations

import csv
import shlex
from dataclasses import replace
from pathlib import Path

from PIL import Image

from rmadapter.curate import suspects_sheet as sheet
from rmadapter.curate.suspects import Found, Neighbour, Suspect
from rmadapter.curate.suspects_sheet import write_csv, write_page
from rmadapter.data.read import ImageSet
from tests.helpers.parsed import Page

EVIL = "<script>alert(1)</script>"


def example(folder: Path) -> Found:
    paths = []
    for name, color in (("=a", "red"), ("b", "blue"), ("c", "lime")):
        paths.append(folder / f"{name}.png")
        Image.new("RGB", (400, 300), color).save(paths[-1])
    images = ImageSet(tuple(paths), (0, 1, 1), ("cat", EVIL), folder)
    near = (Neighbour(1, "b.png", EVIL, 0.876), Neighbour(2, "c.png", EVIL, 0.5))
    wrong = Suspect("=a.png", "cat", ("wrong label", "blurred"), EVIL, 0.9444, near, 0)
    broken = Suspect("x.png", "cat", ("broken: empty",))
    return Found(images, 3, (broken, wrong, Suspect("b.png", EVIL, ("tiny",), None, None, (), 1)))


def test_the_list_has_a_row_a_suspect_and_no_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "s.csv", example(tmp_path))
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        list(sheet.COLUMNS),
        ["x.png", "cat", "", "", "broken: empty", "", ""],
        [
            "./=a.png", "cat", EVIL, "0.944", "wrong label; blurred",
            f"b.png ({EVIL}, 0.88); c.png ({EVIL}, 0.50)", "",
        ],
        ["b.png", EVIL, "", "", "tiny", "", ""],
    ]  # fmt: skip


def test_the_page_shows_images_labels_and_neighbours_and_runs_nothing(tmp_path: Path) -> None:
    found = example(tmp_path)
    write_page(tmp_path / "s.html", found, f"photos {EVIL}", "linear-probe", tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "3 of 4 training images deserve a look." in page.text
    write_page(
        tmp_path / "one.html",
        replace(found, suspects=found.suspects[:1]),
        "photos",
        "",
        tmp_path / "s.csv",
    )
    assert "1 of 4 training images deserves a look." in Page(tmp_path / "one.html").text
    assert (
        shlex.join(["rmadapter", "suspects", f"photos {EVIL}", "--apply", f"{tmp_path / 's.csv'}"])
        in page.text
    )
    assert f"labelled cat, looks like {EVIL} (94 %)" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    sources = [value for value in page.values("src") if value]
    assert (
        len(sources) == 1 + 2 + 1
    )  # the suspect and its neighbours, the tiny one; the broken one has none
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert f"{EVIL}0.88" in page.text.replace(" ", "")
    everything = (tmp_path / "s.html").read_text("utf-8")
    assert "http://" not in everything
    assert "https://" not in everything
    assert "prefers-color-scheme: dark" in everything


def test_of_many_suspects_the_page_says_where_all_are(tmp_path: Path) -> None:
    found = example(tmp_path)
    many = Found(found.images, 3, (found.suspects[1],) * (sheet.MOST + 1))
    write_page(tmp_path / "s.html", many, "photos", "linear-probe", tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert f"Showing the first {sheet.MOST} of {sheet.MOST + 1}; s.csv lists them all." in page.text
    assert len(page.values("src")) == 3 * sheet.MOST


def test_every_kind_is_explained() -> None:
    assert list(sheet.MEANINGS) == list(sheet.ORDER)
