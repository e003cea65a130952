"""Suggestions from a run and a pool; the list and the page hold whatever images are called."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.curate.acquisition import FIRST, NEXT
from rmadapter.curate.suggest import (
    COLUMNS,
    MEANINGS,
    Suggestion,
    Suggestions,
    first_images,
    suggest_images,
    write_csv,
    write_page,
)  # fmt: skip
from rmadapter.errors import UserError
from tests.helpers.html import Page


@pytest.fixture
def pool(colors: Path, tmp_path: Path) -> Path:
    """The 24 training images, of which the run has seen 16, and one of them mirrored; 16 test
    images and a copy."""
    folder = tmp_path / "pool"
    for image in sorted(colors.glob("*/*/*.png")):
        folder.mkdir(exist_ok=True)
        shutil.copy(image, folder / f"{image.parts[-3]}-{image.parts[-2]}-{image.name}")
    shutil.copy(folder / "test-red-0.png", folder / "test-red-copy.png")
    with Image.open(folder / "test-blue-0.png") as image:
        ImageOps.mirror(image).save(folder / "test-blue-mirrored.png")
    return folder


def test_known_images_and_copies_are_not_suggested(
    finished: Path, tiny_clip: Backbone, pool: Path
) -> None:
    for rule in ("margin", "entropy", "coverage", "typicality", "mix", "random"):
        found = suggest_images(finished, pool, 100, rule=rule, backbone=tiny_clip, progress=False)
        assert (found.rule, found.pool, found.known) == (rule, 42, 16)
        names = {one.image.name for one in found.suggestions}
        assert len(found.suggestions) == 42 - 16 - found.copies == len(names)
        assert not {"test-red-copy.png", "test-red-0.png"} <= names
        assert not {"test-blue-mirrored.png", "test-blue-0.png"} <= names
        assert [one.rank for one in found.suggestions] == list(range(1, len(names) + 1))


def test_scores_and_classes_equal_those_of_the_run(
    finished: Path, tiny_clip: Backbone, pool: Path
) -> None:
    saved = load(finished, tiny_clip)
    found = suggest_images(saved, [pool], 3, rule="margin", progress=False)
    [table] = saved.fitted.probabilities([one.image for one in found.suggestions])
    for one, row in zip(found.suggestions, table, strict=True):
        first, second = row.sort(descending=True).values[:2].tolist()
        assert [share for _, share in one.best] == pytest.approx([first, second], abs=1e-5)
        assert one.score == pytest.approx(1 - first + second, abs=1e-5)
        assert one.best[0][0] == saved.labels[int(row.argmax())]
    assert found.suggestions[0].score >= found.suggestions[1].score


def test_run_without_examples_notes_it(
    finished: Path, tiny_clip: Backbone, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load(finished, tiny_clip)
    suggest_images(saved, [pool], 3, progress=False)
    assert capsys.readouterr().err == ""
    without = saved._replace(fitted=replace(saved.fitted, examples=None))
    assert suggest_images(without, [pool], 3, progress=False).known == 0
    assert "training images" in capsys.readouterr().err


def test_without_a_run(tiny_clip: Backbone, pool: Path) -> None:
    found = first_images(pool, 4, rule="typicality", backbone=tiny_clip, progress=False)
    assert found.suggestions[0].best == ()
    assert found.known == 0
    named = first_images(
        pool, 4, names=["cat", "dog"], rule="balanced", backbone=tiny_clip, progress=False
    )
    assert {label for one in named.suggestions for label, _ in one.best} == {"cat", "dog"}


def test_refused_suggestions(
    finished: Path, tiny_clip: Backbone, pool: Path, colors: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="did you mean 'margin'"):
        suggest_images(finished, pool, 4, rule="margins", backbone=tiny_clip)
    with pytest.raises(UserError, match="names of the classes"):
        first_images(pool, 4, rule="balanced", backbone=tiny_clip)
    with pytest.raises(UserError, match="at least two"):
        first_images(pool, 4, names=["cat", "cat"], backbone=tiny_clip)
    with pytest.raises(UserError, match="at least one image"):
        suggest_images(finished, pool, 0, backbone=tiny_clip, progress=False)
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"broken\.png"):
        suggest_images(
            finished, [pool, tmp_path / "broken.png"], 4, backbone=tiny_clip, progress=False
        )
    with pytest.raises(UserError, match="no readable image"):
        suggest_images(
            finished, tmp_path / "broken.png", 4, backbone=tiny_clip, skip_bad=True, progress=False
        )


# The list and the page

EVIL = "<script>alert(1)</script>"


def example(folder: Path, count: int = 2) -> Suggestions:
    Image.new("RGB", (400, 300), "red").save(folder / "a.png")
    one = Suggestion(folder / "a.png", 1, 0.5, (("=cat", 0.7), (EVIL, 0.2)))
    gone = Suggestion(Path("-gone.png"), 2, 0.25, ())
    return Suggestions("margin", 10, 3, 1, (one, gone)[:count])


def test_csv_has_no_formula(tmp_path: Path) -> None:
    write_csv(tmp_path / "s.csv", example(tmp_path))
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found == [
        list(COLUMNS),
        ["a.png", "", "1", "0.5", "'=cat", "0.7", EVIL, "0.2"],
        [os.path.relpath("-gone.png", tmp_path), "", "2", "0.25", "", "", "", ""],
    ]


def test_page_shows_images_without_scripts(tmp_path: Path) -> None:
    write_page(tmp_path / "s.html", example(tmp_path), EVIL, tmp_path / "s.csv")
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


def test_page_with_one_image(tmp_path: Path) -> None:
    found = example(tmp_path, count=1)
    write_page(
        tmp_path / "s.html", replace(found, pool=1, known=1, copies=2), "a run", tmp_path / "s.csv"
    )
    text = Page(tmp_path / "s.html").text
    assert "1 of 1 image to label." in text
    assert "1 image that the run was fitted to was left out." in text
    assert "2 near-duplicates of others were left out." in text


def test_every_rule_has_a_meaning() -> None:
    assert set(MEANINGS) == {*NEXT, *FIRST}
