"""Small benches on a tiny backbone, for tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import Record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.runner import Engine, run_all
from rmadapter.settings import Machine, configured
from rmadapter.task import Task

METHODS = ("zero-shot", "mma", "rmadapter")
QUICK = {"first_block": 3, "rank": 4, "epochs": 2}
VALUES = {"mma": QUICK, "rmadapter": QUICK}


@dataclass(frozen=True)
class Bench:
    """Small benches of a backbone on one data set."""

    backbone: Backbone
    colors: Path

    def at(self, colors: Path) -> Bench:
        """Return the same on another folder of images."""
        return replace(self, colors=colors)

    def jobs(self, **words: Any) -> list[Job]:
        """Expand jobs; by default two seeds of base-to-novel with two shots."""
        common = configured(Task(), {"backbone": self.backbone.name, **words.pop("common", {})})
        names = {"protocol": "base-to-novel", "datasets": [self.colors.name]}
        return expand(**{**names, "seeds": [1, 2], "shots": [2], **words}, common=common)

    def plan(
        self, out: Path, jobs: Sequence[Job] | None = None, values: Any = None, **machine: Any
    ) -> Plan:
        """Make a plan whose methods are quick. machine: settings of the machine."""
        jobs = self.jobs() if jobs is None else jobs
        used = {job.method for job in jobs}
        if values is None:
            values = {name: own for name, own in VALUES.items() if name in used}
        settings = configured(Machine(), {"device": "cpu", **machine})
        return Plan(tuple(jobs), out, self.colors.parent, settings, values)

    def run(
        self, out: Path, jobs: Sequence[Job] | None = None, processes: int = 1,
        engine: Engine | None = None, **words: Any,
    ) -> list[Record]:  # fmt: skip
        """Run a plan and return its records. words: as for `plan`."""
        return run_all(self.plan(out, jobs, **words), processes, progress=False, engine=engine)


@pytest.fixture
def bench(tiny_clip: Backbone, colors: Path) -> Bench:
    return Bench(tiny_clip, colors)


def records(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.json")}


@pytest.fixture(scope="session")
def finished_bench(
    tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Results of three methods and two seeds. Copy them to change them."""
    out = tmp_path_factory.mktemp("done")
    Bench(tiny_clip, colors).run(out)
    return out


def bench_command(bench: Bench, out: Path, *more: str) -> list[str]:
    sets = [f"--set={method}.{name}={value}" for method in VALUES for name, value in QUICK.items()]
    code = "from rmadapter.cli.main import main; main()"
    data = ["--datasets", bench.colors.name, "--root", str(bench.colors.parent)]
    model = ["--backbone", bench.backbone.name, "--set", "device=cpu"]
    which = ["--methods", ",".join(METHODS), "--seeds", "1,2,3", "--shots", "2"]
    command = [sys.executable, "-c", code, "bench", "base-to-novel"]
    return [*command, *data, *model, *which, *sets, "--out", str(out), *more]
