"""The paper's experiments as data: what a run trains on, what it is tested on, and what is
varied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Literal, TypeAlias

from rmadapter.errors import UserError, did_you_mean
from rmadapter.settings import configured
from rmadapter.task import Half, Question, Task

Tests: TypeAlias = Literal["halves", "targets", "accuracy", "together"]  # what a protocol tests on
Values: TypeAlias = "tuple[tuple[str, object], ...]"  # (setting, value)
# in the variant of a row of `bench --tune N`, followed by the trials on folds of its shots
TUNED = "tuned by"


@dataclass(frozen=True)
class Job:
    """One run of a protocol.

    Attributes:
        protocol: Name of the protocol.
        task: The training and its tests.
        method: Name of the method.
        values: Settings of the method that the protocol sets.
        variant: A printable label.
        axis: Setting that is varied.
        value: Value of that setting.
        trials: How many values of the settings `searched` are tried first; the run uses the best.
        searched: Settings that are searched for.
    """

    protocol: str
    task: Task
    method: str
    values: Values = ()
    variant: str = ""
    axis: str = ""
    value: object = None
    trials: int = 0
    searched: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, int, int, str]:
        """Data set, shots, seed and draw, which determine the images that are drawn."""
        return self.task.data, self.task.shots, self.task.seed, self.task.draw

    @property
    def datasets(self) -> list[str]:
        """The data sets that the job reads: its own, then those of its tests."""
        return [self.task.data, *(test.data for test in self.task.tests if test.data)]

    @property
    def path(self) -> Path:
        """The path of the job's record below the results folder."""
        data = PurePath(self.task.data)
        folders = [part for part in data.parts if part not in (data.anchor, "..", "~")]
        variant = _slug(self.variant) or "default"
        name = f"{variant}-{self.task.shots}shots{_kind(self.task)}-seed{self.task.seed}.json"
        return Path(self.protocol, *map(_slug, folders), _slug(self.method), name)

    def __str__(self) -> str:
        variant = f" [{self.variant}]" if self.variant else ""
        draw = f"{self.task.shots} shots{_kind(self.task, ' ')} seed {self.task.seed}"
        return f"{self.protocol} {self.task.data} {self.method}{variant} {draw}"


@dataclass(frozen=True)
class Variant:
    """A row of an ablation, or a point of a sensitivity curve: a method with some fields set."""

    label: str
    values: Mapping[str, object] = field(default_factory=dict)
    method: str = "rmadapter"
    axis: str = ""
    value: object = None


@dataclass(frozen=True)
class Protocol:
    """An experiment.

    Attributes:
        text: What it does, for readers.
        tests: The halves of the classes, the target data sets, all classes, or the halves and then
            all classes together.
        shots: Numbers of shots.
        variants: Those of an ablation or of sensitivity, which fix their methods; empty for the
            others.
    """

    text: str
    tests: Tests = "halves"
    shots: tuple[int, ...] = (16,)
    variants: tuple[Variant, ...] = ()


