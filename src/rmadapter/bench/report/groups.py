"""Records grouped so that like is compared with like."""

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
from typing import Any

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.methods.uses import TRACKS, UNKNOWN, track_of

SHARED = (
    "task.templates",
    "task.augmentation",
    "task.views",
    "precision",
)  # what runs must share to be compared
TRANSFER = ("cross-dataset", "domain-generalization")
ORDER = {
    "zero-shot": -1,
    "mma": 1,
    "rmadapter-paper": 2,
    "rmadapter": 3,
}  # of rows; 0 for other methods


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
    shared: dict[str, Any]
    records: list[Record]
    track: str = TRACKS[0]
    axis: str = ""
    prompts: int = 0

    @property
    def slug(self) -> str:
        """A name for files and labels, unique among groups by the start of the digest."""
        parts = [self.protocol, self.axis, Path(self.backbone.name).name, self.backbone.digest[:6]]
        parts += [] if self.shots is None else [f"{self.shots}shots"]
        parts += [
            f"{k}-{v}"
            for k, v in self._unlike_the_defaults("augmentation", "views", "precision").items()
        ]
        parts += [f"prompts{self.prompts + 1}"] if self.prompts else []
        parts += [] if self.track == TRACKS[0] else [self.track]
        return slug("-".join(filter(None, parts)))

    @property
    def title(self) -> str:
        axis = f", {self.axis}" if self.axis else ""
        shots = "" if self.shots is None else f", {in_words(self.shots)}"
        track = "" if self.track == TRACKS[0] else f", {self.track}"
        made = "".join(
            f", {value}"
            for value in self._unlike_the_defaults("precision", "augmentation").values()
        )
        return f"{self.protocol}{axis}: {self.backbone.name}{shots}{made}{track}"

    def _unlike_the_defaults(self, *names: str) -> dict[str, Any]:
        return {
            name: self.shared[name]
            for name in names
            if self.shared[name] not in ("none", 0, "fp32")
        }

    @property
    def compared(self) -> bool:
        """Whether its rows are tested against each other: not in sensitivity, nor if what they use
        is not stated."""
        return self.protocol != "sensitivity" and self.track != UNKNOWN

    @property
    def datasets(self) -> list[str]:
        return sorted({record.task.data for record in self.records})

    @property
    def seeds(self) -> list[int]:
        return sorted({record.task.seed for record in self.records})


def in_words(*shots: int) -> str:
    """ "1, 4, 16 shots, all images"; in the order of `by_size`."""
    some = [number for number in shots if number]
    told = [f"{', '.join(map(str, some))} shot{'' if some == [1] else 's'}"] if some else []
    return ", ".join([*told, *["all images"] * (0 in shots)])


def by_size(shots: int) -> tuple[bool, int]:
    """Sort key of numbers of shots: 0 stands for all images, and is the most."""
    return shots == 0, shots


def slug(text: str) -> str:
    """The text in lower-case letters of any script, digits, dots and dashes."""
    return re.sub(r"[^\w.]+|_+", "-", text.lower()).strip("-.")


def label(record: Record) -> str:
    """The label of a row: the record's variant if it has one, else its method."""
    return record.variant or record.method.title or record.method.name


def track(record: Record) -> str:
    method = record.method
    return track_of(method.name, method.settings, method.uses)


def shared(record: Record) -> dict[str, Any]:
    return {name.rpartition(".")[2]: attrgetter(name)(record) for name in SHARED}


def tested(record: Record) -> dict[str, int]:
    """Number of images in each test set on which the method has an accuracy."""
    return {score.name: score.images for score in record.scores if score.accuracy is not None}


def known_as(record: Record) -> tuple[str, str]:
    """Name and, of a method from outside, title: two people may have a mine.py:Mine."""
    name = record.method.name
    return name, record.method.title if ":" in name else ""


def cell(record: Record) -> tuple[Any, ...]:
    """What was measured: two finished records of one cell are the same experiment twice."""
    what = (record.protocol, record.task.data, *known_as(record), record.variant, record.axis)
    how = (json.dumps(record.value), record.backbone.digest, json.dumps(shared(record)))
    return (*what, *how, record.task.shots, record.task.seed)


