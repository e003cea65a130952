"""Output of the command line: tables on stdout; notes and progress on stderr, as a bar in a
terminal and as lines in a pipe.

Also: lost streams, control characters in names, and Ctrl-C.
"""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import re
import signal
import stat
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO, TypeVar, cast

from rmadapter.support.distributed import is_helper

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console
    from rich.progress import Progress, TaskID

T = TypeVar("T")
STOPPED, GRACE = 128 + signal.SIGINT, 5  # exit code, as in shells; seconds for clearing up
AGAIN = (
    "rmadapter: stopped; repeat the command to start again, or to resume an unfinished `fit "
    "--out` or `predict --out`"
)
EVERY = 0.5 if os.environ.get("RMADAPTER_OFTEN") else 10.0  # seconds between two lines in a pipe
SHOW_CURSOR = b"\x1b[?25h"  # a bar hides it
# Characters that a terminal obeys instead of showing, or that turn the direction of text; file
# names may hold them.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """Return a text with its control characters escaped as in Python, except for newlines."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


NOTES = logging.getLogger("rmadapter.notes")  # its level decides whether notes and bars are shown


def set_quiet(on: bool) -> bool:
    """Hide progress bars and notes, or show them again. Helpers of a training in several processes
    never show them. Return `on`."""
    NOTES.setLevel(logging.WARNING if on or is_helper() else logging.INFO)
    return on


def _quiet() -> bool:
    return NOTES.level > logging.INFO


def note(text: str) -> None:
    """Print a note for the user in one line on stderr, unless quiet."""
    if not _quiet():
        print("note:", escape(" ".join(text.split())), file=sys.stderr)


@contextmanager
def silenced(level: int = logging.ERROR, output: bool = False) -> Iterator[None]:
    """Silence what libraries log up to a level within the block, and drop handlers that they
    install. output: also silence their warnings and what they print on stdout."""
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


class _Lasting(io.RawIOBase):
    """A stream that ignores write errors (closed pipe, full disk), so that the work finishes;
    `error` keeps the last one."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: ReadableBuffer) -> int:
        try:
            return self._raw.write(data) or 0
        except OSError as error:
            self.error = error
            return memoryview(data).nbytes


class _Escaped(io.TextIOBase):
    """A stream that escapes what is written to it; it is no terminal."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escape(text))

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def streams(words: Sequence[str] = ()) -> Iterator[None]:
    """Make stdout and stderr accept everything within the block, even when closed.

    words: the arguments of the command, which Typer quotes unescaped. If the block succeeds but
    stdout was lost, the exit code is 141, like that of a process ended by SIGPIPE, or 2 with a
    message.
    """
    # A file that is opened later must not get the number of a closed stream.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    hostile = any(map(CONTROL.search, words))
    sys.stdout, out = _lasting(sys.stdout, hostile)
    sys.stderr, _ = _lasting(sys.stderr, hostile)
    try:
        yield
    except SystemExit as stop:
        sys.stdout.flush()
        if stop.code or out is None or out.error is None:
            raise
        if out.error.errno == errno.EPIPE:
            raise SystemExit(128 + 13) from None
        reason = out.error.strerror
        print(f"rmadapter: cannot write to stdout ({reason}): redirect it", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        set_quiet(False)
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def stoppable() -> Iterator[None]:
    """Make Ctrl-C end the process with exit code 130 and a message within the block.

    It raises SystemExit. If that is swallowed, as in a callback, or the process hangs, it is
    killed: the next start copes with what is left behind.
    """
    process, before, stopped = os.getpid(), sys.unraisablehook, False

    def stop(
        *_: object,
    ) -> None:  # Typer swallows a KeyboardInterrupt or says "Aborted", by version
        nonlocal stopped
        stopped = True
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, leave)
            signal.alarm(GRACE)
        sys.exit(STOPPED)

    def leave(*_: object) -> None:
        with suppress(OSError):
            if os.getpid() == process:  # not a process that it started
                os.write(2, SHOW_CURSOR * os.isatty(2) + f"{AGAIN}\n".encode())
        os._exit(STOPPED)

    def lost(error: sys.UnraisableHookArgs) -> None:
        if isinstance(error.exc_value, SystemExit):
            leave()
        before(error)

    sys.unraisablehook = lost
    signal.signal(signal.SIGINT, stop)
    if hasattr(signal, "SIGALRM"):  # Python restores handlers at its end; an alarm would kill it
        atexit.register(signal.alarm, 0)
    try:
        try:
            yield
        except Exception:
            if stopped:  # the first import of a compiled module turns it into an ImportError
                raise SystemExit(STOPPED) from None
            raise
    except SystemExit as ended:
        if ended.code == STOPPED:  # not printed in the handler, which may interrupt a line
            print(AGAIN, file=sys.stderr)
            process = 0
        raise
    finally:
        sys.unraisablehook = before


