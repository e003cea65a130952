"""Run records read back: validated, each counted once, and grouped so that like is compared with like."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmadapter.bench import protocols
from rmadapter.errors import UserError

PROTOCOLS = tuple(protocols.PROTOCOLS)
SHARED = ("templates", "augmentation", "views", "precision")  # settings that runs must have in common
TRANSFER = ("cross-dataset", "domain-generalization")
REPORT = "rmadapter report"  # what the report's own JSON calls itself, so that it is no foreign file


class BackboneName(BaseModel):
    name: str
    digest: str


class Run(BaseModel):
    """One run file (format 1). Rates are in percent, times in seconds, memory in MB."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    format: Literal[1]
    protocol: Literal[PROTOCOLS]  # type: ignore[valid-type]
    dataset: str
    method: str
    title: str = ""
    variant: str = ""
    axis: str = ""
    value: Any = None
    backbone: BackboneName
    seed: int
    shots: int
    status: Literal["finished", "failed", "not-applicable"]
    reason: str = ""
    metrics: dict[str, float | dict[str, float | None] | None] = Field(default_factory=dict)
    counts: dict[str, int | dict[str, int]] = Field(default_factory=dict)
    parameters: int | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    step_seconds: float | None = None
    peak_mb: float | None = None
    peak_gpu_mb: float | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    split_digest: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    finished: str = ""

    @property
    def label(self) -> str:
        """What a row of a table is called: the variant where runs differ in it, else the method."""
        return self.variant or self.title or self.method

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that all runs of a comparison must share, wherever in `config` they stand."""
        places = [self.config, *(v for v in self.config.values() if isinstance(v, dict))]
        found = {name: place[name] for place in reversed(places) for name in SHARED if name in place}
        return {name: found[name] for name in SHARED if name in found}

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the run measures: two finished runs of one cell are the same experiment twice."""
        what = (self.protocol, self.dataset, self.method, self.variant, self.axis, json.dumps(self.value))
        return (*what, self.backbone.digest, self.shots, json.dumps(self.shared, sort_keys=True), self.seed)

    @property
    def tested(self) -> dict[str, int]:
        """Images tested per set; targets by their names."""
        nested = [v for v in self.counts.values() if isinstance(v, dict)]
        flat = {k: v for k, v in self.counts.items() if isinstance(v, int)}
        return {**flat, **{k: v for counts in nested for k, v in counts.items()}}

    def metric(self, name: str) -> float | None:
        """A figure in percent; "target:NAME" is one of the targets. None where the run has none."""
        if name.startswith("target:"):
            targets = self.metrics.get("targets")
            return targets.get(name.removeprefix("target:")) if isinstance(targets, dict) else None
        value = self.metrics.get(name)
        return value if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class Results:
    """runs: finished, each cell once. unfinished: failed and not-applicable. notes: what was left out and why."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table: one protocol, backbone, number of shots and set of shared settings.

    shots is None for few-shot, where they vary. For sensitivity, `axis` is the field that varies.
    """

    protocol: str
    backbone: BackboneName
    shots: int | None
    shared: dict[str, Any]
    runs: list[Run]
    axis: str = ""
    prompts: int = 0  # counts the sets of prompt templates of one data set

    @property
    def slug(self) -> str:
        """A name for files and anchors, unique among groups by the start of the digest."""
        parts = (self.protocol, self.axis, Path(self.backbone.name).name, self.backbone.digest[:6])
        shots = [] if self.shots is None else [f"{self.shots}shots"]
        other = [f"{k}-{v}" for k, v in self.shared.items() if k != "templates" and v not in ("none", 0, "fp32")]
        other += [f"prompts{self.prompts + 1}"] if self.prompts else []
        return slug("-".join([*filter(None, parts), *shots, *other]))

    @property
    def datasets(self) -> list[str]:
        return sorted({run.dataset for run in self.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})


