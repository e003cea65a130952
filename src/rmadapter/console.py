"""What the command line shows: tables on stdout, progress bars on stderr for anything longer than a second."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any setting, as rank=8.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings, as a run's config.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without unreadable images and report them.")]
Name = Annotated[str, typer.Option("--method", help="As `rmadapter methods` lists them, package:Class, file.py:Class.")]
Its = Annotated[str | None, typer.Option("--backbone", help="The run's, where it is a folder or a repository.")]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*header)
    for row in rows:
        drawn.add_row(*row)
    width = None if sys.stdout.isatty() else 200  # a pipe has no width: let lines be as long as they are
    console = Console(width=width, markup=False, emoji=False, highlight=False)  # "[a]" or ":b:" may be a name
    console.print(drawn)


def bar(enabled: bool = True) -> Any:
    """A rich Progress with elapsed and remaining time; use it as a context manager."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    counts = (progress.BarColumn(), progress.MofNCompleteColumn())
    times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        *counts,
        *times,
        progress.TextColumn("{task.fields[note]}"),
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
