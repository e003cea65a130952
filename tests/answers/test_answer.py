"""Rows of answers, and the columns of a table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rmadapter.answers.answer import Answer, Levels
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.predict.write import kind_of


def test_a_row_keeps_the_guess_of_an_unsure_answer() -> None:
    answer = Answer((("cat", 0.6), ("dog", 0.4)), image=Path("a.png"), zero_shot="dog")
    row = {"image": "a.png", "label": "cat", "probability": 0.6, "guess": "cat"}
    row |= {"label_2": "dog", "probability_2": 0.4, "unsure": False}
    row |= {"unfamiliar": None, "zero_shot_label": "dog"}
    assert answer.row() == row
    assert answer.row(0.6) == {**row, "decision": "answer"}
    unsure = {"label": "unsure", "unsure": True, "decision": "unsure"}
    assert answer.row(0.61) == {**row, **unsure}
    assert answer.json(0.61)["decision"] == "unsure"
    assert "decision" not in answer.json()


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, math.inf])
@pytest.mark.parametrize("familiar", [None, True, False])
def test_the_decision_agrees_with_the_label(threshold: float, familiar: bool | None) -> None:
    answer = Answer((("cat", 0.6), ("dog", 0.4)), familiar=familiar)
    row, decision = answer.row(threshold), answer.decision(threshold)
    expected = "answer" if threshold <= 0.6 else "unsure"
    assert decision == ("none of these" if familiar is False else expected)
    assert row["label"] == ("cat" if decision == "answer" else decision)
    assert row["unsure"] == (decision == "unsure")
    assert row["decision"] == answer.json(threshold)["decision"] == decision


def test_an_answer_is_unsure_if_its_set_has_another_class() -> None:
    best_two = (("cat", 0.6), ("dög", 0.4))
    sure = Answer(best_two, labels=("cat",)).row()
    assert (sure["label"], sure["set"], sure["decision"]) == ("cat", '["cat"]', "answer")
    doubtful = Answer(best_two, labels=("cat", "dög")).row()
    assert (doubtful["label"], doubtful["guess"]) == ("unsure", "cat")
    assert (doubtful["set"], doubtful["decision"]) == ('["cat", "dög"]', "unsure")
    assert doubtful["unsure"] is True


# With a taxonomy

TREE = Taxonomy.of({"a": "x", "b": "x", "c": "y", "x": "z", "y": "z"}, ["a", "b", "c", "d"])
TABLE = np.array([[0.4, 0.3, 0.2, 0.1], [0.3, 0.0, 0.1, 0.6]])


def leveled(members: list[list[int]], familiar: bool | None = None) -> list[Answer]:
    levels = Levels.of(TREE, TABLE, members)
    answers = []
    for row, numbers, own in zip(TABLE, members, levels, strict=True):
        labels = tuple("abcd"[number] for number in numbers)
        best = tuple(("abcd"[i], float(row[i])) for i in np.argsort(-row)[:2])
        answers.append(Answer(best, labels, familiar, own))
    return answers


def test_a_parent_answers_where_the_probability_is_too_low() -> None:
    first, second = leveled([[], []])
    wanted = {0.4: "a", 0.5: "x", 0.7: "x", 0.8: "z", 0.95: "unsure"}
    for unsure, label in wanted.items():
        row = first.row(unsure)
        assert (row["label"], row["unsure"]) == (label, label == "unsure")
        assert row["level"] == {"a": "label", "x": "parent", "z": "grandparent"}.get(label)
        assert row["guess"] == "a"
        assert row["decision"] == ("unsure" if label == "unsure" else "answer")
    assert second.row(0.7)["label"] == "unsure"  # d has no parent
    assert (first.row()["parent"], first.row()["probability_parent"]) == ("x", 0.7)
    assert (second.row()["parent"], second.row()["grandparent"]) == ("d", "d")
    assert first.decision() == ""
    assert "answer" not in first.json()
    assert first.json(0.5)["answer"] == {"class": "x", "level": "parent"}
    assert second.json(0.7)["answer"] is None
    assert first.json()["levels"] == [
        {"level": "parent", "class": "x", "probability": 0.7},
        {"level": "grandparent", "class": "z", "probability": 0.9},
    ]


def test_the_common_parent_of_a_set_answers() -> None:
    first, second = leveled([[0, 1], [3, 0]])
    assert (first.row()["label"], first.row()["decision"]) == ("x", "answer")
    assert (second.row()["label"], second.row()["decision"]) == ("unsure", "unsure")
    assert first.json()["answer"] == {"class": "x", "level": "parent"}
    assert first.json()["decision"] == "answer"
    wide, single = leveled([[0, 1, 2], [3]])
    assert (wide.row()["label"], wide.row()["level"]) == ("z", "grandparent")
    assert (single.row()["label"], single.row()["level"]) == ("d", "label")
    rejected, _ = leveled([[0, 1], [3]], familiar=False)
    assert (rejected.row()["label"], rejected.row()["level"]) == ("none of these", None)
    assert rejected.json()["decision"] == "none of these"
    assert "answer" not in rejected.json()


def test_probabilities_of_levels_are_numbers() -> None:
    assert kind_of("probability_parent") is float
    assert kind_of("parent") is kind_of("level") is str
