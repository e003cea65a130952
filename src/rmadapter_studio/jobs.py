"""Run commands of the command line one after the other, each in its own process.

So the page can do only what the command line does, and says the same; and a job that is stopped, or
runs out of memory, takes nothing else down. If the server is killed, its job ends, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rmadapter import UserError

# safe path: no imports from the working directory
ENVIRONMENT = {
    "RMADAPTER_OFTEN": "1",
    "RMADAPTER_ENDS_WITH_STDIN": "1",
    "PYTHONSAFEPATH": "1",
}
COMMAND = (sys.executable, "-m", "rmadapter")
PROGRESS = re.compile(
    r"(?P<what>[^:]+): (?P<done>[\d,]+)(?: of (?P<total>[\d,]+))?"
    r"(?:, (?P<left>[1-9][\d,]* (?:s|min) left))?(?:, .*)?"
)
# plain names of progress bars, for those who write no code
PLAIN_NAMES = {"frozen activations": "looking at the images", "training": "learning from them"}
# an option, a command, or an argument in Python
COMMAND_WORDS = re.compile(r"(?<![\w-])--[a-z]|`|\bpip install\b|\b\w+=(?:True|False)\b")
MAX_LINES = 30  # last lines of a process that crashed, for the terminal
SECONDS_TO_END = 10  # for a process to end by itself


@dataclass(eq=False)
class Job:
    """A command to run.

    Attributes:
        what: What it does, for the page.
        words: Words of the command.
        home: Its working directory.
        out: What it writes there, deleted unless it succeeds.
        on_success: Called before the job counts as done.
        state: How far it is.
        message: Message for the page.
        share: Share that is done, None if unknown.
        notes: Notes of the command.
    """

    what: str
    words: Sequence[str]
    home: Path
    out: Path
    on_success: Callable[[], object] = lambda: None
    state: Literal["waiting", "running", "done", "failed", "stopped"] = "waiting"
    message: str = ""
    share: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "stopped")

    def read_line(self, line: str) -> None:
        """Read a line of the process's stderr: its progress, or a note."""
        kind, _, text = line.partition(": ")
        if kind == "note":
            self.notes.append(without_commands(text))
        elif match := PROGRESS.fullmatch(line):
            done = int(match["done"].replace(",", ""))
            total = int((match["total"] or "0").replace(",", ""))
            what = PLAIN_NAMES.get(match["what"], match["what"])
            self.message = f"{what}: {match['left']}" if match["left"] else what
            # after the end, the next step has not reported yet
            self.share = done / total if done < total and ", 0 s left" not in line else None


class Jobs:
    """A queue of jobs, of which the first is running."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rmadapter-app")
        self._queue: list[Job] = []
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            self._queue.append(job)
        self._worker.submit(self._run, job)

    def place(self, job: Job) -> int:
        """Return how many jobs are ahead of a job; 0 once it is running."""
        with self._lock:
            return self._queue.index(job) if job in self._queue else 0

    def stop(self, job: Job) -> None:
        """Stop a job, and remove what it wrote; one that has ended stays as it is."""
        with self._lock:
            if job.state == "waiting":
                self._queue.remove(job)
                job.state = "stopped"
            elif job.state == "running" and self._process:
                self._process.terminate()
                job.state = "stopped"

    def close(self) -> None:
        """Stop all jobs."""
        for job in [*self._queue]:
            self.stop(job)
        self._worker.shutdown()

    def _run(self, job: Job) -> None:
        try:
            with self._lock:
                if job.state == "stopped":
                    return
                job.state = "running"
                self._process = _start(job)
            code, lines = _follow(self._process, job)
            with self._lock:
                self._process = None
                if job.ended:  # stopped
                    return
            if code:
                raise UserError(_reason(code, lines))
            job.on_success()
            job.state = "done"
        except UserError as error:
            job.message = str(error)
            job.state = "failed"
        except Exception:
            traceback.print_exc()
            job.message = "Internal error; see the server's terminal."
            job.state = "failed"
        finally:
            if job.state != "done":
                for leftover in (job.out, job.out.with_name(f".{job.out.name}.part")):
                    shutil.rmtree(leftover, ignore_errors=True)
            with self._lock:
                self._process = None
                if job in self._queue:
                    self._queue.remove(job)


def without_commands(text: str) -> str:
    """Return a message of the command line without what to type there: the clauses after ":" or
    ";" that name an option or a command. What happened stands before them."""
    first, *rest = re.split(r"(?=[:;] )", text)
    return first + "".join(part for part in rest if not COMMAND_WORDS.search(part))


def _start(job: Job) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *job.words],
        cwd=job.home,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,  # nothing is written there; it ends when this process does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _follow(process: subprocess.Popen[str], job: Job) -> tuple[int, Sequence[str]]:
    """Follow a process to its end; return its exit code and last lines."""
    lines: deque[str] = deque(maxlen=MAX_LINES)
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin:  # open until the process has ended
        with process.stderr:
            for line in process.stderr:
                lines.append(line.rstrip("\n"))
                job.read_line(lines[-1])
        try:
            return process.wait(SECONDS_TO_END), lines
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(), lines


def _reason(code: int, lines: Sequence[str]) -> str:
    """Return why a command failed: its own last message, or what its exit code means."""
    messages = [line for line in lines if line.startswith("rmadapter: ")]
    if code == 2 and messages:
        return without_commands(messages[-1].removeprefix("rmadapter: "))
    print("\n".join(lines), file=sys.stderr)
    if code < 0:
        return (
            f"The system killed it (signal {-code}), as when memory runs out: try fewer images, or "
            "another method."
        )
    return f"It ended with exit code {code}, which is a bug: see the server's terminal."
