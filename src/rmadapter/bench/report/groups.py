"""Group records so that only comparable runs share a table."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.methods import name_with_settings
from rmadapter.methods.uses import track_of
from rmadapter.support.html import duration
from rmadapter.training.traits import TRACKS, UNKNOWN

# what runs must share to be compared
SHARED = ("task.templates", "task.augmentation", "task.views", "precision")
TRANSFER = ("cross-dataset", "domain-generalization")
ORDER = {"zero-shot": -1, "mma": 1, "rmadapter-paper": 2, "rmadapter": 3}  # of rows; others are 0

Rows: TypeAlias = "Mapping[str, Sequence[Record]]"  # by label
Experiment: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Group:
    """Records that may share a table: one protocol, track, backbone, number of shots and set of
    shared settings.

    shots: None for few-shot, where they vary. axis: of sensitivity, the setting that varies.
    prompts: number of the set of prompt templates, from 0, where one data set was run with several.
    """

    protocol: str
    backbone: BackboneName
    shots: int | None
    shared: dict[str, object]
    records: list[Record]
    track: str = TRACKS[0]
    axis: str = ""
    prompts: int = 0

    @property
    def slug(self) -> str:
        """A name for files and labels, unique among groups by the start of the digest."""
        parts = [self.protocol, self.axis, Path(self.backbone.name).name, self.backbone.digest[:6]]
        parts += [] if self.shots is None else [f"{self.shots}shots"]
        special = self._not_default("augmentation", "views", "precision", "draw")
        parts += [f"{name}-{value}" for name, value in special.items()]
        parts += [f"prompts{self.prompts + 1}"] if self.prompts else []
        parts += [] if self.track == TRACKS[0] else [self.track]
        return slug("-".join(filter(None, parts)))

    @property
    def title(self) -> str:
        """A title for readers."""
        axis = f", {self.axis}" if self.axis else ""
        shots = "" if self.shots is None else f", {describe_shots(self.shots)}"
        special = self._not_default("precision", "augmentation").values()
        settings = "".join(f", {value}" for value in special)
        settings += f", {self.shared['draw']} draw" if "draw" in self.shared else ""
        track = "" if self.track == TRACKS[0] else f", {self.track}"
        return f"{self.protocol}{axis}: {self.backbone.name}{shots}{settings}{track}"

    def _not_default(self, *names: str) -> dict[str, object]:
        defaults = ("none", 0, "fp32")
        values = {name: self.shared[name] for name in names if name in self.shared}
        return {name: value for name, value in values.items() if value not in defaults}

    @property
    def compared(self) -> bool:
        """Whether its rows are tested against each other: not in sensitivity, nor if what they use
        is not stated."""
        return self.protocol != "sensitivity" and self.track != UNKNOWN

    @property
    def datasets(self) -> list[str]:
        """The data sets trained on, sorted."""
        return sorted({record.task.data for record in self.records})

    @property
    def seeds(self) -> list[int]:
        """The seeds, sorted."""
        return sorted({record.task.seed for record in self.records})


def describe_shots(*shots: int) -> str:
    """Write numbers of shots as "1, 4, 16 shots, all images"; give them in the order of
    `by_size`."""
    numbers = [number for number in shots if number]
    unit = "shot" if numbers == [1] else "shots"
    parts = [f"{', '.join(map(str, numbers))} {unit}"] if numbers else []
    return ", ".join([*parts, *["all images"] * (0 in shots)])


def by_size(shots: int) -> tuple[bool, int]:
    """Sort key of numbers of shots: 0 stands for all images, and is the most."""
    return shots == 0, shots


def slug(text: str) -> str:
    """Return the text in lower-case letters of any script, digits, dots and dashes."""
    return re.sub(r"[^\w.]+|_+", "-", text.lower()).strip("-.")


def label(record: Record) -> str:
    """Return the label of a row: the record's variant if it has one, else its method; with the
    settings that are not the method's own, nor the protocol's for that variant.

    The variants that `bench` adds to a protocol name such settings themselves.
    """
    if not record.variant:
        return record.method.label
    planned = {one.label: one.values for one in PROTOCOLS[record.protocol].variants}
    own = planned.get(record.variant)
    if own is None:
        return record.variant
    changed = {name: value for name, value in record.method.changed.items() if name not in own}
    return name_with_settings(record.variant, changed)


def track(record: Record) -> str:
    """Return the track of the record's method."""
    method = record.method
    return track_of(method.name, method.settings, method.uses)


