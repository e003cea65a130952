"""Progress bars on stderr, for anything that lasts longer than a second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def bar(enabled: bool = True) -> Any:
    """A rich Progress with elapsed and remaining time; use it as a context manager."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        # Into a pipe even a bar that vanishes would print an empty line.
        disable=not (enabled and (console.is_terminal or console.is_jupyter)),
    )


def track(items: Iterable[T], total: int, text: str, enabled: bool = True) -> Iterator[T]:
    """Go through `items` with a bar."""
    with bar(enabled) as progress:
        task = progress.add_task(text, total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
