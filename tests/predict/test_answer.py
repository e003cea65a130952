"""Rows of answers, and the columns of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rmadapter.predict.answer import Answer, best, columns


def test_a_row_keeps_the_guess_of_an_unsure_answer() -> None:
    answer = Answer(Path("a.png"), (("cat", 0.6), ("dog", 0.4)), "dog")
    row = {"image": "a.png", "label": "cat", "probability": 0.6, "guess": "cat"}
    row |= {"label_2": "dog", "probability_2": 0.4, "unsure": False}
    row |= {"unfamiliar": None, "zero_shot_label": "dog"}
    assert answer.row(0.6) == row
    assert answer.row(0.61) == {**row, "label": "unsure", "unsure": True}


def test_columns_match_rows() -> None:
    answer = Answer(Path("a.png"), (("cat", 0.6), ("dog", 0.4)), "dog", 0.1)
    assert set(columns(2, unfamiliar=True)) == set(answer.row())
    assert columns(1, zero_shot=False) == ["image", "label", "probability", "guess", "unsure"]
    assert columns(1, sort=True)[-2:] == ["zero_shot_label", "sorted_to"]


def test_an_answer_is_unsure_if_its_set_has_another_class() -> None:
    best_two = (("cat", 0.6), ("dög", 0.4))
    sure = Answer(Path("a.png"), best_two, labels=("cat",)).row()
    assert (sure["label"], sure["set"], sure["decision"]) == ("cat", '["cat"]', "answer")
    doubtful = Answer(Path("a.png"), best_two, labels=("cat", "dög")).row()
    assert (doubtful["label"], doubtful["guess"]) == ("unsure", "cat")
    assert (doubtful["set"], doubtful["decision"]) == ('["cat", "dög"]', "unsure")
    assert doubtful["unsure"] is True
    assert columns(1, zero_shot=False, sets=True)[-3:] == ["unsure", "set", "decision"]


def test_of_equally_probable_classes_the_first_comes_first() -> None:
    classes = best(("a", "b", "c", "d"), np.array([0.1, 0.4, 0.1, 0.4], np.float32), 3)
    assert classes == [("b", 0.4), ("d", 0.4), ("a", 0.1)]