def shared(record: Record) -> dict[str, object]:
    """Return the settings that runs must share to be compared; the draw if it is not balanced."""
    natural = () if record.task.draw == "balanced" else ("task.draw",)
    names = (*SHARED, *natural)
    return {name.rpartition(".")[2]: attrgetter(name)(record) for name in names}


def tested(record: Record) -> dict[str, int]:
    """Return the number of images in each test set on which the method has an accuracy."""
    return {score.name: score.images for score in record.scores if score.accuracy is not None}


def method_key(record: Record) -> tuple[str, str]:
    """Return the name and, of a method from outside, the title: two people may have a
    mine.py:Mine."""
    name = record.method.name
    return name, record.method.title if ":" in name else ""


def experiment_of(record: Record) -> Experiment:
    """Return a key of what was measured: two finished records with the same key are the same
    experiment twice."""
    what = (record.protocol, record.task.data, *method_key(record), record.variant, record.axis)
    how = (json.dumps(record.value), record.backbone.digest, json.dumps(shared(record)))
    return (*what, *how, record.task.shots, record.task.seed)


def group_records(records: Sequence[Record]) -> list[Group]:
    """Group records so that protocol, track, backbone, shots and shared settings are the same
    within a group.

    Each data set may have its own templates. If one was run with several, the most common come
    first.
    """
    common = Counter(record.task.templates for record in records)
    of_dataset: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for record in records:
        of_dataset[record.protocol, record.task.data].add(record.task.templates)
    # of several names of one backbone, the first
    backbones = {record.backbone.digest: record.backbone for record in reversed(records)}
    tracks = [*TRACKS, UNKNOWN]

    def key(record: Record) -> tuple[int, int, str, str, int, str, int, str]:
        templates = sorted(
            of_dataset[record.protocol, record.task.data], key=lambda t: (-common[t], t)
        )
        settings = {name: value for name, value in shared(record).items() if name != "templates"}
        digest = record.backbone.digest
        return (
            list(PROTOCOLS).index(record.protocol),
            tracks.index(track(record)),
            backbones[digest].name,
            digest,
            -1 if record.protocol == "few-shot" else record.task.shots,
            f"{'draw' in settings:d}{json.dumps(settings)}",  # balanced draws come first
            templates.index(record.task.templates),
            record.axis,
        )

    groups = []
    for fields, iterator in groupby(sorted(records, key=key), key):
        _, place, _, digest, shots, _, prompts, axis = fields
        members = list(iterator)
        settings = shared(members[0])
        if len({record.task.templates for record in members}) > 1:
            settings["templates"] = "each data set's own"
        groups.append(
            Group(
                members[0].protocol, backbones[digest], None if shots < 0 else shots, settings,
                members, tracks[place], axis, prompts,
            )
        )  # fmt: skip
    return groups


