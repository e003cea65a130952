"""What the command line says of a run, from records that the test makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rmadapter.artifacts.record import Judgement, Rates, Record, Score
from rmadapter.artifacts.summary import (
    describe_tie,
    level_table,
    print_record,
    print_score,
)
from rmadapter.artifacts.value import Balanced
from tests.helpers import synthetic_runs

RATES: dict[str, Any] = {"low": 55.4, "high": 64.6, "macro_f1": 58.75, "calibration_error": 3.21}
RECORD = synthetic_runs.record("rmadapter", "x", 1, {})


def test_a_judged_run_shows_its_judgement(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {**RATES, "recalls": [None, 60.0]}
    judgement = Judgement(
        how="on the test split", images=1200, classes=("a", "b"), majority=71.0,
        doubts=("few images",),
        rows=(Rates(name="zero-shot", accuracy=40.0, p=0.01, **rates),
              Rates(name="RMAdapter", accuracy=60.0, **rates)),
    )  # fmt: skip
    score = Score(name="all", images=1200, classes=2, accuracy=60.0, zero_shot=40.0)
    record = RECORD.model_copy(update={"scores": (score,), "judgement": judgement})
    print_record(record, as_json=False)
    out, err = capsys.readouterr()
    assert all(words in out for words in ("1,200 images", "guessing", "50.0", "55.4 to 64.6"))
    assert all(words in out for words in ("most frequent class", "71.0", "58.8", "3.2"))
    assert "judged on the test split" in out
    assert "\nfor comparison, of 100: zero-shot 40\n" in out
    assert err == "note: few images\n"
    assert "chance" not in out  # the table of scores would say it twice
    print_record(record, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["judgement"]["rows"][1]["accuracy"] == found["test, all classes"]["accuracy"] == 60


def test_names_of_classes_are_never_obeyed_by_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    judgement = Judgement(
        how="on the test split", images=1200, classes=("\x1b[31mred", "b"), majority=71.0,
        rows=(Rates(name="zero-shot", accuracy=40.0, p=0.01, **RATES, recalls=(9.0, 9.0)),
              Rates(name="RMAdapter", accuracy=60.0, **RATES, recalls=(9.0, 60.0))),
    )  # fmt: skip
    print_record(RECORD.model_copy(update={"judgement": judgement}), as_json=False)
    out = capsys.readouterr().out
    assert "[31mred (9 of 100)" in out
    assert "\x1b" not in out


def beside_probe(probe: float, p: float, **changes: Any) -> Record:
    """Return a record of 60 %, beside a probe that trained in 4 s."""
    rates = {**RATES, "recalls": [60.0, 60.0]}
    rows = (
        Rates(name="zero-shot", accuracy=40.0, p=0.01, **rates),
        Rates(name="linear-probe", accuracy=probe, p=p, **rates),
        Rates(name="RMAdapter", accuracy=60.0, **rates),
    )
    judgement = Judgement(how="", images=100, classes=("a", "b"), majority=50.0, rows=rows)
    score = Score(name="all", images=100, classes=2, accuracy=60.0, zero_shot=40.0)
    facts = {"scores": (score,), "judgement": judgement, "parameters": 9}
    seconds = {"linear-probe": 4.0}
    return RECORD.model_copy(update={**facts, "seconds": seconds, **changes})


@pytest.mark.parametrize(
    ("record", "tied"),
    [
        (beside_probe(59.0, 0.8), True),
        (beside_probe(61.0, 0.8), True),
        (beside_probe(50.0, 0.01), False),
        (beside_probe(70.0, 0.01), False),  # a doubt says so
        (beside_probe(59.0, 0.8, seconds={}), False),
        (beside_probe(59.0, 0.8, parameters=0), False),  # trains in no time itself
        (RECORD, False),
    ],
)
def test_a_probe_that_is_as_good_is_named_with_its_seconds(
    record: Record, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    print_record(record, as_json=False)
    out = capsys.readouterr().out
    assert ("4.0 s: --method linear-probe" in out) == tied
    assert bool(describe_tie(record)) == tied


def test_a_run_without_images_to_evaluate_on_has_no_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_record(RECORD.model_copy(update={"scores": (), "judgement": None}), as_json=False)
    out = capsys.readouterr().out
    assert "no images" in out
    assert "│" not in out


def test_halves_have_a_harmonic_mean_and_a_set_without_answers_has_a_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = [Score(name="base", images=10, classes=4, accuracy=60.0, zero_shot=30.0)]
    scores += [Score(name="novel", images=10, classes=5, accuracy=40.0, zero_shot=30.0)]
    record = RECORD.model_copy(update={"scores": tuple(scores)})
    print_record(record, as_json=False)
    *_, last, _ = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in last.split("│")[1:-1]]
    assert cells == ["harmonic mean", "", "", "30.0", "48.0", "+18.0"]
    silent = Score(name="novel", images=10, classes=5, reason="knows its classes alone")
    print_record(record.model_copy(update={"scores": (scores[0], silent)}), as_json=False)
    found = capsys.readouterr()
    assert "harmonic mean" not in found.out
    assert found.err == "note: test, novel classes: knows its classes alone\n"


def test_a_single_score(capsys: pytest.CaptureFixture[str]) -> None:
    score = Score(name="all", images=10, classes=4, accuracy=60.0, zero_shot=30.0)
    print_score(score, as_json=True)
    assert json.loads(capsys.readouterr().out)["chance"] == 25
    print_score(score, as_json=False)
    assert "+30.0" in capsys.readouterr().out
    even, uneven = (Balanced.of(labels, labels) for labels in ([0, 1], [0, 1, 1]))
    for balanced, shown in ((even, False), (uneven, True)):
        one = score.model_copy(update={"balanced": balanced})
        print_score(one, as_json=False)
        out = capsys.readouterr().out
        assert (f"balanced accuracy {balanced.text} %, 1 to 2 images" in out) == shown
        print_score(one, as_json=True)
        found = json.loads(capsys.readouterr().out)["balanced_accuracy"]
        assert found == balanced.model_dump()


def test_a_fitted_method_has_the_name_that_is_typed_and_its_changed_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = {**RATES, "recalls": [60.0], "accuracy": 60.0}
    judgement = Judgement(
        how="on the test split", images=9, classes=("a",), majority=71.0,
        rows=(Rates(name="zero-shot", p=0.01, **rates), Rates(name="linear probe", **rates)),
    )  # fmt: skip
    run = synthetic_runs.record("linear-probe", "x", 1, {}, title="linear probe")
    run = synthetic_runs.with_method(run, settings={"epochs": 3, "iterations": 3})
    run = run.model_copy(update={"judgement": judgement})
    print_record(run, as_json=False)
    out = capsys.readouterr().out
    changed = ", ".join(f"{name}={value}" for name, value in run.method.changed.items())
    assert " linear-probe " in out  # in the table
    assert not changed or f"\nlinear-probe ({changed})\n" in out
    assert "linear probe" not in out
    halves = synthetic_runs.with_method(RECORD, settings={"epochs": 3})
    print_record(halves, as_json=False)
    assert "rmadapter (epochs=3)" in capsys.readouterr().out


def test_levels_without_zero_shot_have_no_columns_for_it() -> None:
    both = {"level": 1, "groups": 2, "zero_shot": 50.0, "accuracy": 75.0}
    score = {"name": "all", "images": 8, "classes": 4}
    full = level_table([Score.model_validate({**score, "levels": [both]})])
    assert full[0][3:] == ["zero-shot", "adapted", "change"]
    assert full[1][0][3:] == ["50.0", "75.0", "+25.0"]
    alone = level_table([Score.model_validate({**score, "levels": [{**both, "zero_shot": None}]})])
    assert alone[0][1:] == ["level", "groups", "adapted"]
    assert alone[1][0][1:] == ["parent", "2", "75.0"]
