"""What a server opens, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rmadapter.errors import UserError

MB = 1_000_000  # bytes
CONNECTIONS = 512  # open at once; beyond, uvicorn answers 503
HEADERS = 16_384  # bytes


class ServeOptions(NamedTuple):
    """How to open a model: a folder of `fit`, `save` or `export`.

    engine: "" for the folder's own. threads: 0 leaves it to the engine. backbone, method: as in
    `checkpoint.load`.
    """

    folder: Path
    engine: str = ""
    threads: int = 0
    backbone: str | None = None
    method: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Raises UserError if a request could have more images than the queue
    holds."""

    batch: int = 16  # images that a model gets at once
    wait: float = 3.0  # milliseconds for others to arrive after the first image
    queue: int = 256  # images per model that are accepted but unanswered
    images: int = 64  # per request
    body: float = 32.0  # MB per request
    seconds: float = 30.0  # for a body to arrive, and again for its answer

    def __post_init__(self) -> None:
        if self.images > self.queue:
            raise UserError(f"--images {self.images}: must not exceed --queue {self.queue}")

    @property
    def bytes(self) -> int:
        """Most bytes of a body."""
        return int(self.body * MB)
