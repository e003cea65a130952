"""A process of `rmadapter serve` or `app`, watched: what it says, its memory, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rmadapter.support.terminal import table

MB = 1e6


@dataclass
class Faults:
    """What went wrong: how often, by name, and the first of each."""

    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fault(self, name: str, example: object) -> None:
        self.faults[name] += 1
        if self.faults[name] <= 3:
            self.examples.append(f"{name}: {str(example)[:300]}")


class Server:
    """A process of `rmadapter` and its children. words: of the command. port: 0 for a free one.
    said: its lines so far."""

    def __init__(
        self, words: Sequence[object], port: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        code = "from rmadapter.cli.main import main; main()"
        command = [sys.executable, "-c", code, *map(str, words), "--port", str(port)]
        self._popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.process = psutil.Process(self._popen.pid)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until = time.monotonic() + 300
        while not self._address() and self._popen.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if not self._address():
            raise SystemExit(f"the server did not start: {self.said}")
        self.address = self._address()

    def _address(self) -> str:
        return next(iter(re.findall(r"http://[^\s/]+", " ".join(self.said))), "")

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                self.said.append(line.rstrip("\n"))

    def all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def memory(self, children: bool = True) -> float:
        """Return MB of all its processes, what they share counted once (PSS); RSS elsewhere than on
        Linux."""
        total = 0.0
        for one in self.all() if children else [self.process]:
            with suppress(OSError, psutil.Error):
                total += pss(one)
        return total

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes, also of workers that have ended."""
        times = self.process.cpu_times()
        total = times.children_user + times.children_system
        for one in self.all():
            with suppress(psutil.Error):
                total += sum(one.cpu_times()[:2])
        return float(total)

    def open(self) -> int:
        """Return the number of its file descriptors and threads."""
        return sum(one.num_fds() + one.num_threads() for one in self.all())

    def reloads(self) -> int:
        return sum(line.endswith(": reloaded") for line in self.said)

    def kill(self) -> None:
        self.process.kill()
        self._popen.wait(120)
        self._reader.join(10)

    def end(self) -> int:
        self.process.terminate()
        code = self._popen.wait(120)
        self._reader.join(10)
        return code


def pss(process: psutil.Process) -> float:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
    except FileNotFoundError:
        return float(process.memory_info().rss / MB)
    return int(re.findall(r"^Pss: +(\d+) kB", lines, re.M)[0]) * 1024 / MB


def show(row: Mapping[str, object], faults: Sequence[str], as_json: bool) -> int:
    """Print what was measured, and return the exit code: 1 unless all faults are zero. faults:
    those of the row's names that count them."""
    if as_json:
        print(json.dumps(row, indent=1))
    else:
        table(["", ""], [[name, str(value)] for name, value in row.items()])
    return int(any(row[fault] for fault in faults))
