"""Output of the command line: tables on stdout; notes and progress on stderr, as a bar in a
terminal and as lines in a pipe."""

from __future__ import annotations

import importlib.util
import io
import logging
import multiprocessing
import os
import stat
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from rmadapter.support.distributed import is_helper
from rmadapter.support.escape import escape

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
MAX_COLUMNS = 200  # of a table or a text
NOTES = logging.getLogger("rmadapter.notes")  # its level decides whether notes and bars are shown
_HIDDEN = ContextVar("hidden", default=False)  # whether a block of this thread hides them, too


def set_quiet(on: bool) -> bool:
    """Hide progress bars and notes, or show them again, and return `on`. Helpers of a training in
    several processes never show them."""
    NOTES.setLevel(logging.WARNING if on or is_helper() else logging.INFO)
    return on


@contextmanager
def without_notes(on: bool = True) -> Iterator[None]:
    """Hide notes and bars of this thread within the block."""
    token = _HIDDEN.set(on or _HIDDEN.get())
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def is_watched() -> bool:
    """Return whether a person is likely to see bars: in a terminal or a notebook, unless this is
    one of several worker processes, whose bars would mix."""
    from rich.console import Console

    console = Console(stderr=True)
    alone = multiprocessing.current_process().name == "MainProcess"
    return alone and (console.is_terminal or console.is_jupyter)


def _quiet() -> bool:
    return _HIDDEN.get() or NOTES.level > logging.INFO


def note(text: str) -> None:
    """Print a note for the user in one line on stderr, unless quiet."""
    if not _quiet():
        print("note:", escape(" ".join(text.split())), file=sys.stderr)


@contextmanager
def silenced(level: int = logging.ERROR, output: bool = False) -> Iterator[None]:
    """Silence what libraries log within the block, and drop handlers that they install.

    Args:
        level: Level up to which logs are silenced.
        output: Whether to silence warnings and what is printed on stdout, too.
    """
    root = logging.root
    before, handlers = root.manager.disable, root.handlers[:]
    logging.disable(level)
    try:
        with ExitStack() as stack:
            if output:
                stack.enter_context(warnings.catch_warnings())
                stack.enter_context(redirect_stdout(io.StringIO()))
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], max_columns: int = MAX_COLUMNS
) -> None:
    """Print a table on stdout, as wide as the terminal and at most as given; nothing is cut off."""
    from rich.console import Console
    from rich.table import Column, Table

    drawn = Table(*(Column(name, overflow="fold") for name in header))
    for row in rows:
        drawn.add_row(*map(escape, row))
    # "[a]" or ":b:" may be a name
    console = Console(width=_width(max_columns), markup=False, emoji=False, highlight=False)
    console.print(drawn)


def wrapped(text: str) -> str:
    """Return a text with its lines broken between words, as wide as a table; indented lines stay
    so."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line,
            _width(MAX_COLUMNS),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def _width(max_columns: int) -> int:
    """Return how many columns a table may take: COLUMNS, else those of the terminal, also of one
    behind a pipe, as into a pager. A file has no width."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return min(int(columns), max_columns)
    try:
        piped = stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
        stream = sys.stderr if piped else sys.stdout
        return min(os.get_terminal_size(stream.fileno()).columns or max_columns, max_columns)
    except (OSError, ValueError):  # no terminal, or no file
        return max_columns


def bar(enabled: bool = True) -> Progress:
    """Return a bar with the remaining time, in 80 columns; use it as a context manager.

    In a pipe it prints a line now and then; if not enabled, nothing.
    """
    from rich import progress
    from rich.console import Console

    from rmadapter.support.progress_lines import ProgressLines

    silent = not enabled or _quiet()
    console = Console(stderr=True, quiet=silent)  # rich 14.1 and older end with an empty line
    # without ipywidgets, rich draws nothing in a notebook
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets")
    if not silent and not console.is_terminal and not widgets:
        return ProgressLines(console)
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=16),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
        disable=silent,
    )


def track(items: Iterable[T], total: int, text: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items and show a progress bar.

    Args:
        items: The items.
        total: Number of items.
        text: What is done with them.
        enabled: Whether there is a bar.
    """
    with bar(enabled) as progress:
        task = progress.add_task(escape(text), total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
