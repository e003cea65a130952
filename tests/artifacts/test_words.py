"""Plain sentences about a run, by records and answers that the test makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rmadapter.artifacts.predictions import Evaluation, Predictions
from rmadapter.artifacts.record import Judgement, Rates, Score
from rmadapter.artifacts.summary import (
    Confusion,
    broken_promises,
    confusions,
    describe_judged,
    how_many_right,
    weak_classes,
)
from rmadapter.artifacts.value import Promise
from rmadapter.data.image_set import ImageSet

RATES: dict[str, Any] = {"macro_f1": 58.75, "calibration_error": 3.21}
CLASSES = ("ant", "bee", "cat", "dog", "emu", "fox")


def judged(recalls: list[float | None], **more: Any) -> Judgement:
    common = {**RATES, "recalls": recalls}
    rows = (
        Rates(name="zero-shot", accuracy=40.4, low=35.0, high=45.0, p=0.01, **common),
        Rates(name="rmadapter-plus", accuracy=84.6, low=77.6, high=89.7, **common),
    )
    classes = CLASSES[: len(recalls)]
    return Judgement(
        how="on the test split", images=120, classes=classes, majority=9, rows=rows, **more
    )


def promise(error: float, missed: float, low: float, high: float) -> Promise:
    return Promise(
        error=error, calibrated=99, most=9.0, by_class=False, missed=missed, low=low, high=high,
        labels=1.2, answered=80.0, right=95.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recalls", "named"),
    [
        ([84.6, 75.0], ""),  # within ten points of the accuracy
        ([90.0, 74.6, None], "bee (75 of 100)"),
        ([70.0, 10.0, 60.0, 90.0], "bee (10 of 100), cat (60 of 100), ant (70 of 100)"),
        ([1.0, 5.0, 4.0, 3.0, 2.0], "ant (1 of 100), emu (2 of 100), dog (3 of 100) and 2 more"),
    ],
)
def test_weak_classes_are_far_below_the_accuracy(recalls: list[float | None], named: str) -> None:
    assert weak_classes(judged(recalls)) == named


def test_a_promise_is_broken_where_its_interval_says_so() -> None:
    kept, unsure = promise(5, 4.0, 2.0, 8.0), promise(5, 9.0, 4.9, 14.0)
    assert broken_promises(judged([90.0], promises=(kept, unsure))) == []
    [text] = broken_promises(judged([90.0], promises=(kept, promise(5, 9.0, 5.1, 14.0))))
    assert all(number in text for number in ("5 %", "9.0 %", "5.1 to 14.0"))


def test_mistakes_are_counted_and_the_largest_come_first() -> None:
    true = np.array([0] * 6 + [1] * 4)
    said = np.array([1, 1, 1, 0, 0, 2, 1, 1, 0, 1])
    before = np.array([1, 2, 1, 0, 0, 0, 1, 1, 1, 1])
    images = ImageSet(("x.png",) * 10, tuple(true.tolist()), CLASSES[:3])
    tables = [np.eye(3, dtype=np.float32)[answers] for answers in (said, before)]
    score = Score(name="all", images=10, classes=3, split="test", accuracy=50.0, zero_shot=50.0)
    answers = Predictions.of(score, Evaluation("all classes", images, *tables))
    found = confusions(answers, 2)
    assert found[0] == Confusion("ant", "bee", 3, 2, 6)
    assert {(one.true, one.said, one.n, one.total) for one in found[1:]} < {
        ("ant", "cat", 1, 6),
        ("bee", "ant", 1, 4),
    }


def test_the_sentences_hold_the_figures() -> None:
    its = judged([90.0, 20.0])
    assert all(part in how_many_right(its) for part in ("85 of 100", "78 to 90"))
    weak, mistakes, others = describe_judged(its, [Confusion("bee", "ant", 4, 0, 5)])
    assert "bee (20 of 100)" in weak
    assert "bee taken for ant (4 of 5)" in mistakes
    assert "zero-shot 40" in others
    assert len(describe_judged(judged([90.0]), [])) == 2
