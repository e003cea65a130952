"""Commands of the command line, each in a process of its own, one after the other.

A page can thus do nothing that the command line does not do, and says what that says; and whatever is stopped, or runs
out of memory, takes nothing else with it.
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
from typing import Any, Literal

from rmadapter.errors import UserError

SURROUNDINGS = {"RMADAPTER_OFTEN": "1", "PYTHONSAFEPATH": "1"}  # no code from the folder that it starts in
COMMAND = (sys.executable, "-m", "rmadapter")
LINE = re.compile(
    r"(?P<what>[^:]+): (?P<done>[\d,]+)(?: of (?P<total>[\d,]+))?(?:, (?P<left>[1-9][\d,]* (?:s|min) left))?(?:, .*)?"
)
# What a bar is called, for those who write no code.
PLAIN = {"frozen activations": "looking at the images", "training": "learning from them"}
LAST = 30  # lines of a process that ended as none should, for the terminal
PATIENCE = 10  # seconds in which a process may end by itself


@dataclass(eq=False)
class Job:
    """words: of the command. home: the folder that it is started in. out: what it writes there, which goes unless it
    ends well. then: what is done when it has ended well, before the job counts as done."""

    what: str
    words: Sequence[str]
    home: Path
    out: Path
    then: Callable[[], object] = lambda: None
    state: Literal["waiting", "running", "done", "failed", "stopped"] = "waiting"
    told: str = ""
    share: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "stopped")

    def hear(self, line: str) -> None:
        """What the process says on stderr: how far it is, or a note."""
        kind, _, text = line.partition(": ")
        if kind == "note":
            self.notes.append(text)
            if text.startswith("auto: "):
                self.told, self.share = f"trying {text.removeprefix('auto: ')}", None
        elif found := LINE.fullmatch(line):
            done, total = (int((found[name] or "0").replace(",", "")) for name in ("done", "total"))
            what, under_way = PLAIN.get(found["what"], found["what"]), done < total and ", 0 s left" not in line
            self.share = done / total if under_way else None  # what comes next has not said a word yet
            self.told = f"{what}: {found['left']}" if found["left"] else what


class Jobs:
    """A line of jobs, of which the first is at work."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rmadapter-app")
        self._line: list[Job] = []
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            self._line.append(job)
        self._worker.submit(self._do, job)

    def place(self, job: Job) -> int:
        """How many jobs are before it; 0 once it is at work."""
        with self._lock:
            return self._line.index(job) if job in self._line else 0

    def stop(self, job: Job) -> None:
        """Whatever it had written is removed; one that has ended is too late to stop."""
        with self._lock:
            if job.state == "waiting":
                self._line.remove(job)
                job.state = "stopped"
            elif job.state == "running" and self._process:
                self._process.terminate()
                job.state = "stopped"

    def close(self) -> None:
        """Stop all of them."""
        for job in [*self._line]:
            self.stop(job)
        self._worker.shutdown()

    def _do(self, job: Job) -> None:
        try:
            with self._lock:
                if job.state == "stopped":
                    return
                job.state = "running"
                self._process = _start(job)
            code, lines = _listen(self._process, job)
            self._end(job, code, lines)
        except Exception:
            traceback.print_exc()
            job.told, job.state = "The server has a bug: see its terminal.", "failed"
        finally:
            if job.state != "done":
                for left in (job.out, job.out.with_name(f".{job.out.name}.part")):
                    shutil.rmtree(left, ignore_errors=True)
            with self._lock:
                self._process = None
                if job in self._line:
                    self._line.remove(job)

    def _end(self, job: Job, code: int, lines: Sequence[str]) -> None:
        with self._lock:
            self._process = None
            if job.state == "stopped":
                return
        try:
            if code:
                raise UserError(_reason(code, lines))
            job.then()
        except UserError as error:
            job.told, job.state = str(error), "failed"
        else:
            job.state = "done"


def _start(job: Job) -> subprocess.Popen[str]:
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*COMMAND, *job.words], cwd=job.home, env={**os.environ, **SURROUNDINGS}, text=True,
        encoding="utf-8", errors="replace", start_new_session=True, **streams,
    )  # fmt: skip


def _listen(process: subprocess.Popen[str], job: Job) -> tuple[int, Sequence[str]]:
    """Exit code and last lines."""
    lines: deque[str] = deque(maxlen=LAST)
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            job.hear(lines[-1])
    try:
        return process.wait(PATIENCE), lines
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(), lines


def _reason(code: int, lines: Sequence[str]) -> str:
    """The sentence that the command line ends with."""
    if code == 2 and (said := [line for line in lines if line.startswith("rmadapter: ")]):
        return said[-1].removeprefix("rmadapter: ")
    print("\n".join(lines), file=sys.stderr)
    if code < 0:
        return f"The system killed it (signal {-code}), as when memory runs out: try fewer images, or another method."
    return f"It ended with exit code {code}, which is a bug: see the server's terminal."
