"""What a server opens, and a run as a module that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rmadapter.artifacts.checkpoint import Saved


class Wish(NamedTuple):
    """What to open: a folder of `fit`, `save` or `export`. engine: "" for the folder's own.
    threads: 0 leaves it to the engine. backbone, method: as in `checkpoint.load`."""

    folder: Path
    engine: str = ""
    threads: int = 0
    backbone: str | None = None
    method: str = ""


def answers_of(saved: Saved) -> tuple[Any, bool]:
    """The run as a module, and whether it gives features besides probabilities."""
    from rmadapter.deploy.export.graph import Answers
    from rmadapter.training.contract import NotApplicable

    try:
        return Answers(saved.fitted, saved.names, embeddings=True), True
    except NotApplicable:
        return Answers(saved.fitted, saved.names), False
