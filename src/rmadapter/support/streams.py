"""Make stdout and stderr of a command accept everything: lost streams and control characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rmadapter.support.escape import CONTROL_CHARACTERS, escape
from rmadapter.support.terminal import set_quiet


class Output(io.TextIOBase):
    """Write to another stream of text, and accept everything when that one is lost.

    A stream is lost when its pipe is closed or its disk is full; the work then goes on, and
    `error` says why.

    Args:
        stream: The other stream.
        escaped: Whether to escape control characters; then this is no terminal.
    """

    def __init__(self, stream: TextIO, escaped: bool) -> None:
        self.stream, self.escaped = stream, escaped
        self.error: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return not self.escaped and self.stream.isatty()

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(escape(text) if self.escaped else text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self.error = error
            # Python flushes the stream once more at its end, which would fail again.
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.stream.fileno())


@contextmanager
def streams(words: Sequence[str] = ()) -> Iterator[None]:
    """Make stdout and stderr accept everything within the block, even when closed.

    If the block succeeds but stdout was lost, the exit code is 141, like that of a process ended by
    SIGPIPE, or 2 with a message.

    Args:
        words: Arguments of the command, which Typer quotes unescaped.
    """
    # A file that is opened later must not get the number of a closed stream.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    escaped = any(map(CONTROL_CHARACTERS.search, words))
    out, err = (Output(_open_stream(stream), escaped) for stream in before)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield
    except SystemExit as stop:
        out.flush()
        if stop.code or out.error is None:
            raise
        if out.error.errno == errno.EPIPE:
            raise SystemExit(128 + 13) from None
        reason = out.error.strerror
        print(f"rmadapter: cannot write to stdout ({reason}): redirect it", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        set_quiet(False)
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_stream(stream: TextIO | None) -> TextIO:
    """Return a stream that can encode every character; one to nowhere if there is none."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", newline="\n")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
