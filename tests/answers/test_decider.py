"""What is decided from probabilities and distances, by hand; and that only this room decides."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rmadapter
from rmadapter.answers import (
    Calibration,
    Decider,
    RejectionScore,
    Taxonomy,
    read_decider,
    write_decider,
)
from rmadapter.errors import UserError

LABELS = ["cat", "dog", "owl"]
CALIBRATION = Calibration(
    (0.05, *np.linspace(0.2, 0.9, 49).round(6).tolist()),
    tuple(number % 3 for number in range(50)), 3, "held out",
)  # fmt: skip  # the limit at 10 % is 0.2
REJECTION = RejectionScore(
    tuple(np.linspace(0.8, 0.99, 50).tolist()), tuple(np.linspace(0, 0.3, 50).tolist()), "folds"
)
TREE = Taxonomy.of({"cat": "mammal", "dog": "mammal", "owl": "bird"}, LABELS)
TABLE = np.array([[0.5, 0.4, 0.1], [0.7, 0.1, 0.2], [0.9, 0.06, 0.04], [0.1, 0.1, 0.8]])
FAR = np.array([0.1, 0.1, 2.0, 2.0])


def decider(error: float | None = None, reject_rate: float | None = None) -> Decider:
    return Decider(LABELS, 3, CALIBRATION, REJECTION, None, error, reject_rate)


def test_sets_hold_what_reaches_the_limit_and_the_most_probable_class() -> None:
    answers = decider(0.1).answer(TABLE)
    assert [answer.labels for answer in answers] == [
        ("cat", "dog"), ("cat", "owl"), ("cat",), ("owl",),
    ]  # fmt: skip
    assert [answer.decision() for answer in answers] == ["unsure", "unsure", "answer", "answer"]
    assert decider(0.1).sets(TABLE).sum(1).tolist() == [2, 2, 1, 1]
    below = np.array([[0.19, 0.18, 0.17]])  # below every limit
    assert decider(0.1).answer(below)[0].labels == ("cat",)
    assert not decider().sets(TABLE).any()
    assert [answer.decision() for answer in decider().answer(TABLE)] == [""] * 4


def test_the_best_classes_are_in_order_and_of_equal_ones_the_first() -> None:
    table = np.array([[0.1, 0.4, 0.1, 0.4]], np.float32)
    [answer] = Decider([*"abcd"], 4).answer(table, top=3)
    assert answer.best == (("b", 0.4), ("d", 0.4), ("a", 0.1))
    assert len(Decider([*"abcd"], 4).answer(table)[0].best) == 4


def test_an_image_is_rejected_by_its_score() -> None:
    rejecting = decider(0.1, 0.1)
    expected = REJECTION.accepts(TABLE, FAR, 0.1)
    assert 0 < expected.sum() < 4
    answers = rejecting.answer(TABLE, FAR)
    assert [answer.familiar for answer in answers] == expected.tolist()
    for answer in answers:
        assert (answer.decision() == "none of these") == (not answer.familiar)
    assert [answer.familiar for answer in decider(0.1).answer(TABLE, FAR)] == [None] * 4
    with pytest.raises(UserError, match="no distances"):
        rejecting.answer(TABLE)


def test_an_image_of_an_added_class_is_never_rejected() -> None:
    far = np.full(4, 2.0)
    assert not REJECTION.accepts(TABLE, far, 0.1).any()
    for known, expected in ((3, [False] * 4), (2, [False, False, False, True])):
        one = Decider(LABELS, known, rejection=REJECTION, reject_rate=0.1)
        assert one.familiar(TABLE, far).tolist() == expected
        assert [answer.familiar for answer in one.answer(TABLE, far)] == expected


def test_the_common_parent_answers() -> None:
    one = Decider(LABELS, 3, CALIBRATION, REJECTION, TREE)
    first, second, *_ = one.at(error=0.1).answer(TABLE)
    assert (first.decision(), first.parent) == ("answer", "mammal")
    assert (second.decision(), second.parent) == ("unsure", "")
    assert first.levels
    assert first.levels.best == (("mammal", 0.9),)


@pytest.mark.parametrize(("error", "reject_rate"), [(0.05, 0.1), (0.1, 0.05)])
def test_promises_state_their_own_shares(error: float, reject_rate: float) -> None:
    sets, details, rejected = decider(error, reject_rate).promises()
    assert f"at most {100 * error:g} % of images like these 50 images" in sets
    assert "as frequent" in details
    assert f"at most {100 * reject_rate:g} % of images" in rejected
    assert decider().promises() == []
    assert len(decider(error).promises()) == 2
    added = Decider([*LABELS, "emu"], 3, CALIBRATION, error=error).promises()
    assert "(1)" in added[-1]


def test_a_promise_of_each_class_is_said() -> None:
    labels = np.repeat([0, 1], [240, 208])
    table = np.random.default_rng(0).dirichlet([1, 1], 448)
    calibration = Calibration.of(table, labels, "held out")
    _, each = Decider([*"ab"], 2, calibration, error=0.05).promises()
    assert "each class" in each


def test_what_is_possible() -> None:
    assert decider().possible() == {
        "calibration": {"images": 50, "source": "held out", "grouped": False},
        "errors": [0.05, 0.1],
        "broken": [],
        "familiarity": {"images": 50, "source": "folds", "grouped": False},
        "shares": [0.05, 0.1],
    }
    nothing = {"calibration": None, "errors": [], "broken": [], "familiarity": None, "shares": []}
    assert Decider(LABELS, 3).possible() == nothing


def test_an_error_that_was_not_kept_is_not_possible_and_its_promise_says_so(tmp_path: Path) -> None:
    broken = Decider(LABELS, 3, replace(CALIBRATION, broken=(0.05,), missed=(0.08,)))
    possible = broken.possible()
    assert (possible["errors"], possible["broken"]) == ([0.1], [0.05])
    assert [text for text in broken.at(0.1).promises() if "8.0 %" in text] == []
    for error in (0.05, 0.07):  # a larger one than was measured, but less than was missed
        [text] = broken.at(error).promises()
        assert "8.0 % were missed where 5 % was promised" in text
    both = replace(CALIBRATION, broken=(0.05, 0.1), missed=(0.12, 0.2))
    assert "20.0 % were missed where 10 % was promised" in both.doubt(0.1)  # not 12 where 5 was
    assert "do not count on an error of 10 %" in both.doubt(0.1)
    assert both.doubts == [both.doubt(0.05), both.doubt(0.1)]
    write_decider(tmp_path, broken)
    assert read_decider(tmp_path, LABELS).possible() == possible


def test_what_cannot_be_promised_is_refused() -> None:
    for one in (Decider(LABELS, 3, CALIBRATION), Decider(LABELS, 3, rejection=REJECTION)):
        with pytest.raises(UserError, match="--folds 4"):
            one.at(0.1, 0.1)
    for shares in ((0.01, None), (None, 0.01)):
        with pytest.raises(UserError, match="needs 230 images"):
            decider(*shares)
    for share in (0.0, 1.0, -0.1, float("nan")):
        for shares in ((share, None), (None, share)):
            with pytest.raises(UserError, match="more than 0"):
                decider(*shares)


def test_columns_are_those_of_a_row() -> None:
    one = Decider(LABELS, 3, CALIBRATION, REJECTION, TREE, 0.1, 0.1)
    [answer, *_] = one.answer(TABLE, FAR, 2)
    header = one.columns(2, ["unfamiliar", "zero_shot_label"])
    assert {*header} == {*answer.row()}
    assert header[7:10] == ["level", "parent", "probability_parent"]
    assert header[-5:] == ["set", "familiar", "decision", "unfamiliar", "zero_shot_label"]
    assert decider().columns(1) == ["image", "label", "probability", "guess", "unsure"]
    assert decider().columns(1, unsure=True)[-2:] == ["unsure", "decision"]
    assert decider(0.1).columns(1, ["sorted_to"])[-3:] == ["set", "decision", "sorted_to"]


def test_files_of_an_export_are_read_as_written(tmp_path: Path) -> None:
    for place, one in {
        "all": Decider([*LABELS, "emu"], 3, CALIBRATION, REJECTION, TREE.with_label("emu")),
        "none": Decider(LABELS, 3),
        "sets": Decider([*LABELS, "emu"], 3, CALIBRATION),
    }.items():
        folder = tmp_path / place
        folder.mkdir()
        write_decider(folder, one)
        found = read_decider(folder, one.labels)
        assert vars(found) == vars(one)
        assert found.facts() == one.facts()
    assert not [*(tmp_path / "none").iterdir()]


def test_one_more_class_has_the_parent_that_is_known() -> None:
    tree = Taxonomy.of({**TREE.parents, "emu": "bird"}, LABELS)
    one = Decider(LABELS, 3, CALIBRATION, tree=tree).with_label("emu")
    assert one.labels == ("cat", "dog", "owl", "emu")
    assert one.tree
    assert one.tree.paths[-1] == ("bird",)
    assert one.names == (*one.labels, "mammal", "bird")
    limits = one.at(error=0.1).limits
    assert limits is not None
    assert limits.tolist() == [0.2] * 4
    with pytest.raises(UserError, match="'mammal' is a class, and the parent"):
        one.with_label("mammal")


def test_only_this_room_decides() -> None:
    """No other file computes limits, sets, rejections or levels, or has the functions for it that
    six files once called."""
    package = Path(rmadapter.__file__).parent
    gone = {"limits_of", "strangest", "strangeness", "in_sets", "accepts", "most_missed"}
    for file in sorted(package.parent.glob("rmadapter*/**/*.py")):
        if file.parent == package / "answers":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = {getattr(node, name, "") for name in ("id", "attr", "name")}
            assert not names & gone, f"{file}: {names & gone}"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "Levels.of", file


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 25.4, -0.1])
def test_numbers_that_are_no_probabilities_have_no_answer(number: float) -> None:
    table = TABLE.copy()
    table[1] = number
    for one in (decider(), decider(0.1), decider(0.1, 0.1)):
        with pytest.raises(UserError, match="no probabilities"):
            one.answer(table, FAR)
    with pytest.raises(UserError, match="no probabilities"):
        decider(0.1).sets(table)
    assert len(decider(0.1).answer(TABLE + 1e-6)) == 4  # rounding


def test_distances_that_are_not_finite_have_no_answer() -> None:
    far = np.array([0.1, np.nan, 2.0, np.inf])
    with pytest.raises(UserError, match="no probabilities"):
        decider(0.1, 0.1).answer(TABLE, far)
