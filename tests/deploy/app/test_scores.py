"""What the page says of a run, from its folder alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from rmadapter.artifacts.predictions import Guess, Predictions
from rmadapter.artifacts.record import Score, read_record
from rmadapter.deploy.app.scores import MOST, judged, wrong
from rmadapter.metrics import wilson


def test_a_run_that_was_judged(finished: Path, colors: Path, tmp_path: Path) -> None:
    (tmp_path / "colors").symlink_to(colors)
    found = judged(finished, tmp_path)
    assert found is not None
    record = read_record(finished / "run.json")
    assert record.judgement is not None
    assert [row["name"] for row in found["rows"]] == [
        "before: by the class names alone", "linear probe", f"after: {record.method.title}",
    ]  # fmt: skip
    own, score = found["rows"][-1], record.scores[0]
    assert (own["accuracy"], found["images"]) == (record.judgement.rows[-1].accuracy, 16)
    assert (own["low"], own["high"]) == wilson(round(own["accuracy"] * 0.16), 16)
    assert found["mistakes"] == round(16 * (1 - (score.accuracy or 0) / 100))
    assert len(found["wrong"]) == found["mistakes"]
    assert (found["how"], found["report"]) == ("on the test split", True)


def test_a_run_of_a_repository_keeps_its_judgement(finished: Path, tmp_path: Path) -> None:
    """It comes without the answers to single images."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    (copy / "predictions.csv").unlink()
    found, whole = (judged(run, tmp_path) for run in (copy, finished))
    assert found is not None
    assert whole is not None
    assert (found["rows"], found["wrong"]) == (whole["rows"], [])


def test_a_model_without_a_record(finished: Path, tmp_path: Path) -> None:
    shutil.copyfile(finished / "model.json", tmp_path / "model.json")
    assert judged(tmp_path, tmp_path) is None


def test_the_surest_mistakes_come_first(colors: Path) -> None:
    count = MOST + 5
    images = tuple(f"test/red/{i % 4}.png" for i in range(count))
    sure = np.linspace(0.5, 0.9, count)
    answer = Guess(np.ones(count, int), sure)
    answer.which[0] = 0  # which is right
    found = Predictions(
        score=Score(name="all", images=count, classes=2),
        classes=("red", "blue"),
        labels=("red", "blue"),
        images=images,
        sources=(None, *(colors / image for image in images[1:])),
        true=np.zeros(count, int),
        answer=answer,
        second=answer,
        zero_shot=answer,
    )
    told = wrong(found, {})
    assert (told["mistakes"], len(told["wrong"])) == (count - 1, MOST)
    assert [one["probability"] for one in told["wrong"]] == sorted(sure[1:], reverse=True)[:MOST]
    assert {(one["true"], one["answer"]) for one in told["wrong"]} == {("red", "blue")}
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in told["wrong"])
    gone = wrong(
        Predictions(**{**vars(found), "sources": (None,) * count}), {(0, images[-1]): "data:x"}
    )
    assert [one["src"] for one in gone["wrong"]].count("data:x") == sum(
        one["name"] == images[-1] for one in gone["wrong"]
    )
