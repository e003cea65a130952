"""How much of everything a server takes."""

from __future__ import annotations

from dataclasses import dataclass

from rmadapter.errors import UserError

MB = 1_000_000  # bytes
BODIES = 8  # of the largest size, held at once
CONNECTIONS = 512  # open at once; beyond, uvicorn answers 503
HEADERS = 16_384  # bytes


@dataclass(frozen=True)
class Limits:
    """Raises UserError where a request could bring more images than the queue holds."""

    batch: int = 16  # images that a model is asked about at once
    wait: float = 3.0  # milliseconds for others to come after the first image
    queue: int = 256  # images of a model that are taken and not answered yet
    images: int = 64  # in a request
    body: float = 32.0  # MB of a request
    seconds: float = 30.0  # for its body to come, and again for its answer

    def __post_init__(self) -> None:
        if self.images > self.queue:
            raise UserError(f"--images {self.images}: must not exceed --queue {self.queue}")

    @property
    def bytes(self) -> int:
        """Of a body."""
        return int(self.body * MB)
