from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.evaluate import compare
from rmadapter.task import Question


def test_a_run_beside_its_untouched_backbone(
    finished: Path, tiny_clip: Backbone, colors: Path
) -> None:
    images = read_images(colors)["test"]
    runs = [load(finished, tiny_clip, settings={"alpha": alpha}) for alpha in (0, 1.0)]
    first, second = compare([(Path("untouched"), runs[0]), (finished, runs[1])], images)
    [score] = read_record(finished / "run.json").scores
    assert (first.accuracy, second.accuracy) == (
        pytest.approx(score.zero_shot),
        pytest.approx(score.accuracy),
    )
    assert first.row() == ["untouched", "RMAdapter", f"{score.zero_shot:.1f}", "", "", ""]
    assert second.difference == pytest.approx(second.accuracy - first.accuracy)
    assert second.low is not None
    assert second.high is not None
    assert second.p is not None
    assert 0 < second.low < second.difference < second.high
    assert second.p < 0.01
    assert second.json()["p"] == second.p


def test_a_run_beside_itself(
    finished: Path, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    runs = [(folder, load(folder, tiny_clip)) for folder in (finished, copy)]
    _, second = compare(runs, read_images(colors)["test"])
    assert (second.difference, second.p) == (0, 1)
    assert second.low == pytest.approx(-(second.high or 0))


def test_an_empty_comparison_is_refused(finished: Path, tiny_clip: Backbone, colors: Path) -> None:
    runs = [(finished, load(finished, tiny_clip))]
    with pytest.raises(UserError, match="no images to compare on"):
        compare(runs, read_images(colors)["test"].subset([]))


def test_a_run_is_asked_by_its_own_names_however_accents_are_stored(
    finished: Path, tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = replace(
        read_images(colors)["test"], written=("ble\u0301", "green", "night_sky", "red")
    )
    saved = load(finished, tiny_clip)
    saved = saved._replace(
        labels=("bl\u00e9", *saved.labels[1:]), names=("bluish thing", *saved.names[1:])
    )
    asked: list[ImageSet] = []

    def stop(
        fitted: object, questions: list[tuple[Question, ImageSet, bool]], cache: object
    ) -> None:
        asked.append(questions[0][1])
        raise UserError("enough")

    monkeypatch.setattr("rmadapter.runs.evaluate.evaluate", stop)
    with pytest.raises(UserError, match="enough"):
        compare([(finished, saved)], images)
    assert asked[0].classes == ("bluish thing", "green", "night sky", "red")