# Table 4 adds its parts to MMA. We add them to RMAdapter's adapters, which differ from MMA's in
# norm, activation, start and alpha, so two rows have neither constraint nor reconstruction: MMA as
# published, and these adapters alone.
NO_RECONSTRUCTION = {"lambda_image_rec": 0.0, "lambda_text_rec": 0.0}
NO_CONSTRAINT = {"lambda_image_con": 0.0, "lambda_text_con": 0.0}
COMPONENTS = (
    Variant("MMA (its own configuration)", method="mma"),
    Variant(
        "RMAdapter's adapters, no reconstruction, no constraint",
        {**NO_RECONSTRUCTION, **NO_CONSTRAINT},
    ),
    Variant("RMAdapter's adapters + constraint", NO_RECONSTRUCTION),
    Variant("RMAdapter's adapters + constraint + text reconstruction", {"lambda_image_rec": 0.0}),
    Variant("RMAdapter's adapters + constraint + visual reconstruction", {"lambda_text_rec": 0.0}),
    Variant("RMAdapter"),
)
SHARING = (  # Table 5
    Variant("independent", {"share": "none"}),
    Variant("shared up-projection", {"share": "up"}),
    Variant("shared down-projection (RMAdapter)", {"share": "down"}),
)
LAYERS = (  # Table 6
    Variant("1", {"reconstruction_layers": 1}),
    Variant("2 (RMAdapter)", {"reconstruction_layers": 2}),
    Variant("3", {"reconstruction_layers": 3}),
)
OBJECTIVE = (
    Variant("L2 (RMAdapter)", {"objective": "l2"}),
    Variant("L1", {"objective": "l1"}),
    Variant("cosine", {"objective": "cosine"}),
)
TARGET = (  # readings of Eq. 11 and 12, and two targets of ours
    Variant("adapter's input, Figure 2 (RMAdapter)", {"target": "input"}),
    Variant("adapted block's output, as printed", {"target": "output"}),
    Variant("the same, gradient to the whole adapter", {"target": "adapted"}),
    Variant("untouched encoder's input", {"target": "frozen"}),
    Variant("input of the adapter below", {"target": "below"}),
)
AXES: dict[str, tuple[float, ...]] = {
    "rank": (4, 8, 16, 32, 64),
    "first_block": (1, 3, 5, 7, 9, 11),
    "alpha": (0.01, 0.03, 0.1, 0.3, 1.0),
    "lambda_image_rec": (0.0, 0.01, 0.1, 1.0),
    "lambda_text_rec": (0.0, 0.01, 0.1, 1.0),
    "lambda_image_con": (0.0, 0.35, 0.7, 1.35, 2.7),
    "lambda_text_con": (0.0, 0.85, 1.7, 3.4, 6.8),
}
SENSITIVITY = tuple(
    Variant(f"{axis}={value}", {axis: value}, axis=axis, value=value)
    for axis, values in AXES.items()
    for value in values
)