def group_records(records: Sequence[Record]) -> list[Group]:
    """Group records so that protocol, track, backbone, shots and shared settings are the same
    within a group.

    Each data set may have its own templates. If one was run with several, the most common come
    first.
    """
    usual = Counter(record.task.templates for record in records)
    own: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for record in records:
        own[record.protocol, record.task.data].add(record.task.templates)

    names = {
        record.backbone.digest: record.backbone for record in reversed(records)
    }  # of several, the first

    def key(record: Record) -> tuple[Any, ...]:
        mine = sorted(
            own[record.protocol, record.task.data],
            key=lambda templates: (-usual[templates], templates),
        )
        settings = {name: value for name, value in shared(record).items() if name != "templates"}
        places = list(PROTOCOLS).index(record.protocol), [*TRACKS, UNKNOWN].index(track(record))
        shots = record.task.shots
        digest = record.backbone.digest
        fixed = (names[digest].name, digest, -1 if record.protocol == "few-shot" else shots)
        return *places, *fixed, json.dumps(settings), mine.index(record.task.templates), record.axis

    groups = []
    for (_, place, _, digest, shots, _, prompts, axis), members in groupby(
        sorted(records, key=key), key
    ):
        some = list(members)
        settings = shared(some[0])
        if len({record.task.templates for record in some}) > 1:
            settings["templates"] = "each data set's own"
        known = None if shots < 0 else shots
        which = [*TRACKS, UNKNOWN][place]
        groups.append(
            Group(some[0].protocol, names[digest], known, settings, some, which, axis, prompts)
        )
    return groups


def entries(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the label of their row: the untouched model first, RMAdapter last; variants in the
    protocol's order.

    Methods that share a title get their names added.
    """
    methods: dict[str, set[str]] = defaultdict(set)
    for record in records:
        methods[label(record)].add(record.method.name)
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        alone = len(methods[label(record)]) == 1
        rows[label(record) if alone else f"{label(record)} ({record.method.name})"].append(record)

    def rank(title: str) -> tuple[Any, ...]:
        record = rows[title][0]
        number = record.value if isinstance(record.value, (int, float)) else math.inf
        planned = [variant.label for variant in PROTOCOLS[record.protocol].variants]
        place = planned.index(record.variant) if record.variant in planned else len(planned)
        return 0 if record.variant else ORDER.get(record.method.name, 0), number, place, title

    return {title: rows[title] for title in sorted(rows, key=rank)}


def complete(rows: Mapping[str, Sequence[Record]]) -> tuple[list[str], list[int]]:
    """The data sets that every row has at each of its numbers of shots, and the seeds for which it
    has all of them."""
    parts: dict[tuple[str, int], set[tuple[str, int]]] = defaultdict(set)
    for title, records in rows.items():
        for record in records:
            parts[title, record.task.shots].add((record.task.data, record.task.seed))
    if not parts:
        return [], []
    datasets = set.intersection(*({dataset for dataset, _ in cells} for cells in parts.values()))
    seeds = sorted({seed for _, seed in set.union(*parts.values())})
    have = [
        seed
        for seed in seeds
        if all((d, seed) in cells for cells in parts.values() for d in datasets)
    ]
    return sorted(datasets), have if datasets else []


def alongside(rows: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[Record]]:
    """The records on the data sets and seeds that every row has, whose costs can be compared; all
    if there are none."""
    sets, seeds = complete(rows)
    if not seeds:
        return {**rows}
    return {
        label: [
            record for record in records if record.task.data in sets and record.task.seed in seeds
        ]
        for label, records in rows.items()
    }


def other_images(group: Group) -> list[str]:
    """Notes on runs that look like pairs but were trained on different images."""
    digests: dict[tuple[str, int, int], dict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for label, records in entries(group.records).items():
        for record in records:
            drawn = record.task.data, record.task.shots, record.task.seed
            digests[drawn][record.split_digest].append(label)
    return [
        f"Not the same images, so not paired, on {dataset}, {shots} shots, seed {seed}: "
        f"{' against '.join(', '.join(rows) for rows in sides.values())}."
        for (dataset, shots, seed), sides in digests.items()
        if len(sides) > 1
    ]


def alike(records: Sequence[Record]) -> list[Record]:
    """The records with only the targets that all with the same source have, so that averages are
    comparable."""
    common: dict[str, set[str]] = {}
    for record in records:
        common[record.task.data] = common.get(record.task.data, set(record.targets)) & set(
            record.targets
        )

    def trimmed(record: Record) -> Record:
        keep = common[record.task.data]
        scores = tuple(score for score in record.scores if not score.data or score.name in keep)
        return record.model_copy(update={"scores": scores})

    return [trimmed(record) for record in records]
