"""Small benches on a tiny backbone, for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import Record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.runner import run_all
from rmadapter.settings import Machine, configured
from rmadapter.task import Task

METHODS = ("zero-shot", "mma", "rmadapter")
QUICK = {"first_block": 3, "rank": 4, "epochs": 2}
VALUES = {"mma": QUICK, "rmadapter": QUICK}


def jobs_of(backbone: Backbone, colors: Path, **words: Any) -> list[Job]:
    given = {
        "protocol": "base-to-novel",
        "datasets": [colors.name],
        "seeds": [1, 2],
        "shots": [2],
        **words,
    }
    common = configured(Task(), {"backbone": backbone.name, **given.pop("common", {})})
    return expand(**given, common=common)


def run_bench(
    colors: Path, out: Path, jobs: list[Job], processes: int = 1, **words: Any
) -> list[Record]:
    values = words.pop(
        "values",
        {name: own for name, own in VALUES.items() if name in {job.method for job in jobs}},
    )
    machine = configured(Machine(), {"device": "cpu", **words})
    return run_all(
        Plan(tuple(jobs), out, colors.parent, machine, values), processes, progress=False
    )


def records(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.json")}


@pytest.fixture(scope="session")
def finished_bench(
    tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Results of three methods and two seeds. Copy them to change them."""
    out = tmp_path_factory.mktemp("done")
    run_bench(colors, out, jobs_of(tiny_clip, colors))
    return out


def bench_command(backbone: Backbone, colors: Path, out: Path, *more: str) -> list[str]:
    sets = [f"--set={method}.{name}={value}" for method in VALUES for name, value in QUICK.items()]
    code = "from rmadapter.cli.main import main; main()"
    data = ["--datasets", colors.name, "--root", str(colors.parent), "--backbone", backbone.name]
    which = [
        "--methods",
        ",".join(METHODS),
        "--seeds",
        "1,2,3",
        "--shots",
        "2",
        "--set",
        "device=cpu",
    ]
    return [
        sys.executable,
        "-c",
        code,
        "bench",
        "base-to-novel",
        *data,
        *which,
        *sets,
        "--out",
        str(out),
        *more,
    ]
