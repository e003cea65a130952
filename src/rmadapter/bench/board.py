"""Which runs are done: what the files in the folder of results say, to every process that works there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmadapter.bench.protocols import Run
from rmadapter.errors import UserError
from rmadapter.files import read_json

ANSWERED = ("finished", "not-applicable")
CHOOSE = "choose another --out, or delete that file"


class Board:
    """The records of some runs below `out`, as they are now. A record that failed before we came is tried again."""

    def __init__(self, out: Path, runs: Sequence[Run]) -> None:
        self.out, self.runs = out, runs
        self._settled: set[Path] = set()
        self._told: set[Path] = set()
        self._old = {path: _stamp(path) for run in runs if (path := out / run.path).exists()}

    def settled(self, run: Run) -> bool:
        """Whether the run needs nothing more: it has an answer, or it failed since we came, and would fail again."""
        path = self.out / run.path
        if path not in self._settled and path.exists():
            status = read_record(path).get("status")
            if status in ANSWERED or (status == "failed" and _stamp(path) != self._old.get(path)):
                self._settled.add(path)
        return path in self._settled

    def left(self) -> list[Run]:
        return [run for run in self.runs if not self.settled(run)]

    def news(self) -> Iterator[dict[str, Any]]:
        """Records that were written since this was last asked."""
        for run in self.runs:
            path = self.out / run.path
            if path not in self._told and self.settled(run):
                self._told.add(path)
                yield read_record(path)

    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError for an answer that another configuration gave."""
        for run, config in zip(self.runs, configs, strict=True):
            found = read_record(self.out / run.path)
            if found.get("status") in ANSWERED and found.get("config") != config:
                other = _difference(found.get("config"), config)
                raise UserError(f"{self.out / run.path} is a run with another {other}: {CHOOSE}")


def read_record(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none that can be read."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def answers(out: Path) -> dict[str, Path]:
    """Every finished record below `out` by its key."""
    found = {path: read_record(path) for path in sorted(out.rglob("*.json"))}
    return {
        r["key"]: path for path, r in found.items() if r.get("status") == "finished" and isinstance(r.get("key"), str)
    }


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def _difference(old: Any, new: Mapping[str, Any], prefix: str = "") -> str:
    """Names the first field that differs."""
    if isinstance(old, dict):
        for name in [*new, *old]:
            if old.get(name) != new.get(name):
                inside = new.get(name)
                return (
                    _difference(old.get(name), inside, f"{prefix}{name}.")
                    if isinstance(inside, dict)
                    else prefix + name
                )
    return prefix.rstrip(".") or "configuration"
