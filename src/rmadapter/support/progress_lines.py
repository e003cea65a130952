"""Progress for a pipe, as lines."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from rmadapter.support.escape import escape

# between two lines: a fit of some minutes is to fit on a screen
LINE_SECONDS = 0.5 if os.environ.get("RMADAPTER_OFTEN") else 20.0


class ProgressLines(Progress):
    """Print the progress of a task now and then, as in "training: 120 of 800, 3 min left, loss
    0.532".

    Args:
        console: Console for other lines.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            console=console,
            disable=True,  # draws nothing, but counts
            get_time=lambda: time.monotonic(),
            speed_estimate_period=math.inf,
        )
        self._printed = time.monotonic()

    def stop(self) -> None:
        """Draw nothing at the end either."""

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        self.update(task_id, advance=advance)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS:
            self._printed = now
            print(escape(self._line(task_id)), file=sys.stderr, flush=True)

    def _line(self, task_id: TaskID) -> str:
        task = next(task for task in self.tasks if task.id == task_id)
        parts = [f"{task.completed:,.0f}" + (f" of {task.total:,.0f}" if task.total else "")]
        left = task.time_remaining
        if left is not None:
            parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        if task.fields["note"]:
            parts.append(task.fields["note"])
        return f"{task.description}: {', '.join(parts)}"