def slug(text: str) -> str:
    """Lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def read_runs(results: Path) -> Results:
    """Every run file below a folder, in the order of their paths.

    A JSON that is no run is left out with a note; of two finished runs of one cell, the later one counts, with a note.
    Raises UserError when the folder is missing or holds no run.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; give the folder that `rmadapter bench ... --out` wrote")
    found: list[tuple[Path, Run]] = []
    notes = []
    for path in sorted(p for p in results.rglob("*.json") if not p.name.startswith(".")):
        read = _read(path)
        if isinstance(read, Run):
            found.append((path, read))
        elif read:
            notes.append(f"{path.relative_to(results)}: left out, {read}")
    if not found:
        raise UserError(f"{results}: holds no run of the bench; `rmadapter bench ... --out {results}` writes them")
    finished: dict[tuple[Any, ...], tuple[Path, Run]] = {}
    for path, run in found:
        if run.status != "finished":
            continue
        old = finished.get(run.cell)
        if old is None or _when(run) > _when(old[1]):
            finished[run.cell] = path, run
        if old is not None:
            kept = finished[run.cell][0].relative_to(results)
            other = (old[0] if finished[run.cell][0] == path else path).relative_to(results)
            notes.append(f"{other}: left out, {kept} is the same experiment, finished later or first in order")
    # A failure that was repeated with success since is history.
    unfinished = {r.cell: r for _, r in found if r.status != "finished" and r.cell not in finished}
    return Results([run for _, run in finished.values()], list(unfinished.values()), notes)


def _read(path: Path) -> Run | str:
    """The run, or why it is none; nothing to say about the report's own file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"not readable JSON ({type(error).__name__})"
    if not isinstance(content, dict) or "protocol" not in content:
        return "" if isinstance(content, dict) and content.get("kind") == REPORT else "it is no run of the bench"
    try:
        run = Run.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        return f"field {'.'.join(map(str, first['loc']))}: {first['msg']}"
    needed = {"few-shot": ("accuracy",), **dict.fromkeys(TRANSFER, ("source", "targets"))}
    missing = [name for name in needed.get(run.protocol, ("base",)) if run.metrics.get(name) is None]
    if run.status == "finished" and missing:
        return f"finished without metrics.{missing[0]}"
    return run


def _when(run: Run) -> float:
    try:
        return datetime.fromisoformat(run.finished.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return -math.inf


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs of different protocols, backbones, shots or shared settings never meet in a group."""

    runs = list(runs)
    prompts = Counter(_templates(run) for run in runs)
    own: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        own[run.protocol, run.dataset].add(_templates(run))

    def key(run: Run) -> tuple[Any, ...]:
        # Each data set may have its own templates. Where one has several, the commonest come first.
        mine = sorted(own[run.protocol, run.dataset], key=lambda text: (-prompts[text], text))
        rank = mine.index(_templates(run))
        shots = -1 if run.protocol == "few-shot" else run.shots
        shared = json.dumps({k: v for k, v in run.shared.items() if k != "templates"}, sort_keys=True)
        return PROTOCOLS.index(run.protocol), run.backbone.name, run.backbone.digest, shots, shared, rank, run.axis

    groups = []
    for (_, _, _, shots, _, rank, axis), members in groupby(sorted(runs, key=key), key):
        some = list(members)
        first, shared = some[0], dict(some[0].shared)
        if len({_templates(run) for run in some}) > 1:
            shared["templates"] = "each data set's own"
        shown = None if shots < 0 else shots
        groups.append(Group(first.protocol, first.backbone, shown, shared, some, axis, rank))
    return groups


def _templates(run: Run) -> str:
    return json.dumps(run.shared.get("templates"))


def entries(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the label of their row: the untouched model first, RMAdapter last; variants as the protocol has them."""
    methods: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        methods[run.label].add(run.method)
    rows: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        rows[run.label if len(methods[run.label]) == 1 else f"{run.label} ({run.method})"].append(run)

    def rank(label: str) -> tuple[Any, ...]:
        run = rows[label][0]
        last = {"zero-shot": -1, "mma": 1, "rmadapter-paper": 2, "rmadapter": 3}.get(run.method, 0)
        number = run.value if isinstance(run.value, (int, float)) else math.inf
        planned = [variant.label for variant in protocols.PROTOCOLS[run.protocol].variants]
        place = planned.index(run.variant) if run.variant in planned else len(planned)
        return 0 if run.variant else last, number, place, label

    return {label: rows[label] for label in sorted(rows, key=rank)}


def complete(rows: dict[Any, list[Run]]) -> tuple[list[str], list[int]]:
    """The datasets that every row has, and the seeds for which every row has all of these datasets."""
    have = [{(run.dataset, run.seed) for run in runs} for runs in rows.values()]
    if not have:
        return [], []
    datasets = set.intersection(*({dataset for dataset, _ in cells} for cells in have))
    seeds = {seed for _, seed in set.union(*have)}
    shared = [s for s in sorted(seeds) if all((d, s) in cells for cells in have for d in datasets)]
    return sorted(datasets), shared if datasets else []
