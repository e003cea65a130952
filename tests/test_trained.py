"""Where a training stands: what it is before the first step."""

from __future__ import annotations

from pathlib import Path

from rmadapter.trained import Trained, Unfinished


def test_a_training_begins_at_nothing_and_shares_no_history() -> None:
    one, other = Trained(), Trained()
    one.history.append({"loss": 1.0})
    assert (other.step, other.seconds, other.history, other.step_seconds, other.weighed) == (0, 0.0, [], None, False)


def test_another_training_is_known_by_its_key() -> None:
    assert Unfinished(Path("a"), "x") != Unfinished(Path("a"), "y")
