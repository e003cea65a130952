"""What a server does at most, as options of the verb `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rmadapter import UserError

MB = 1_000_000  # bytes
BODIES = 2  # bodies of the largest size that are held at once
# most of the seconds for an answer that an accepted request is expected to take
ACCEPTED_SHARE = 1 / 4


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        batch: Images that a model gets at once.
        wait: Milliseconds for others to arrive after the first image.
        queue: Images per model that are accepted but unanswered.
        max_images: Images per request.
        body: MB per request.
        seconds: Time for a body to arrive, and again for its answer.
        workers: Processes, each with a queue of its own; they share the bytes of bodies.

    Raises:
        UserError: A request could have more images than the queue holds.
    """

    batch: Annotated[int, typer.Option(min=1, help="Most images sent to a model in one batch.")] = (
        16
    )
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds to wait for a batch to fill.")
    ] = 3.0
    queue: Annotated[
        int, typer.Option(min=1, help="Most images waiting for a model; beyond that, status 503.")
    ] = 256
    max_images: Annotated[int, typer.Option(min=1, help="Most images per request.")] = 64
    body: Annotated[float, typer.Option(min=0.001, max=10_000, help="Most MB per request.")] = 32.0
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=86_400,
            help="Most seconds for a body to arrive, and for an answer; a request that is "
            "expected to take more than a quarter of them is refused with status 503.",
        ),
    ] = 30.0
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes, of one thread per model each (Linux).")
    ] = 1

    def __post_init__(self) -> None:
        if self.max_images > self.queue:
            raise UserError(f"--max-images {self.max_images}: must not exceed --queue {self.queue}")

    @property
    def bytes(self) -> int:
        """Most bytes of a body."""
        return int(self.body * MB)

    @property
    def held(self) -> int:
        """Most bytes of the bodies of all requests of a worker."""
        return max(BODIES * self.bytes // self.workers, self.bytes)

    @property
    def longest(self) -> float:
        """Most seconds that a request may be expected to take when it is accepted."""
        return round(ACCEPTED_SHARE * self.seconds, 3)