def rows_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Sort records into rows by label: the untouched model first, RMAdapter last; variants in the
    protocol's order.

    Methods that share a title get their names added.
    """
    methods: dict[str, set[str]] = defaultdict(set)
    for record in records:
        methods[label(record)].add(record.method.name)
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        title = label(record)
        unique = len(methods[title]) == 1
        rows[title if unique else f"{title} ({record.method.name})"].append(record)

    def rank(title: str) -> tuple[int, float, int, str]:
        record = rows[title][0]
        number = record.value if isinstance(record.value, (int, float)) else math.inf
        planned = [variant.label for variant in PROTOCOLS[record.protocol].variants]
        place = planned.index(record.variant) if record.variant in planned else len(planned)
        order = 0 if record.variant else ORDER.get(record.method.name, 0)
        return order, number, place, title

    return {title: rows[title] for title in sorted(rows, key=rank)}


def complete(rows: Rows) -> tuple[list[str], list[int]]:
    """Return the data sets that every row has at each of its numbers of shots, and the seeds for
    which it has all of them."""
    parts: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    for title, records in rows.items():
        for record in records:
            parts[title, record.task.shots].add((record.task.data, record.task.seed))
    if not parts:
        return [], []
    datasets = set.intersection(*({dataset for dataset, _ in cells} for cells in parts.values()))
    if not datasets:
        return [], []
    seeds = sorted({seed for _, seed in set.union(*parts.values())})
    everywhere = [
        seed
        for seed in seeds
        if all((dataset, seed) in cells for cells in parts.values() for dataset in datasets)
    ]
    return sorted(datasets), everywhere


def comparable_costs(rows: Rows) -> Rows:
    """Return the records on the data sets and seeds that every row has, whose costs can be
    compared; all if there are none."""
    sets, seeds = complete(rows)
    if not seeds:
        return rows
    return {
        label: [r for r in records if r.task.data in sets and r.task.seed in seeds]
        for label, records in rows.items()
    }


def other_images(group: Group) -> list[str]:
    """Write notes on runs that look like pairs but were trained on different images."""
    digests: dict[tuple[str, int, int], dict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for label, records in rows_of(group.records).items():
        for record in records:
            draw = record.task.data, record.task.shots, record.task.seed
            digests[draw][record.split_digest].append(label)
    notes = []
    for (dataset, shots, seed), sides in digests.items():
        if len(sides) > 1:
            against = " against ".join(", ".join(rows) for rows in sides.values())
            notes.append(
                f"Not the same images, so not paired, on {dataset}, {shots} shots, seed {seed}: "
                f"{against}."
            )
    return notes


def common_targets(records: Sequence[Record]) -> list[Record]:
    """Return the records with only the targets that all with the same source have, so that averages
    are comparable."""
    targets: dict[str, set[str]] = {}
    for record in records:
        known = targets.get(record.task.data, set(record.targets))
        targets[record.task.data] = known & set(record.targets)

    def trim(record: Record) -> Record:
        keep = targets[record.task.data]
        scores = tuple(score for score in record.scores if not score.data or score.name in keep)
        return record.model_copy(update={"scores": scores})

    return [trim(record) for record in records]


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: "1 run", "2 runs"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_column(group: Group) -> str:
    """Return the heading of the column of row labels."""
    return group.axis or ("variant" if group.protocol.startswith("ablation") else "method")


def facts(group: Group, records: Sequence[Record]) -> str:
    """Write the line under every table: seeds, shots, backbone, images tested and time."""
    images: dict[str, dict[str, int]] = defaultdict(dict)  # of each set, by the data trained on
    for record in records:
        for name, count in tested(record).items():
            images[name][record.task.data] = max(count, images[name].get(record.task.data, 0))
    counts = ", ".join(f"{name} {sum(of_data.values()):,}" for name, of_data in images.items())
    seeds = seeds_of(records)
    shots = sorted({record.task.shots for record in records}, key=by_size)
    parts = [
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})",
        describe_shots(*shots),
        f"{group.backbone.name} ({group.backbone.digest[:8]})",
        *([f"images tested: {counts}"] if counts else []),
        f"{counted(len(records), 'run')}, {duration(total_seconds(records))}",
    ]
    return "; ".join(parts) + "."


def seeds_of(records: Sequence[Record]) -> list[int]:
    """Return the seeds of records, sorted."""
    return sorted({record.task.seed for record in records})


def total_seconds(records: Sequence[Record]) -> float:
    """Sum the seconds; a run that is in the records of several protocols was made once."""
    seconds = {record.key or str(id(record)): record.seconds.get("total", 0) for record in records}
    return sum(seconds.values())


def machines(records: Sequence[Record]) -> list[str]:
    """Return the machines that runs were made on, as text."""
    texts = (", ".join(f"{key} {value}" for key, value in r.machine.items()) for r in records)
    return sorted(filter(None, {*texts}))
