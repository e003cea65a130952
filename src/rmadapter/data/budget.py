"""The budget of one reading: what files from elsewhere may take in memory, disk space and time.

Each reader takes from it before it makes anything, so a small file cannot become a large one.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Literal, TypeAlias

from rmadapter.errors import UserError
from rmadapter.support.files import MAX_JSON_MEMORY

Kind: TypeAlias = Literal["memory", "disk", "files", "rows", "pixels", "seconds"]

FREE_BYTES, GROWTH = 100_000_000, 20  # files may grow to FREE_BYTES plus GROWTH times their size
FREE_FILES, BLOCK_BYTES = (
    10_000,
    4096,
)  # any archive may hold these files; a file takes such a block
BYTES_PER_SECOND = 10_000_000  # of a file allow another second of processor time
TEXT_BYTES = 60  # memory that a short text takes in Python
LIMITS: dict[Kind, float] = {
    "memory": MAX_JSON_MEMORY,
    "disk": FREE_BYTES,
    "files": FREE_FILES + FREE_BYTES // BLOCK_BYTES,
    "rows": 3_000_000,
    "pixels": FREE_BYTES,
    "seconds": 300,
}
UNITS: dict[Kind, tuple[str, str]] = {  # what is counted, and what to do about too much of it
    "memory": ("bytes of memory", "leave out what is not needed, or split it"),
    "disk": ("bytes on disk", "unpack it yourself if you trust it, and give the folder"),
    "files": ("files", "unpack it yourself if you trust it, and give the folder"),
    "rows": ("rows", "split it"),
    "pixels": ("pixels of cut-out boxes", "leave out boxes"),
    "seconds": ("seconds of processor time", "split it"),
}


class Budget:
    """What reading one data set may still take.

    Bytes on disk, files and seconds grow with the size of the files that are read, pixels with
    those of the photos. Seconds are processor time of the thread that reads.
    """

    def __init__(self) -> None:
        self._limits = dict(LIMITS)
        self._used: dict[Kind, float] = dict.fromkeys(LIMITS, 0)
        self._started = time.thread_time()

    @classmethod
    def of_disk(cls, most: int) -> Budget:
        """Return a budget of `most` bytes on disk and the files for which they are enough."""
        budget = cls()
        budget._limits["disk"] = most
        budget._limits["files"] = FREE_FILES + most // BLOCK_BYTES
        budget._limits["seconds"] += most / BYTES_PER_SECOND
        return budget

    @classmethod
    def unlimited(cls) -> Budget:
        """Return the budget of data that the caller has in memory."""
        budget = cls()
        budget._limits = dict.fromkeys(LIMITS, math.inf)
        return budget

    def left(self, kind: Kind) -> float:
        return self._limits[kind] - self._used[kind]

    def allow_file(self, size: int) -> None:
        """Allow what a file of `size` bytes may need."""
        self._limits["disk"] += GROWTH * size
        self._limits["files"] += GROWTH * size // BLOCK_BYTES
        self._limits["seconds"] += size / BYTES_PER_SECOND

    def allow_photo(self, pixels: int, size: int) -> None:
        """Allow what may be cut out of a photo, a file of `size` bytes."""
        self.allow_file(size)
        self._limits["pixels"] += GROWTH * pixels

    def take(self, kind: Kind, amount: float, where: object) -> None:
        """Take from the budget.

        Raises:
            UserError: Too little is left of it or of the time; the message begins with `where`.
        """
        self._used[kind] += amount
        self._used["seconds"] = time.thread_time() - self._started
        self._check(kind, self._used[kind], where)
        self._check("seconds", self._used["seconds"], where)

    def expect(self, kind: Kind, amount: float, where: object) -> None:
        """Raise UserError as `take`, which comes later, would for this amount."""
        self._check(kind, self._used[kind] + amount, where)

    def _check(self, kind: Kind, amount: float, where: object) -> None:
        if amount > self._limits[kind]:
            unit, remedy = UNITS[kind]
            raise UserError(
                f"{where}: reading it takes more than {self._limits[kind]:,.0f} {unit}, the limit; "
                f"{remedy}"
            )

    def lines(self, text: str, where: Path) -> list[str]:
        """Split a text into lines, whose memory it takes."""
        self.take("memory", TEXT_BYTES * (1 + text.count("\n") + text.count("\r")), where)
        return text.splitlines()
