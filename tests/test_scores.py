from __future__ import annotations

import json

import pytest

from rmadapter.record import Record, Score
from rmadapter.scores import row, show, summary
from synthetic_runs import record


def score(name: str, accuracy: float | None, reason: str = "") -> Score:
    given = {"accuracy": accuracy, "zero_shot": None if accuracy is None else 50.0, "reason": reason}
    return Score(name=name, images=8, classes=4, **given)


@pytest.fixture
def both() -> Record:
    scores = (score("base", 80.0), score("novel", 40.0), score("all", None, "knows base alone"))
    return record("mma", "a", 1, {"base": 1.0}).model_copy(update={"scores": scores})


def test_a_row_and_an_object_for_every_set(both: Record, capsys: pytest.CaptureFixture[str]) -> None:
    show(both, False)
    out, err = capsys.readouterr()
    for words in ("test, base classes", "+30.0", "-10.0", "harmonic mean", "53.3", "+3.3"):
        assert words in out
    assert err == "note: test, all classes: knows base alone\n"
    show(both, True)
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["test, base classes", "test, novel classes", "test, all classes", "harmonic_mean"]
    assert found["harmonic_mean"]["accuracy"] == pytest.approx(160 / 3)


def test_what_has_no_answer_says_why() -> None:
    silent = score("all", None, "knows base alone")
    assert row(silent) == ["test, all classes", "8", "25.0", "-", "-", "-"]
    assert summary(silent)["reason"] == "knows base alone"
    assert "reason" not in summary(score("all", 75.0))
