"""Suggestions from a run and a pool, the list and the page, and rules on points in a plane."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.curate.suggest import (
    COLUMNS,
    DEFAULT,
    FIRST,
    MEANINGS,
    NEXT,
    UNPROVEN,
    Pool,
    Suggestion,
    Suggestions,
    balanced,
    closeness,
    coverage,
    entropy,
    first_images,
    margin,
    mix,
    pick,
    suggest_images,
    typicality,
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


def test_first_images_need_no_run(tiny_clip: Backbone, pool: Path) -> None:
    found = first_images(pool, 4, rule="typicality", backbone=tiny_clip, progress=False)
    assert found.suggestions[0].best == ()
    assert found.known == 0
    names = ["cat", "dog"]
    named = first_images(pool, 4, names=names, rule="balanced", backbone=tiny_clip, progress=False)
    assert {label for one in named.suggestions for label, _ in one.best} == {"cat", "dog"}


def test_wrong_requests_are_refused(
    finished: Path, tiny_clip: Backbone, pool: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="names of the classes"):
        first_images(pool, 4, rule="balanced", backbone=tiny_clip)
    with pytest.raises(UserError, match="at least two"):
        first_images(pool, 4, names=["cat", "cat"], backbone=tiny_clip)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    for named, images, count, options in (
        ("did you mean 'margin'", pool, 4, {"rule": "margins"}),
        ("at least one image", pool, 0, {}),
        (r"broken\.png", [pool, broken], 4, {}),
        ("no readable image", broken, 4, {"skip_bad": True}),
    ):
        with pytest.raises(UserError, match=named):
            suggest_images(finished, images, count, backbone=tiny_clip, progress=False, **options)


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


def test_page_shows_images_and_counts_without_scripts(tmp_path: Path) -> None:
    write_page(tmp_path / "s.html", example(tmp_path), EVIL, tmp_path / "s.csv")
    page = Page(tmp_path / "s.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    for counts in ("2 of 10 images", "3 images that the run was fitted to", "1 near-duplicate of"):
        assert counts in page.text
    [source] = page.values("src")
    assert source.startswith("data:image/jpeg;base64,")
    assert "not readable" in page.text
    assert "=cat 70" in page.text
    assert "://" not in (tmp_path / "s.html").read_text("utf-8")
    single = replace(example(tmp_path, count=1), pool=1, known=1, copies=2)
    nested = Suggestion(Path("a/<i>.png"), 1, 0.5, ())
    write_page(tmp_path / "s.html", replace(single, suggestions=(nested,)), "x", tmp_path / "s.csv")
    assert "a/<i>.png" in Page(tmp_path / "s.html").text
    write_page(tmp_path / "s.html", single, "a run", tmp_path / "s.csv")
    text = Page(tmp_path / "s.html").text
    for counts in ("1 of 1 image ", "1 image that the run was fitted to", "2 near-duplicates of"):
        assert counts in text


@pytest.mark.parametrize("rule", ["", "random"])
def test_images_drawn_at_random_have_no_score(
    finished: Path, tiny_clip: Backbone, pool: Path, tmp_path: Path, rule: str
) -> None:
    found = suggest_images(finished, pool, 3, rule=rule, backbone=tiny_clip, progress=False)
    assert found.rule == (rule or DEFAULT)
    write_csv(tmp_path / "s.csv", found)
    write_page(tmp_path / "s.html", found, "pool", tmp_path / "s.csv")
    columns = (tmp_path / "s.csv").read_text("utf-8").partition("\n")[0].split(",")
    text = Page(tmp_path / "s.html").text
    scored = rule != "random"
    assert {one.score is not None for one in found.suggestions} == {scored}
    assert columns == [column for column in COLUMNS if scored or column != "score"]
    assert ("0.000" in text, UNPROVEN in text) == (False, scored)


def test_every_rule_has_a_meaning() -> None:
    assert set(MEANINGS) == {*NEXT, *FIRST}


NONE = np.empty((0, 2))


def circle(degrees: list[float]) -> np.ndarray:
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], 1)


def pool_of(
    degrees: list[float], table: list[list[float]] | None = None, known: list[float] | None = None
) -> Pool:
    labelled = circle(known) if known else NONE
    return Pool(circle(degrees), labelled, np.array(table or np.empty((0, 0))))


# Rules


def test_margin_and_entropy_by_hand() -> None:
    table = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]]
    assert closeness(np.array(table)) == pytest.approx([0.2, 1.0, 0.9])
    assert margin(pool_of([0, 1, 2], table), 2).rows.tolist() == [1, 2]
    found = entropy(pool_of([0, 1, 2], table), 3)
    assert found.rows.tolist() == [2, 1, 0]
    assert found.scores[1] == pytest.approx(np.log(2))


def test_coverage_picks_the_farthest_image() -> None:
    found = coverage(pool_of([0, 80, 90, 180], known=[0]), 3)
    # the opposite one, then the one between, then the last that is no copy
    assert found.rows.tolist() == [3, 2, 1]
    assert found.scores == pytest.approx([2.0, 1.0, 1 - np.cos(np.radians(10))])
    assert coverage(pool_of([0, 40, 50, 100]), 2).rows[0] in (1, 2)  # nearest to the mean


def test_typicality_skips_labelled_clusters() -> None:
    groups = [0, 1, 2, 3, 120, 121, 122, 240, 241]
    found = typicality(pool_of(groups, known=[1.5]), 2)
    assert found.rows[0] == 5  # the middle of the largest group without a label
    assert found.rows[1] in (7, 8)
    assert len(typicality(pool_of(groups), 9).rows) == 9


def test_mix_is_unsure_and_of_different_kinds() -> None:
    sure, unsure = [0.99, 0.01], [0.5, 0.5]
    degrees = [0.0, 1, 2, 180, 181, 182, *range(60, 80)]
    table = [unsure] * 6 + [sure] * 20
    rows = mix(pool_of(degrees, table), 2).rows.tolist()
    # WIDER times two would be all of the unsure ones and 14 others
    assert len({row // 3 for row in rows}) == 2
    assert len(mix(pool_of([5, 5, 5], [unsure] * 3), 3).rows) == 3  # copies of each other


def test_balanced_takes_the_classes_in_turn() -> None:
    table = [[0.9, 0.1]] * 5 + [[0.2, 0.8]]
    found = balanced(pool_of([0, 1, 2, 3, 4, 90], table), 2)
    assert found.rows.tolist() == [2, 5]
    assert sorted(balanced(pool_of([0, 1, 2, 3, 4, 90], table), 6).rows) == list(range(6))


def test_only_the_first_of_a_group_is_picked() -> None:
    some = pool_of([0, 0, 90, 91], [[0.5, 0.5]] * 4)
    for rule in {**NEXT, **FIRST}.values():
        rows = pick(rule, some, 4, np.array([7, 7, 1, 2])).rows.tolist()
        assert sorted(rows) == [0, 2, 3]
        assert len(set(pick(rule, some, 2).rows.tolist())) == 2


def test_random_rule_depends_on_the_seed() -> None:
    some = pool_of([*range(50)])
    first, same, other = (
        pick(NEXT["random"], some._replace(seed=seed), 10).rows.tolist() for seed in (3, 3, 4)
    )
    assert first == same != other


def test_seeds_above_32_bits_are_accepted() -> None:
    """KMeans takes only 32 bits."""
    some = pool_of([0, 1, 2, 3, 120, 121, 122, 240, 241])
    for seed in (2**32, 5_000_000_000):
        assert len(typicality(some._replace(seed=seed), 3).rows) == 3