PROTOCOLS: dict[str, Protocol] = {
    "base-to-novel": Protocol("train on the first half of the classes, test each half (Table 1)"),
    "cross-dataset": Protocol(
        "train on the first data set, test on it and on the others (Table 2)", "targets"
    ),
    "domain-generalization": Protocol(
        "train on one domain, test on its siblings (Table 3)", "targets"
    ),
    "open-world": Protocol(
        "train on the first half of the classes, ask about all in one list", "together"
    ),
    "few-shot": Protocol("all classes, 1 to 16 shots", "accuracy", (1, 2, 4, 8, 16)),
    "ablation-components": Protocol("parts of the loss (Table 4)", variants=COMPONENTS),
    "ablation-sharing": Protocol("which projection the branches share (Table 5)", variants=SHARING),
    "ablation-layers": Protocol("depth of the reconstruction branch (Table 6)", variants=LAYERS),
    "ablation-objective": Protocol("distance that reconstruction minimises", variants=OBJECTIVE),
    "ablation-target": Protocol("what is reconstructed (Eq. 11, 12)", variants=TARGET),
    "sensitivity": Protocol("rank, first block, alpha and each lambda", variants=SENSITIVITY),
}
# of a protocol without variants, unless others are named
METHODS = ("zero-shot", "mma", "rmadapter")
HALVES: tuple[Half, ...] = ("base", "novel")
# figures of a record, and columns of its tables
RESERVED = {
    *("all", "base", "novel", "hm", "average", "source"),
    *("base_half", "novel_half", "auroc", "openworld_auc"),
}
DOMAINS = {"imagenet": ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")}


def expand(
    protocol: str,
    datasets: Sequence[str],
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (1, 2, 3),
    shots: Sequence[int] = (),
    *,
    axes: Sequence[str] = (),
    root: Path = Path(),
    common: Task | None = None,
) -> list[Job]:
    """List all runs of a protocol; those on the same images are consecutive.

    Args:
        protocol: Name of the protocol.
        datasets: For cross-dataset the source, then the targets; for domain-generalization each is
            FOLDER/DOMAIN, whose siblings below `root` are the targets, or imagenet.
        methods: Names of methods; empty for the protocol's own.
        seeds: Seeds.
        shots: Numbers of shots; empty for the protocol's own.
        axes: Axes of sensitivity; empty for all.
        root: Folder of data sets.
        common: What all tasks share.

    Raises:
        UserError: A value is unknown, duplicated, or set by the protocol itself.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}{did_you_mean(protocol, PROTOCOLS)}")
    plan = PROTOCOLS[protocol]
    shots = shots or plan.shots
    if plan.variants and {*methods} - {"rmadapter"}:
        raise UserError(f"{protocol} compares variants of rmadapter: leave out --methods")
    lists: dict[str, Sequence[str | int]] = {
        "datasets": datasets,
        "methods": methods,
        "seeds": seeds,
        "shots": shots,
    }
    for name, values in lists.items():
        if len(set(values)) < len(values):
            raise UserError(f"--{name} {','.join(map(str, values))}: remove the duplicates")
    for name, numbers in (("seeds", seeds), ("shots", shots)):
        if any(number < 0 for number in numbers):
            raise UserError(f"--{name} {','.join(map(str, numbers))}: numbers must be 0 or more")
    if not datasets or not seeds:
        raise UserError(
            f"{protocol} needs at least one data set (--datasets) and one seed (--seeds)"
        )
    variants = _variants(protocol, axes)
    if not variants:
        variants = [Variant("", method=method) for method in methods or METHODS]
    common = common or Task()
    return [
        Job(protocol, task, v.method, tuple(v.values.items()), v.label, v.axis, v.value)
        for dataset, targets in _sets(protocol, datasets, root)
        for task in _tasks(common, dataset, plan.tests, targets, seeds, shots)
        for v in variants
    ]


def with_own_templates(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with the prompt templates of their data sets, where these are known."""
    from rmadapter.data.catalog.sets import find

    sets = [find(PurePath(job.task.data).name) for job in jobs]
    return [
        replace(job, task=replace(job.task, templates=known.templates)) if known else job
        for job, known in zip(jobs, sets, strict=True)
    ]


def _tasks(
    common: Task,
    dataset: str,
    tests: Tests,
    targets: Sequence[str],
    seeds: Sequence[int],
    shots: Sequence[int],
) -> Iterator[Task]:
    fields: dict[str, object] = {"data": dataset, "classes": "base", "tests": ()}
    if tests == "together":
        fields["tests"] = (*(Question(half, classes=half) for half in HALVES), Question("all"))
    elif tests != "halves":
        questions = (Question("all"), *(Question(name, name) for name in targets))
        fields |= {"classes": "all", "tests": questions}
    for seed in seeds:
        for k in shots:
            yield configured(common, {**fields, "shots": k, "seed": seed})


def _variants(protocol: str, axes: Sequence[str]) -> list[Variant]:
    if axes and protocol != "sensitivity":
        raise UserError(f"{protocol} has no axes: leave out --axes, or run sensitivity")
    for axis in axes:
        if axis not in AXES:
            raise UserError(f"unknown axis {axis!r}{did_you_mean(axis, AXES)}")
    return [v for v in PROTOCOLS[protocol].variants if not axes or v.axis in axes]


def _sets(
    protocol: str, datasets: Sequence[str], root: Path
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (data set to train on, other data sets to test on)."""
    if protocol == "cross-dataset":
        if len(datasets) < 2:
            raise UserError(
                "cross-dataset needs at least two --datasets: the source, then the targets"
            )
        reserved = RESERVED.intersection(datasets[1:])
        if reserved:
            raise UserError(
                f"--datasets {min(reserved)}: records have this name for another figure: "
                "rename the folder"
            )
        yield datasets[0], tuple(datasets[1:])
        return
    for dataset in datasets:
        yield dataset, _siblings(dataset, root) if protocol == "domain-generalization" else ()


def _siblings(dataset: str, root: Path) -> tuple[str, ...]:
    """Return the other domains of FOLDER/DOMAIN, in order of their names."""
    if dataset in DOMAINS:
        return DOMAINS[dataset]
    path = PurePath(dataset)
    folder = root / path.parent
    if len(path.parts) < 2 or not (root / path).is_dir():
        raise UserError(
            "domain-generalization trains on one domain of a folder of domains, such as "
            f"pacs/photo, or on imagenet; {root / path} is not such a folder"
        )
    visible = (d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    names = sorted(name for name in visible if name != path.name)
    if not names:
        raise UserError(f"{folder} has no domain other than {path.name} to test on")
    return tuple((path.parent / name).as_posix() for name in names)


def _kind(task: Task, before: str = "-") -> str:
    """Return a draw that is not balanced, after some text; else ""."""
    return "" if task.draw == "balanced" else f"{before}{task.draw}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=]+", "-", text).strip("-")
