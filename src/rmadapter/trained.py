"""Where a training stands, in memory and, while it runs, on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Trained:
    """Where a training stands, or ended: steps, seconds, loss terms of every step, typical seconds of one.

    weighed: whether the shots' weights counted, if they had any.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None
    weighed: bool = False


@dataclass(frozen=True)
class Unfinished:
    """Where a training that was killed lies, and what it was, so that another one is refused.

    before: key of one that comes first, and may still lie there until this one has something to keep.
    """

    path: Path
    key: str = ""
    before: str = ""


def key_of(unfinished: Unfinished) -> str:
    """Of the training that lies there; empty where none does, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(unfinished.path, "pt") as file:
            return str(json.loads((file.metadata() or {})["progress"])["key"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return ""
