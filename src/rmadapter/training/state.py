"""The progress of a training, in memory and, while it runs, on disk."""

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
    """The progress of a training, finished or not: steps, seconds, and the loss terms of each step.

    step_seconds: median of the steps. weighed: whether the shots' weights, if any, were used.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None
    weighed: bool = False


def as_table(history: Sequence[Mapping[str, float]]) -> tuple[dict[str, bool], Tensor]:
    """Return name of each term -> whether it is a whole number, and all values [steps, terms] in
    float64, NaN for none."""
    import torch

    names: dict[str, bool] = {}
    for step in history:
        for name, value in step.items():
            names[name] = names.get(name, True) and isinstance(value, int)
    rows = [[step.get(name, math.nan) for name in names] for step in history]
    return names, torch.tensor(rows, dtype=torch.float64).reshape(len(history), len(names))


def as_rows(names: Mapping[str, bool], table: Tensor) -> list[dict[str, float]]:
    """Invert `as_table`."""
    rows = (zip(names.items(), row, strict=True) for row in table.tolist())
    return [
        {name: int(x) if whole else x for (name, whole), x in row if not math.isnan(x)}
        for row in rows
    ]


@dataclass(frozen=True)
class Unfinished:
    """The file that keeps a training while it runs, and the training's key, so that another one is
    refused.

    before: key of a training that precedes this one; its file may stay until this one saves.
    """

    path: Path
    key: str = ""
    before: str = ""


def key_of(unfinished: Unfinished) -> str:
    """Return the key of the saved training; empty if there is none, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(unfinished.path, "pt") as file:
            return str(json.loads((file.metadata() or {})["progress"])["key"])
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError):
        return ""
