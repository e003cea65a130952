"""How far an exported model is from the fitted one, and on which images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.image_set import relative
from rmadapter.data.read import ImageSource
from rmadapter.errors import UserError
from rmadapter.export.engines import Outputs
from rmadapter.export.parity import (
    DECISIONS,
    HEADER,
    LIMITS,
    ComparedImages,
    DecisionFacts,
    Limit,
    Parity,
    compared_images,
    decisions,
    generated_images,
    measure,
    training_images,
)

BEFORE = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])


def test_measured_differences() -> None:
    after = BEFORE + np.array([[0, 0], [-0.2, 0.2], [0.01, -0.01], [0, 0]])
    parity = measure(ComparedImages("some", ["a"] * 4, [0, 0, 1, 1]), BEFORE, after)
    assert parity.difference == pytest.approx(0.2)
    assert parity == Parity("some", 4, 0.75, parity.difference, before=75.0, after=50.0)
    assert parity.row() == ["some", "4", "75.0", "2.0e-01", "75.0", "50.0"]
    assert measure(ComparedImages("some", ["a"] * 4), BEFORE, BEFORE) == Parity("some", 4, 1.0, 0.0)


def test_changed_decisions(calibrated: Path, tiny_clip: Backbone) -> None:
    """At 10 %, what has a probability of 0.2 is in the sets; the first image loses a class, and the
    second its own; the third is rejected then."""
    saved = load(calibrated, tiny_clip)
    table = np.array([[0.5, 0.3, 0.1, 0.1], [0.7, 0.25, 0.05, 0.0], [0.9, 0.1, 0.0, 0.0]] * 2)
    table = np.concatenate([table, [[0.9, 0.1, 0.0, 0.0]] * 2])
    other, far = table.copy(), np.zeros(8)
    other[0], other[1] = [0.7, 0.1, 0.1, 0.1], [0.9, 0.1, 0.0, 0.0]
    before, after = Outputs(table, None, far), Outputs(other, None, np.eye(8)[2])
    labels = [0, 1, 0, 0, 1, 0, 0, 2]
    rows = [*decisions(saved, before, after, labels)]
    assert [(row["option"], row["share"]) for row in rows] == [
        ("error", 0.05), ("error", 0.1), ("turn_away", 0.05), ("turn_away", 0.1),
    ]  # fmt: skip
    assert rows[1] == {"option": "error", "share": 0.1, "same": 75, "before": 12.5, "after": 25}
    assert rows[3] == {
        "option": "turn_away", "share": 0.1, "same": 87.5, "before": 0, "after": 12.5,
    }  # fmt: skip
    for unlabelled in decisions(saved, before, Outputs(table), ()):
        assert (unlabelled["option"], unlabelled["same"]) == ("error", 100)
        assert unlabelled["before"] is unlabelled["after"] is None
    few = Calibration((0.2, 0.4), (0, 1), 4, "folds")
    own = RejectionScore((0.9,) * 4, (0.1, 0.2, 0.3, 0.4), "folds")
    small = saved._replace(fitted=replace(saved.fitted, calibration=few, familiarity=own))
    found = [row["share"] for row in decisions(small, before, after, labels)]
    assert found == [0.684, 0.438]
    bare = saved._replace(fitted=replace(saved.fitted, calibration=None, familiarity=None))
    assert not [*decisions(bare, before, after, labels)]


@pytest.mark.parametrize(
    ("parity", "limit", "fault"),
    [
        (Parity("", 9, 1.0, 9e-5), LIMITS["fp32"], ""),
        (Parity("", 200, 0.995, 9e-5), LIMITS["fp32"], "0.5 % of its answers differ"),
        (Parity("", 9, 1.0, 2e-4), LIMITS["fp32"], "0.0002, more than the 0.0001"),
        (Parity("", 9, 1.0, float("nan")), LIMITS["fp32"],
         "a probability differs by nan, more than the 0.0001 allowed"),
        (Parity("", 9, 1.0, 0.0, distances=2e-4), LIMITS["fp32"], "a distance differs by 0.0002"),
        (Parity("", 9, 1.0, 0.0, distances=float("nan")), LIMITS["fp16"], "differs by nan"),
        (Parity("", 9, 0.9, 9e-3), LIMITS["fp16"], ""),
        (Parity("", 9, 0.9, 2e-2), LIMITS["fp16"], "0.02, more than the 0.01"),
        (Parity("", 9, 0.8, 0.3, 80.0, 79.6), LIMITS["int8"], ""),
        (Parity("", 9, 0.8, 0.3, 80.0, 79.0), LIMITS["int8"],
         "it loses 1.0 points of accuracy (80.0 % before), more than the 0.5 allowed"),
        (Parity("", 9, 0.0, 1.0, 80.0, 0.0), Limit(), ""),
    ],
)  # fmt: skip
def test_faults(parity: Parity, limit: Limit, fault: str) -> None:
    text = parity.fault(limit)
    assert (fault in text) if fault else not text


def paths(images: Sequence[ImageSource]) -> list[Path]:
    return [Path(str(image)).absolute() for image in images]


@pytest.fixture
def own_data(colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the training images of `colors`, where the run expects its data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors / "train", tmp_path / "colors/train")
    return tmp_path / "colors"


def test_test_images_are_compared(saved: Saved, finished: Path, colors: Path) -> None:
    compared = compared_images(finished, saved, colors, False, 100)
    assert compared.title == f"test images of {colors.name}"
    assert sorted(paths(compared.images)) == sorted(colors.glob("test/*/*.png"))
    for path, i in zip(paths(compared.images), compared.labels, strict=True):
        assert path.parent.name == saved.labels[i]
    assert len(compared_images(finished, saved, colors, False, 5).images) == 5


def test_generated_images_replace_missing_data(saved: Saved, finished: Path) -> None:
    generated = compared_images(finished, saved, None, False, 100)
    assert (generated.title, len(generated.labels)) == ("generated", 0)
    assert len(training_images(finished)) == len(generated.images)


def test_data_without_images_of_the_classes_is_refused(
    saved: Saved, finished: Path, colors: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(colors / "test", tmp_path / "other"))
    for folder in list(other.iterdir()):
        folder.rename(other / f"no {folder.name}")
    for data, message in ((other, "no readable image"), (tmp_path / "gone", "no such file")):
        with pytest.raises(UserError, match=message) as caught:
            compared_images(finished, saved, data, False, 100)
        assert str(data) in str(caught.value)


@pytest.mark.parametrize(("kept", "title"), [(6, "images of colors, 16 of 24 trained on"),
                                             (4, "training images of colors")])  # fmt: skip
def test_drawn_images_are_compared_where_others_are_few(
    saved: Saved, finished: Path, own_data: Path, kept: int, title: str
) -> None:
    """Up to 64 images, and those that were not drawn first."""
    drawn = {*paths(training_images(finished))}
    for folder in (own_data / "train").iterdir():
        others = [file for file in sorted(folder.iterdir()) if file.absolute() not in drawn]
        for file in others[kept - 4 :]:
            file.unlink()
    compared = compared_images(finished, saved, None, False, 100)
    assert compared.title == title
    images = paths(compared.images)
    assert drawn == {*images[4 * (kept - 4) :]}
    assert len({*images}) == len(images) == len(compared.labels) == 4 * kept
    for path, i in zip(images, compared.labels, strict=True):
        assert path.parent.name == saved.labels[i]
    assert len(compared_images(finished, saved, None, False, 10).images) == 10


def test_own_data_without_drawn_images(
    saved: Saved, finished: Path, own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.export.parity.MIN_IMAGES", 8)
    held = compared_images(finished, saved, None, False, 100)
    assert held.title == "held out images of colors"
    assert len(held.images) == 4 * (6 - 4)
    named = compared_images(finished, saved, own_data, False, 100)  # the same, named by the user
    assert (named.title, named.labels) == (held.title, held.labels)
    assert paths(named.images) == paths(held.images)
    copy = Path(shutil.copytree(own_data, tmp_path / "other"))
    other = compared_images(finished, saved, copy, False, 100)
    assert (other.title, len(other.images)) == ("images of other", 4 * 6)
    drawn = training_images(finished)
    assert len(drawn) == 4 * 4
    assert not {*paths(held.images)} & {*paths(drawn)}


def test_validation_images_are_not_held_out(
    saved: Saved, finished: Path, own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.export.parity.MIN_IMAGES", 1)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = paths(compared_images(run, saved, None, False, 100).images)
    split = json.loads((run / "split.json").read_text())
    validation = [[relative(before[0], own_data), 0, split["classes"][0]]]
    (run / "split.json").write_text(json.dumps({**split, "val": validation}))
    after = paths(compared_images(run, saved, None, False, 100).images)
    assert {*before} - {*after} == {before[0]}
    assert len(training_images(run)) == 4 * 4


def test_generated_images_are_always_the_same() -> None:
    first, second = generated_images(3), generated_images(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({image.shape for image in first}) > 1


def test_table_with_other_column_names(
    saved: Saved, finished: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmadapter.export.parity.MIN_IMAGES", 1)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    home = Path(shutil.copytree(colors, tmp_path / "colors"))
    lines = ["foto;art;teil"]
    for file in home.glob("t*/*/*.png"):
        lines.append(f"{file.relative_to(home)};{file.parts[-2]};{file.parts[-3]}")
    (home / "all.csv").write_text("\n".join(lines))
    record = read_record(run / "run.json")
    task = replace(record.task, data=str(home / "all.csv"))
    named = {"image": "foto", "label": "art", "split": "teil"}
    for columns, title in ((named, "test images of all.csv"), ({}, "generated")):
        record.model_copy(update={"task": task, "columns": columns}).save(run / "run.json")
        assert compared_images(run, saved, None, False, 100).title == title


CHANGED: DecisionFacts = {
    "option": "error", "share": 0.05, "same": 100.0, "before": 100.0, "after": None,
}  # fmt: skip


def test_tables_fit_into_80_columns() -> None:
    row = Parity("test images of sign_digits", 1000, 0.995, 2.8e-5, 100.0, 100.0).row()
    assert width(HEADER, row) <= 80
    assert width(DECISIONS, Parity("", 9, 1.0, 0.0, decisions=(CHANGED,)).decision_rows()[0]) <= 80


def width(*rows: list[str]) -> int:
    return 1 + sum(3 + max(map(len, cells)) for cells in zip(*rows, strict=True))