def end_with_parent() -> None:
    """End this process once its stdin ends, if RMADAPTER_ENDS_WITH_STDIN is set: a program that
    starts a command with a pipe there takes it along, however it ends itself."""
    if not os.environ.get("RMADAPTER_ENDS_WITH_STDIN"):
        return

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(STOPPED)

    threading.Thread(target=wait, name="rmadapter-parent", daemon=True).start()


def _lasting(stream: TextIO | None, hostile: bool) -> tuple[TextIO, _Lasting | None]:
    """Return a stream in place of another, and its `_Lasting` if the other is Python's own."""
    raw = None
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    elif isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__):
        raw = _Lasting(cast("io.RawIOBase", getattr(stream.buffer, "raw", stream.buffer)))
        lines = stream.line_buffering
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=lines
        )
    elif isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return (cast("TextIO", _Escaped(stream)) if hostile else stream), raw


def table(header: Sequence[str], rows: Iterable[Sequence[str]], most: int = 200) -> None:
    """Print a table on stdout, as wide as the terminal and at most as given; nothing is cut off."""
    from rich.console import Console
    from rich.table import Column, Table

    drawn = Table(*(Column(name, overflow="fold") for name in header))
    for row in rows:
        drawn.add_row(*map(escape, row))
    # "[a]" or ":b:" may be a name
    console = Console(width=_width(most), markup=False, emoji=False, highlight=False)
    console.print(drawn)


def wrapped(text: str) -> str:
    """Return a text with its lines broken between words, as wide as a table; indented lines stay
    so."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line,
            _width(200),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def _width(most: int) -> int:
    """Return how many columns a table may take: COLUMNS, else those of the terminal, also of one
    behind a pipe, as into a pager. A file has no width."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return min(int(columns), most)
    try:
        piped = stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
        stream = sys.stderr if piped else sys.stdout
        return min(os.get_terminal_size(stream.fileno()).columns or most, most)
    except (OSError, ValueError):  # no terminal, or no file
        return most


def bar(enabled: bool = True) -> Progress | Lines:
    """Return a bar with the remaining time, in 80 columns; use it as a context manager.

    In a pipe it prints a line now and then; if not enabled, nothing.
    """
    from rich.console import Console

    silent = not enabled or _quiet()
    console = Console(stderr=True, quiet=silent)  # rich 14.1 and older end with an empty line
    terminal = console.is_terminal or console.is_jupyter
    if not silent and not terminal:
        return Lines(console)
    from rich import progress

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


class Lines:
    """A progress of one task for a pipe: "training: 120 of 800, 3 min left, loss 0.532"."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._printed = self._started = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(
        self, description: str, total: float | None = None, completed: float = 0, note: str = ""
    ) -> TaskID:
        self._text, self._total, self._note = description, total, note
        self._before = self._done = completed
        return cast("TaskID", 0)

    def advance(self, task: TaskID, advance: float = 1) -> None:
        self.update(task, advance=advance)

    def update(
        self,
        task: TaskID,
        *,
        advance: float = 0,
        completed: float | None = None,
        description: str = "",
        note: str = "",
    ) -> None:
        self._done = (self._done if completed is None else completed) + advance
        self._text, self._note = description or self._text, note or self._note
        now = time.monotonic()
        if now - self._printed >= EVERY:
            self._printed = now
            print(escape(self._line(now - self._started)), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        parts = [f"{self._done:,.0f}" + (f" of {self._total:,.0f}" if self._total else "")]
        if self._total and self._done > self._before:
            left = seconds * (self._total - self._done) / (self._done - self._before)
            parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        return f"{self._text}: {', '.join([*parts, self._note] if self._note else parts)}"


def track(items: Iterable[T], total: int, text: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items and show a progress bar."""
    with bar(enabled) as progress:
        task = progress.add_task(escape(text), total=total, note="")
        for item in items:
            yield item
            progress.advance(task)
