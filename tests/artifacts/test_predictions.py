"""predictions.csv: what is written comes back, and what does not belong to the run is refused."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmadapter.artifacts.page import write_run_page
from rmadapter.artifacts.predictions import (
    COLUMNS,
    Evaluation,
    Predictions,
    predictions_of,
    read_predictions,
    write_predictions,
)
from rmadapter.artifacts.record import Record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.data.fewshot import FewShot, save_split
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.task import Question, Task
from tests.helpers.html import Page
from tests.helpers.run_pages import evaluation, record, score

LABELS = ("=sum(A1)", "sea_horse", 'a "b", c')
NAMES = ("formula", "sea horse | a fish", "letters")


def asked(folder: Path, **changes: Any) -> tuple[Record, list[Evaluation]]:
    """A run of all classes whose images were cross-validated, and its draw."""
    e = evaluation("cross-validated, all classes", 50, NAMES, 3)
    paths = tuple(folder / f"data/{i}.png" for i in range(50))
    images = ImageSet(paths, e.images.labels, NAMES, folder / "data", written=LABELS)
    its = replace(e, images=images)
    train = replace(e.images.subset([0]), written=LABELS)
    save_split(FewShot(train, None, train, 1, 1, ()), folder / "split.json")
    task = Task(data=str(folder / "data"))
    return record(score(its, "all", split="cross-validated"), task=task, **changes), [its]


def written(folder: Path) -> tuple[Record, list[Predictions]]:
    its, evaluations = asked(folder)
    found = predictions_of(its, evaluations)
    write_predictions(RunFolder(folder).predictions, found)
    return its, found


def test_every_image_is_a_row_with_its_answers(tmp_path: Path) -> None:
    its, [e] = asked(tmp_path)
    write_predictions(RunFolder(tmp_path).predictions, predictions_of(its, [e]))
    with open(RunFolder(tmp_path).predictions, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {(row["set"], row["split"]) for row in rows} == {("all", "cross-validated")}
    assert [row["image"] for row in rows] == [f"{i}.png" for i in range(50)]
    safe = ("'=sum(A1)", *LABELS[1:])  # no formula to a spreadsheet
    assert [row["true"] for row in rows] == [safe[label] for label in e.labels]
    for row, own, untouched in zip(rows, e.probabilities, e.zero_shot, strict=True):
        second, best = np.argsort(own)[1:]
        assert (row["answer"], row["second"]) == (safe[best], safe[second])
        assert float(row["probability"]) == pytest.approx(own.max(), abs=1e-6)
        assert float(row["second_probability"]) == pytest.approx(own[second], abs=1e-6)
        assert row["zero_shot"] == safe[untouched.argmax()]
        assert float(row["zero_shot_probability"]) == pytest.approx(untouched.max(), abs=1e-6)


def test_round_trip(tmp_path: Path) -> None:
    its, [wanted] = written(tmp_path)
    [found] = read_predictions(tmp_path, its)
    assert found.classes == ("formula", "sea horse", "letters")
    assert found.labels == LABELS
    assert found.sources == tuple(tmp_path / f"data/{i}.png" for i in range(50))
    assert found.images == wanted.images
    for name in ("true", "answer", "second", "zero_shot"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_the_figures_of_the_page_are_those_of_the_file(tmp_path: Path) -> None:
    its, _ = written(tmp_path)
    write_run_page(tmp_path / "r.html", its, read_predictions(tmp_path, its), [])
    text = Page(tmp_path / "r.html").text
    with open(RunFolder(tmp_path).predictions, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    after, before = ([row["true"] == row[name] for row in rows] for name in ("answer", "zero_shot"))
    assert f": {2 * sum(after):.1f} % instead of {2 * sum(before):.1f} % right on 50 images" in text
    pairs = list(zip(before, after, strict=True))
    for name, pair in (
        ("Gained", (0, 1)),
        ("Lost", (1, 0)),
        ("Both right", (1, 1)),
        ("Both wrong", (0, 0)),
    ):
        assert f"{name} {pairs.count(pair)} (" in text  # type: ignore[arg-type]
    assert "Each image was classified by a model that had not seen it." in text
    for name, label in zip(
        ("formula", "sea horse", "letters"), ("'=sum(A1)", *LABELS[1:]), strict=True
    ):
        own = [row for row in rows if row["true"] == label]
        right = 100 * sum(row["answer"] == label for row in own) / len(own)
        assert re.search(rf"{name} \({len(own)}\) ?\d+ → {right:.0f} %", text)


def test_a_single_class_has_no_second_choice(tmp_path: Path) -> None:
    e = evaluation("test, novel classes", 3, ("only",), 0)
    [row, *_] = Predictions.of(score(e, "novel"), e).rows()
    assert row[5:8] == ("1.000000", "", "")


def test_a_test_set_may_have_other_classes_than_the_run(tmp_path: Path) -> None:
    """The names of what occurs follow from the labels."""
    its, [own] = asked(tmp_path)
    e = evaluation("far", 30, ("x y", "z"), 1)
    far = replace(e, images=replace(e.images, written=("x_y", "z")))
    task = replace(its.task, tests=(Question("all"), Question("far", "elsewhere")))
    both = its.model_copy(
        update={"task": task, "scores": (*its.scores, score(far, "far", data="elsewhere"))}
    )
    write_predictions(RunFolder(tmp_path).predictions, predictions_of(both, [own, far]))
    first, second = read_predictions(tmp_path, both)
    assert (first.labels, second.labels, second.classes) == (LABELS, ("x_y", "z"), ("x y", "z"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/secret.png",
        "../secret.png",
        "a/../../secret.png",
        "C:/Users/anna/secret.png",
        r"..\..\secret.png",
        r"\\host\share\x.png",
    ],
)
def test_a_path_out_of_the_data_has_no_source(tmp_path: Path, path: str) -> None:
    its, _ = written(tmp_path)
    file = RunFolder(tmp_path).predictions
    file.write_text(file.read_text("utf-8").replace(",7.png,", f",{path},"), "utf-8")
    [found] = read_predictions(tmp_path, its)
    assert found.sources[7] is None
    assert found.sources[8] == tmp_path / "data/8.png"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("zero_shot_probability", "x", "does not match run.json"),
        ("all,cross-validated,3.png", "base,test,3.png", "does not match run.json"),
        (",3.png,", ",", "does not match run.json"),
        ("sea_horse", "zebra", "nobody"),
        (",0.", ",-0.", "a probability outside 0 to 1"),
        (",0.", ",nan", "not a number"),
        ("set,", '"', "not readable CSV|does not match run.json"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    its, _ = written(tmp_path)
    file = RunFolder(tmp_path).predictions
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    if reason == "nobody":  # a label that the run does not know is one of another set of classes
        assert "zebra" in read_predictions(tmp_path, its)[0].labels
        return
    with pytest.raises(UserError, match=rf"predictions\.csv: .*({reason})"):
        read_predictions(tmp_path, its)


def test_a_missing_row_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    its, _ = written(tmp_path)
    file = RunFolder(tmp_path).predictions
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(
        UserError, match=r"49 images of cross-validated, all classes, but run\.json has 50"
    ):
        read_predictions(tmp_path, its)
    file.unlink()
    with pytest.raises(UserError, match=r"predictions\.csv: missing"):
        read_predictions(tmp_path, its)


def test_without_evaluations_no_file_is_written(tmp_path: Path) -> None:
    write_predictions(RunFolder(tmp_path).predictions, [])
    assert not list(tmp_path.iterdir())
    assert read_predictions(tmp_path, record()) == []


def test_classes_and_labels_are_those_of_the_images() -> None:
    images = ImageSet((np.zeros((2, 2), np.uint8),) * 3, (0, 1, 1), ("a", "b"))
    found = Evaluation("test", images, np.eye(2)[[0, 1, 0]], np.eye(2)[[0, 0, 0]])
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 1]
