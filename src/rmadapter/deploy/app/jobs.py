"""Run commands of the command line one after the other, each in its own process.

So the page can do only what the command line does, and says the same; and a job that is stopped, or
runs out of memory, takes nothing else down.
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

SURROUNDINGS = {
    "RMADAPTER_OFTEN": "1",
    "PYTHONSAFEPATH": "1",
}  # safe: no imports from its working directory
COMMAND = (sys.executable, "-m", "rmadapter")
LINE = re.compile(
    r"(?P<what>[^:]+): (?P<done>[\d,]+)(?: of (?P<total>[\d,]+))?(?:, (?P<left>[1-9][\d,]* (?:s|min) left))?(?:, .*)?"
)
# Plain names of progress bars, for those who write no code.
PLAIN = {"frozen activations": "looking at the images", "training": "learning from them"}
LAST = 30  # last lines of a process that crashed, for the terminal
PATIENCE = 10  # seconds for a process to end by itself


@dataclass(eq=False)
class Job:
    """words: of the command. home: its working directory. out: what it writes there, deleted unless
    it succeeds. then: called if it succeeds, before the job counts as done."""

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
        """Read a line of the process's stderr: its progress, or a note."""
        kind, _, text = line.partition(": ")
        if kind == "note":
            self.notes.append(text)
            if text.startswith("auto: "):
                self.told, self.share = f"trying {text.removeprefix('auto: ')}", None
        elif found := LINE.fullmatch(line):
            done, total = (int((found[name] or "0").replace(",", "")) for name in ("done", "total"))
            what, under_way = (
                PLAIN.get(found["what"], found["what"]),
                done < total and ", 0 s left" not in line,
            )
            self.share = done / total if under_way else None  # the next step has not reported yet
            self.told = f"{what}: {found['left']}" if found["left"] else what


class Jobs:
    """A queue of jobs, of which the first is running."""

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
        """How many jobs are ahead of it; 0 once it is running."""
        with self._lock:
            return self._line.index(job) if job in self._line else 0

    def stop(self, job: Job) -> None:
        """Stop a job, and remove what it wrote; one that has ended stays as it is."""
        with self._lock:
            if job.state == "waiting":
                self._line.remove(job)
                job.state = "stopped"
            elif job.state == "running" and self._process:
                self._process.terminate()
                job.state = "stopped"

    def close(self) -> None:
        """Stop all jobs."""
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
    streams: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }
    return subprocess.Popen(
        [*COMMAND, *job.words], cwd=job.home, env={**os.environ, **SURROUNDINGS}, text=True,
        encoding="utf-8", errors="replace", start_new_session=True, **streams,
    )  # fmt: skip


def _listen(process: subprocess.Popen[str], job: Job) -> tuple[int, Sequence[str]]:
    """Follow a process to its end: its exit code and last lines."""
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
    """Why a command failed: its own last message, or what its exit code means."""
    if code == 2 and (said := [line for line in lines if line.startswith("rmadapter: ")]):
        return said[-1].removeprefix("rmadapter: ")
    print("\n".join(lines), file=sys.stderr)
    if code < 0:
        return f"The system killed it (signal {-code}), as when memory runs out: try fewer images, or another method."
    return f"It ended with exit code {code}, which is a bug: see the server's terminal."
