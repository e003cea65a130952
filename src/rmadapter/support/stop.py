"""How the process of a command ends: by Ctrl-C, and with the program that started it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STOPPED = 128 + signal.SIGINT  # exit code, as in shells
GRACE_SECONDS = 5  # for clearing up
STOPPED_MESSAGE = (
    "rmadapter: stopped; repeat the command to start again, or to resume an unfinished `fit "
    "--out` or `predict --out`"
)
SHOW_CURSOR = b"\x1b[?25h"  # a bar hides it


@contextmanager
def stoppable() -> Iterator[None]:
    """Make Ctrl-C end the process with exit code 130 and a message within the block.

    It raises SystemExit. If that is swallowed, as in a callback, or the process hangs, it is
    killed: the next start copes with what is left behind.
    """
    process, before, stopped = os.getpid(), sys.unraisablehook, False

    def stop(*_: object) -> None:
        # Typer swallows a KeyboardInterrupt or says "Aborted", by version.
        nonlocal stopped
        stopped = True
        if sys.platform != "win32":
            signal.signal(signal.SIGALRM, leave)
            signal.alarm(GRACE_SECONDS)
        sys.exit(STOPPED)

    def leave(*_: object) -> None:
        with suppress(OSError):
            if os.getpid() == process:  # not a process that it started
                os.write(2, SHOW_CURSOR * os.isatty(2) + f"{STOPPED_MESSAGE}\n".encode())
        os._exit(STOPPED)

    def lost(error: sys.UnraisableHookArgs) -> None:
        if isinstance(error.exc_value, SystemExit):
            leave()
        before(error)

    sys.unraisablehook = lost
    signal.signal(signal.SIGINT, stop)
    if sys.platform != "win32":  # Python restores handlers at its end; an alarm would kill it
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
            print(STOPPED_MESSAGE, file=sys.stderr)
            process = 0
        raise
    finally:
        sys.unraisablehook = before


def end_with_stdin() -> None:
    """End this process once its stdin ends, if RMADAPTER_ENDS_WITH_STDIN is set: a program that
    starts a command with a pipe there takes it along, however it ends itself."""
    if not os.environ.get("RMADAPTER_ENDS_WITH_STDIN"):
        return

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(STOPPED)

    threading.Thread(target=wait, name="rmadapter-stdin", daemon=True).start()
