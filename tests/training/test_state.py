"""Where a training stands: what it is before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rmadapter.training.state import Trained, Unfinished, as_rows, as_table, key_of


def test_a_training_begins_at_nothing_and_shares_no_history() -> None:
    one, other = Trained(), Trained()
    one.history.append({"loss": 1.0})
    assert (other.step, other.seconds, other.history, other.step_seconds, other.weighed) == (
        0,
        0.0,
        [],
        None,
        False,
    )


def test_a_history_comes_back_from_numbers_alone() -> None:
    history = [
        {"step": 1, "loss": 0.1, "ce": 1 / 3},
        {"step": 2, "loss": 2.0},
        {"loss": 1e-300, "ce": float("inf")},
    ]
    names, table = as_table(history)
    assert (names, table.shape, table.dtype) == (
        {"step": True, "loss": False, "ce": False},
        (3, 3),
        torch.float64,
    )
    assert str(as_rows(names, table)) == str(history)  # whole numbers stay whole
    assert as_rows(*as_table([])) == []


def test_another_training_is_known_by_its_key() -> None:
    assert Unfinished(Path("a"), "x") != Unfinished(Path("a"), "y")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "{", '{"key": 7}'])
def test_a_damaged_training_has_no_key_or_one_of_another(tmp_path: Path, text: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "t", {"progress": text})
    assert key_of(Unfinished(tmp_path / "t", "x")) in ("", "7")
