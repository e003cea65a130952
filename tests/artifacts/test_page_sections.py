"""What a page says of one set, counted again by hand and with scikit-learn."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from rmadapter.artifacts.mistakes import Mistake, Neighbour
from rmadapter.artifacts.page import thumbnails_of
from rmadapter.artifacts.predictions import Evaluation, Predictions
from rmadapter.artifacts.run_page import MATRIX_LIMIT, TRAINING, Change, panel, write_run_page
from rmadapter.data.read import ImageSet
from tests.helpers.html import Page
from tests.helpers.run_pages import correct, evaluation, record, score, write


def found(n: int = 200, classes: int = 4, seed: int = 0) -> Predictions:
    e = evaluation("test, all classes", n, tuple(f"class {i}" for i in range(classes)), seed)
    return Predictions.of(score(e, "all"), e)


def test_the_matrix_counts_like_scikit_learn() -> None:
    its = found()
    rows = panel(0, its.score, its, {})["matrix"]["rows"]
    wanted = confusion_matrix(its.true, its.answer.which, labels=range(4))
    np.testing.assert_array_equal([[n for n, _ in cells] for _, _, cells in rows], wanted)
    shares = np.array([[share for _, share in cells] for _, _, cells in rows])
    np.testing.assert_allclose(shares, wanted / wanted.sum(1)[:, None])
    assert [name for name, _, _ in rows] == [f"class {i}" for i in range(4)]


@pytest.mark.parametrize(("classes", "there"), [(MATRIX_LIMIT, True), (MATRIX_LIMIT + 1, False)])
def test_beyond_25_classes_there_is_a_list_alone(classes: int, there: bool) -> None:
    its = found(classes=classes)
    part = panel(0, its.score, its, {})
    assert (part["matrix"] is not None) == there


def test_many_classes_get_a_list_instead_of_a_matrix(tmp_path: Path) -> None:
    e = evaluation("test, all classes", 500, tuple(f"class {i}" for i in range(101)), 2)
    labels = (*[7] * 30, *e.images.labels[30:])
    e = Evaluation(
        e.title, ImageSet(e.images.images, labels, e.classes), e.probabilities, e.zero_shot
    )
    e.probabilities[:30], e.zero_shot[:30] = np.eye(101)[8], np.eye(101)[9]
    write(tmp_path / "r.html", record(score(e, "all")), [e], [])
    page = Page(tmp_path / "r.html")
    assert "confusion matrix" not in page.values("aria-label")
    assert "A matrix of 101 classes" in page.text
    assert re.search(r"class 7 taken for class 8, 3\d of 3\d times \(before: \d\)", page.text)
    assert re.search(r"class 7 ?class 8 ?3\d", page.text)


def test_the_largest_confusions_are_named_in_order() -> None:
    its = found()
    counts = confusion_matrix(its.true, its.answer.which, labels=range(4))
    before = confusion_matrix(its.true, its.zero_shot.which, labels=range(4))
    np.fill_diagonal(counts, 0)
    part = panel(0, its.score, its, {})
    assert [pair["n"] for pair in part["pairs"]] == sorted(counts[counts > 0], reverse=True)
    largest = part["in_words"][0]
    true, said = (int(largest[name].split()[1]) for name in ("true", "said"))
    assert (largest["n"], largest["before"]) == (counts.max(), before[true, said])
    assert len(part["in_words"]) == 3


def test_a_class_without_an_image_comes_last() -> None:
    e = evaluation("test, all classes", 60, ("ant", "bee", "cat"), 0)
    kept = e.images.subset(i for i, label in enumerate(e.images.labels) if label != 1)
    rows = [i for i, label in enumerate(e.images.labels) if label != 1]
    part = type(e)(e.title, kept, e.probabilities[rows], e.zero_shot[rows])
    per_class = panel(0, score(part, "all"), Predictions.of(score(part, "all"), part), {})[
        "per_class"
    ]
    assert [(row["name"], row["n"]) for row in per_class][-1] == ("bee", 0)
    assert per_class[0]["change"] >= per_class[1]["change"]


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [(30, 5, "is better"), (5, 30, "is worse"), (10, 9, "may be no better")],
)
def test_the_verdict_claims_no_more_than_the_interval(gained: int, lost: int, words: str) -> None:
    e = evaluation("test, all classes", 100, ("a", "b"), 0)
    labels = np.array(e.images.labels)
    right = np.eye(2, dtype=np.float32)[labels] * 0.8 + 0.1
    before, after = right.copy(), right.copy()
    before[:gained], after[gained : gained + lost] = (
        1 - right[:gained],
        1 - right[gained : gained + lost],
    )
    its = type(e)(e.title, e.images, after, before)
    change = Change.of(Predictions.of(score(its, "all"), its))
    assert change.points == pytest.approx(gained - lost)
    assert change.verdict.startswith(words)
    assert (change.low > 0 or change.high < 0) == (words != "may be no better")
    for rate, (low, high) in zip(correct(its), (change.before, change.after), strict=True):
        assert low < rate < high
    assert change.ece == pytest.approx(abs(90 - correct(its)[1]), abs=0.01)


def test_images_that_are_gone_come_from_the_earlier_page(tmp_path: Path) -> None:
    e = evaluation("test, all classes", 40, ("x", "y"), 1)
    write(tmp_path / "r.html", record(score(e, "all")), [e])
    kept = thumbnails_of(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert kept
    for (number, file), src in kept.items():
        assert number == 0
        assert f'title="{escape(file)}"' in text
        assert src in text
    its = Predictions.of(score(e, "all"), e)
    gone = Predictions(**{**vars(its), "sources": (None,) * 40})
    cards = [card for o in panel(0, its.score, gone, kept)["outcomes"] for card in o["cards"]]
    assert {card["src"] for card in cards} == {*kept.values()}
    assert not any(
        card["src"] for o in panel(1, its.score, gone, kept)["outcomes"] for card in o["cards"]
    )
    assert thumbnails_of(tmp_path / "none.html") == {}


def test_mistakes_are_shown_with_the_nearest_training_images(tmp_path: Path) -> None:
    e = evaluation("test, all classes", 40, ("sea horse", "y"), 1)
    e = replace(e, images=replace(e.images, written=("sea_horse", "y")))
    its = Predictions.of(score(e, "all"), e)
    row = int(np.flatnonzero(its.answer.which != its.true)[0])
    Image.new("RGB", (300, 200), "red").save(tmp_path / "near.png")
    near = (
        Neighbour("near.png", tmp_path / "near.png", "sea_horse", 0.876),
        Neighbour("<gone>.png", None, "<b>", 0.5),
    )
    wrong = [Mistake(its.images[row], near)]
    write_run_page(tmp_path / "r.html", record(score(e, "all")), [its], [], wrong=wrong)
    page = Page(tmp_path / "r.html")
    text = page.text
    assert "why" in page.values("id")
    answer, true = (its.classes[which[row]] for which in (its.answer.which, its.true))
    shares = [
        f"{100 * guess.probability[row]:.0f}" for guess in (its.answer, its.second, its.zero_shot)
    ]
    assert f"true class: {true}adapted: {answer} {shares[0]} %, {true} {shares[1]} %" in text
    assert f"zero-shot: {its.classes[its.zero_shot.which[row]]} {shares[2]} %" in text
    assert re.search(r"sea horse ?0\.88", text)
    assert re.search(r"<b> ?0\.50", text)
    kept = thumbnails_of(tmp_path / "r.html")
    assert kept[TRAINING, "near.png"]
    gone = Predictions(**{**vars(its), "sources": (None,) * 40})
    wrong = [Mistake(its.images[row], tuple(one._replace(source=None) for one in near))]
    write_run_page(tmp_path / "again.html", record(score(e, "all")), [gone], [], kept, wrong)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "r.html").read_bytes()
    write_run_page(tmp_path / "none.html", record(score(e, "all")), [its], [])
    assert "why" not in Page(tmp_path / "none.html").values("id")
