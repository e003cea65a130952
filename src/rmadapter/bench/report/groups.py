"""Group records so that only comparable runs share a table."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.protocols import PROTOCOLS, TUNED
from rmadapter.bench.report.format import Cell
from rmadapter.bench.report.stats import (
    HM_OF_MEANS,
    Paired,
    Ranks,
    average,
    correct,
    paired,
    rank_methods,
)
from rmadapter.methods import METHODS, name_with_settings, traits_of
from rmadapter.methods.uses import track_of, uses_of
from rmadapter.support.html import duration
from rmadapter.training.traits import TRACKS, UNKNOWN, Traits, Uses

# what runs must share to be compared
SHARED = ("task.templates", "task.augmentation", "task.views", "precision")
TRANSFER = ("cross-dataset", "domain-generalization")
ORDER = {"zero-shot": -1, "mma": 1, "rmadapter-paper": 2, "rmadapter": 3}  # of rows; others are 0

Rows: TypeAlias = "Mapping[str, Sequence[Record]]"  # by label
Experiment: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        head: Heading.
        metric: Figure, as `average` takes it.
        shots: Number of shots, for few-shot, which has a column per number; None for all.
        printed: Name of the paper's figure.
    """

    head: str
    metric: str
    shots: int | None = None
    printed: str = ""

    def select(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with the column's number of shots."""
        return [record for record in records if self.shots in (None, record.task.shots)]

    def cell(
        self, records: Sequence[Record], datasets: Sequence[str], seeds: Sequence[int] | None = None
    ) -> Cell:
        """Average the column's figure over data sets and seeds, by default all of the records'."""
        selected = [r for r in self.select(records) if r.task.data in datasets]
        seeds = seeds_of(selected) if seeds is None else seeds
        return average(selected, self.metric, datasets, seeds)


HALVES = (
    Column("base", "base", printed="base"),
    Column("novel", "novel", printed="novel"),
    Column("HM", "hm", printed="hm"),
)
OPEN_WORLD = (
    Column("all names", "all"),
    Column("AUROC", "auroc"),
    Column("OpenworldAUC", "openworld_auc"),
)
# of the table of means alone
RIGHT_HALF = (
    Column("base, right half", "base_half"),
    Column("novel, right half", "novel_half"),
)
AVERAGES = (
    *HALVES[:2],
    Column(HM_OF_MEANS, HM_OF_MEANS, printed="hm"),
    Column("mean of the HMs", "hm"),
)


@dataclass(frozen=True)
class Group:
    """Records that may share a table.

    Attributes:
        protocol: Protocol of all.
        backbone: Backbone of all.
        shots: Shots per class of all; None for few-shot, where they vary.
        shared: Settings that all share.
        records: The records.
        track: Track of all methods.
        axis: Setting that varies, in a sensitivity study.
        prompts: Number of the set of prompt templates, from 0, where one data set was run with
            several.
        named: Method or row that the user wants the others to be compared with; "" for none.
    """

    protocol: str
    backbone: BackboneName
    shots: int | None
    shared: dict[str, object]
    records: list[Record]
    track: str = TRACKS[0]
    axis: str = ""
    prompts: int = 0
    named: str = ""

    @property
    def slug(self) -> str:
        """A name for files and labels, unique among groups by the start of the digest."""
        special = self._unusual("augmentation", "views", "precision", "draw")
        parts = (
            self.protocol,
            self.axis,
            Path(self.backbone.name).name,
            self.backbone.digest[:6],
            "" if self.shots is None else f"{self.shots}shots",
            *(f"{name}-{value}" for name, value in special.items()),
            f"prompts{self.prompts + 1}" if self.prompts else "",
            "" if self.ranked else self.track,
        )
        return slug("-".join(filter(None, parts)))

    @property
    def title(self) -> str:
        """A title for readers."""
        experiment = ", ".join(filter(None, [self.protocol, self.axis]))
        return f"{experiment}: {', '.join([self.backbone.name, *self.setting])}"

    @property
    def setting(self) -> list[str]:
        """What is not as usual, in words: shots, settings, draw and track."""
        parts = [] if self.shots is None else [describe_shots(self.shots)]
        parts += map(str, self._unusual("precision", "augmentation").values())
        parts += [f"{self.shared['draw']} draw"] if "draw" in self.shared else []
        return parts if self.ranked else [*parts, self.track]

    def _unusual(self, *names: str) -> dict[str, object]:
        usual = ("none", 0, "fp32")
        values = {name: self.shared[name] for name in names if name in self.shared}
        return {name: value for name, value in values.items() if value not in usual}

    @property
    def ranked(self) -> bool:
        """Whether it is of the track whose methods are ranked together."""
        return self.track == TRACKS[0]

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
        return seeds_of(self.records)

    @cached_property
    def rows(self) -> dict[str, list[Record]]:
        """The records by row, in the order of a table."""
        return rows_of(self.records)

    @cached_property
    def comparable(self) -> dict[str, list[Record]]:
        """The rows with only the targets that all rows have, so that averages are comparable."""
        return rows_of(common_targets(self.records))

    @cached_property
    def common(self) -> tuple[list[str], list[int]]:
        """The data sets and seeds that every row has."""
        return complete(self.rows)

    @property
    def costs(self) -> dict[str, list[Record]]:
        """The rows with only the records on the data sets and seeds that every row has, whose costs
        can be compared; all if there are none."""
        sets, seeds = self.common
        if not seeds:
            return self.rows
        return {
            label: [r for r in records if r.task.data in sets and r.task.seed in seeds]
            for label, records in self.rows.items()
        }

    @property
    def named_rows(self) -> list[str]:
        """The rows that the user may mean by `named`: that of this label, or of this method."""
        methods = {label: records[0].method.name for label, records in self.rows.items()}
        return [label for label, name in methods.items() if self.named in (label, name)]

    @property
    def reference(self) -> str:
        """The row that the others are compared with: the named one, unchanged RMAdapter, or else
        the first."""
        first = {label: records[0] for label, records in self.rows.items()}
        unchanged = [
            label
            for label, record in first.items()
            if record.method.name == "rmadapter" and not record.variant
        ]
        published = [
            label
            for label, record in first.items()
            if record.variant == "RMAdapter" or record.variant.endswith("(RMAdapter)")
        ]
        return [*self.named_rows, *unchanged, *published, *first][0]

    def differences(self, column: Column) -> dict[str, Paired]:
        """Compare the reference in a figure with every other row that it has pairs with; they are
        tested together. Empty if the rows are not compared."""
        if not self.compared:
            return {}
        ours = column.select(self.comparable[self.reference])
        pairs = {
            label: paired(ours, column.select(records), column.metric)
            for label, records in self.comparable.items()
            if label != self.reference
        }
        return correct({label: pair for label, pair in pairs.items() if pair})

    @property
    def columns(self) -> tuple[Column, ...]:
        """The figures that are measured, and compared in pairs."""
        if self.protocol == "few-shot":
            return tuple(Column(describe_shots(k), "all", k) for k in shots_of(self.records))
        if self.protocol in TRANSFER:
            return Column("source", "all"), Column("targets", "average")
        return OPEN_WORLD if self.protocol == "open-world" else HALVES

    @property
    def averages(self) -> tuple[Column, ...]:
        """The figures that are averaged over data sets."""
        if self.protocol == "open-world":
            return (*HALVES, *OPEN_WORLD, *RIGHT_HALF)
        return self.columns if self.protocol in ("few-shot", *TRANSFER) else AVERAGES

    def chance(
        self, columns: Sequence[Column], datasets: Sequence[str], records: Sequence[Record] = ()
    ) -> tuple[Cell, ...]:
        """Average what guesses among the classes would get.

        Args:
            columns: Figures.
            datasets: Data sets to average over.
            records: Records whose classes count; by default all.
        """
        guesses: dict[tuple[str, int], Record] = {}  # by data and shots, as seeds share the classes
        for record in common_targets(records or self.records):
            if record.scores:
                guesses[record.task.data, record.task.shots] = _guess(record)
        cells = (column.cell([*guesses.values()], datasets, [0]) for column in columns)
        return tuple(Cell(cell.value) for cell in cells)

    def ranks(self, column: Column) -> Ranks | None:
        """Rank the rows in a figure; None for too few methods or data sets, and for rows that are
        not compared."""
        selected = {label: column.select(records) for label, records in self.comparable.items()}
        return rank_methods(selected, column.metric) if self.compared else None

    def uses(self, label: str) -> Uses | None:
        """Return what a row uses, including a search for settings; None if an outside method does
        not say."""
        record = self.rows[label][0]
        uses = uses_of(record.method.name, record.method.settings, record.method.uses)
        _, searched, trials = record.variant.partition(f", {TUNED} ")
        if uses is None or not searched:
            return uses
        tuned = f"{uses.tuned}; then {trials} on folds of its shots"
        return uses.model_copy(update={"tuned": tuned})

    @property
    def departures(self) -> list[str]:
        """Notes on the methods that are not written from their authors' code, or that leave out
        parts of it."""
        methods = {record.method.name: record.method.title for record in self.records}
        unseen, left_out = [], []
        for name, title in methods.items():
            traits = traits_of(name) if name in METHODS else Traits()
            unseen += [f"{title or name} ({traits.own_reading})"] if traits.own_reading else []
            left_out += [f"{title or name} ({traits.left_out})"] if traits.left_out else []
        parts = {
            "Not written from the authors' code": unseen,
            "Parts of the authors' code left out": left_out,
        }
        return [f"{text}: {'; '.join(these)}." for text, these in parts.items() if these]


def _guess(record: Record) -> Record:
    """Return the record that guesses would get, of seed 0."""
    scores = tuple(
        score.model_copy(
            update={
                "accuracy": score.chance,
                "open_world": {},
                "balanced": score.balanced
                and score.balanced.model_copy(update={"accuracy": score.chance}),
            }
        )
        for score in record.scores
    )
    task = replace(record.task, seed=0)
    return record.model_copy(update={"scores": scores, "task": task})


def describe_shots(*shots: int) -> str:
    """Write numbers of shots as "1, 4, 16 shots, all images"; give them in the order of
    `by_size`."""
    numbers = [number for number in shots if number]
    unit = "shot" if numbers == [1] else "shots"
    parts = [f"{', '.join(map(str, numbers))} {unit}"] if numbers else []
    return ", ".join([*parts, *["all images"] * (0 in shots)])


def by_size(shots: int) -> tuple[bool, int]:
    """Return the sort key of a number of shots; 0 stands for all images, and is the most."""
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
    return track_of(record.method.name, record.method.settings, record.method.uses)


def shared(record: Record) -> dict[str, object]:
    """Return the settings that runs must share to be compared; the draw if it is not balanced."""
    natural = () if record.task.draw == "balanced" else ("task.draw",)
    names = (*SHARED, *natural)
    return {name.rpartition(".")[2]: attrgetter(name)(record) for name in names}


def without_templates(settings: Mapping[str, object]) -> dict[str, object]:
    """Return shared settings but for the templates, of which each data set may have its own."""
    return {name: value for name, value in settings.items() if name != "templates"}


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
        own = of_dataset[record.protocol, record.task.data]
        templates = sorted(own, key=lambda some: (-common[some], some))
        settings = without_templates(shared(record))
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
        group = Group(
            members[0].protocol,
            backbones[digest],
            None if shots < 0 else shots,
            settings,
            members,
            tracks[place],
            axis,
            prompts,
        )
        groups.append(group)
    return groups


def row_titles(records: Sequence[Record]) -> list[str]:
    """Return the title of each record's row: its label, with the method's name where several
    methods share the label."""
    labels = [label(record) for record in records]
    names = [record.method.name for record in records]
    methods = Counter(title for title, _ in {*zip(labels, names, strict=True)})
    return [
        title if methods[title] == 1 else f"{title} ({name})"
        for title, name in zip(labels, names, strict=True)
    ]


def rows_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Sort records into rows by title: the untouched model first, RMAdapter last; variants in the
    protocol's order."""
    rows: dict[str, list[Record]] = defaultdict(list)
    for title, record in zip(row_titles(records), records, strict=True):
        rows[title].append(record)

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
    of_parts = [{dataset for dataset, _ in cells} for cells in parts.values()]
    datasets = set.intersection(*of_parts) if of_parts else set()
    seeds = sorted({seed for cells in parts.values() for _, seed in cells} if datasets else ())
    everywhere = [
        seed
        for seed in seeds
        if all((dataset, seed) in cells for cells in parts.values() for dataset in datasets)
    ]
    return sorted(datasets), everywhere


def other_images(group: Group) -> list[str]:
    """Write notes on runs that look like pairs but were trained on different images."""
    digests: dict[tuple[str, int, int], dict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for label, records in group.rows.items():
        for record in records:
            draw = record.task.data, record.task.shots, record.task.seed
            digests[draw][record.split_digest].append(label)
    return [
        f"Not the same images, so not paired, on {dataset}, {shots} shots, seed {seed}: "
        f"{' against '.join(', '.join(rows) for rows in sides.values())}."
        for (dataset, shots, seed), sides in digests.items()
        if len(sides) > 1
    ]


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
        for name, count in record.tested.items():
            images[name][record.task.data] = max(count, images[name].get(record.task.data, 0))
    counts = ", ".join(f"{name} {sum(of_data.values()):,}" for name, of_data in images.items())
    seeds = seeds_of(records)
    parts = [
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})",
        describe_shots(*shots_of(records)),
        f"{group.backbone.name} ({group.backbone.digest[:8]})",
        f"images tested: {counts}" if counts else "",
        f"{counted(len(records), 'run')}, {duration(total_seconds(records))}",
    ]
    return "; ".join(filter(None, parts)) + "."


def seeds_of(records: Sequence[Record]) -> list[int]:
    """Return the seeds of records, sorted."""
    return sorted({record.task.seed for record in records})


def shots_of(records: Sequence[Record]) -> list[int]:
    """Return the numbers of shots of records, the most last."""
    return sorted({record.task.shots for record in records}, key=by_size)


def total_seconds(records: Sequence[Record]) -> float:
    """Sum the seconds; a run that is in the records of several protocols was made once."""
    seconds = {record.key or str(id(record)): record.seconds.get("total", 0) for record in records}
    return sum(seconds.values())


def machines(records: Sequence[Record]) -> list[str]:
    """Return the machines that runs were made on, as text."""
    texts = (", ".join(f"{key} {value}" for key, value in r.machine.items()) for r in records)
    return sorted(filter(None, {*texts}))
