"""Where a training stands, in memory and, while it runs, on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Trained:
    """Where a training stands, or ended: steps, seconds, loss terms of every step, median seconds
    of one.

    weighed: whether the shots' weights, if any, were used.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None
    weighed: bool = False


def as_table(history: Sequence[Mapping[str, float]]) -> tuple[dict[str, bool], Tensor]:
    """Name of each term -> whether it is a whole number; and all values [steps, terms] in float64,
    NaN for none."""
    import torch

    names: dict[str, bool] = {}
    for step in history:
        for name, value in step.items():
            names[name] = names.get(name, True) and isinstance(value, int)
    rows = [[step.get(name, math.nan) for name in names] for step in history]
    return names, torch.tensor(rows, dtype=torch.float64).reshape(len(history), len(names))


def as_rows(names: Mapping[str, bool], table: Tensor) -> list[dict[str, float]]:
    """What `as_table` was given."""
    rows = (zip(names.items(), row, strict=True) for row in table.tolist())
    return [
        {name: int(x) if whole else x for (name, whole), x in row if not math.isnan(x)}
        for row in rows
    ]


@dataclass(frozen=True)
class Unfinished:
    """Where a killed training was saved, and its key, so that a different training is refused.

    before: key of a training that comes first; its file may stay there until this one saves.
    """

    path: Path
    key: str = ""
    before: str = ""


def key_of(unfinished: Unfinished) -> str:
    """Key of the training saved there; empty if there is none, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(unfinished.path, "pt") as file:
            return str(json.loads((file.metadata() or {})["progress"])["key"])
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError):
        return ""
