"""Where a training stands, in memory and, while it runs, on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Trained:
    """Where a training stands, or ended: steps, seconds, loss terms of every step, median seconds of one.

    weighed: whether the shots' weights, if any, were used.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None
    weighed: bool = False


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
    except (SafetensorError, OSError, KeyError, ValueError):
        return ""
