"""The saved progress of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rmadapter.training.state import Unfinished, as_rows, as_table, key_of


def test_a_history_survives_the_table_of_numbers() -> None:
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


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "{", '{"key": 7}'])
def test_a_damaged_training_never_has_the_key(tmp_path: Path, text: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "t", {"progress": text})
    assert key_of(Unfinished(tmp_path / "t", "x")) in ("", "7")
