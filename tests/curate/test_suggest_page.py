"""The list and the page of suggestions, whatever images and classes are called."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

from PIL import Image

from rmadapter.curate import suggest_page as shown
from rmadapter.curate.acquisition import FIRST, NEXT
from rmadapter.curate.suggest import Suggested, Suggestion
from tests.helpers.html import Page

EVIL = "<script>alert(1)</script>"


def example(folder: Path, count: int = 2) -> Suggested:
    Image.new("RGB", (400, 300), "red").save(folder / "a.png")
    one = Suggestion(folder / "a.png", 1, 0.5, (("=cat", 0.7), (EVIL, 0.2)))
    gone = Suggestion(Path("-gone.png"), 2, 0.25, ())
    return Suggested("margin", 10, 3, 1, (one, gone)[:count])


def test_the_list_has_no_formula(tmp_path: Path) -> None:
    shown.write_csv(tmp_path / "s.csv", example(tmp_path))
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found == [
        list(shown.COLUMNS),
        ["a.png", "", "1", "0.5", "'=cat", "0.7", EVIL, "0.2"],
        [os.path.relpath("-gone.png", tmp_path), "", "2", "0.25", "", "", "", ""],
    ]


def test_the_page_shows_images_and_runs_nothing(tmp_path: Path) -> None:
    shown.write_page(tmp_path / "s.html", example(tmp_path), EVIL, tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "2 of 10 images to label." in page.text
    assert "Rule: margin. 3 images that the run was fitted to were left out." in page.text
    assert "1 near-duplicate of another was left out." in page.text
    [source] = page.values("src")
    assert source.startswith("data:image/jpeg;base64,")
    assert "not readable" in page.text
    assert "=cat 70" in page.text
    assert "://" not in (tmp_path / "s.html").read_text("utf-8")


def test_one_is_told_as_one(tmp_path: Path) -> None:
    found = example(tmp_path, count=1)
    shown.write_page(
        tmp_path / "s.html", replace(found, pool=1, known=1, copies=2), "a run", tmp_path / "s.csv"
    )
    text = Page(tmp_path / "s.html").text
    assert "1 of 1 image to label." in text
    assert (
        "1 image that the run was fitted to was left out. 2 near-duplicates of others were left out."
        in text
    )


def test_every_rule_is_explained() -> None:
    assert set(shown.MEANINGS) == {*NEXT, *FIRST}
