"""Tables of methods by backbones: what no other table of a report shows, as each is of one
backbone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import Table, TableRow, mark_best, setting_text
from rmadapter.bench.report.groups import (
    Column,
    Group,
    complete,
    counted,
    describe_shots,
    first_column,
    rows_of,
    seeds_of,
    slug,
    without_templates,
)

NOTE = (
    "Mean over the data sets and seeds that every method has on every backbone that it was run on, "
    "± half the width of the 95 % interval over seeds (Student's t); HM: of the harmonic means of "
    "base and novel. The best of each backbone is in bold. –: not run, or without an answer. "
    "Differences between backbones are not tested: the images that they learnt from differ, too."
)


def backbone_tables(groups: Sequence[Group]) -> list[Table]:
    """Make a table of methods by backbones for each figure of the groups that differ in their
    backbone alone; none where no two do."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        settings = without_templates(group.shared)
        key = (group.protocol, group.track, group.axis, group.shots, group.prompts, settings)
        alike.setdefault(json.dumps(key), []).append(group)
    return [
        _table(members, column)
        for members in alike.values()
        if len({group.backbone.digest for group in members}) > 1 and members[0].compared
        for column in dict.fromkeys(c for group in members for c in group.columns)
    ]


def _table(groups: Sequence[Group], column: Column) -> Table:
    """Make the table of one figure of groups of one setting, on several backbones."""
    backbones = _by_name(groups)
    records = [record for group in groups for record in column.select(group.records)]
    cells = {
        (label, digest): [record for record in of_row if record.backbone.digest == digest]
        for label, of_row in rows_of(records).items()
        for digest in backbones.values()
    }
    known = {
        " on ".join(place): [r for r in of_cell if r.metric(column.metric) is not None]
        for place, of_cell in cells.items()
    }
    datasets, seeds = complete({name: of_cell for name, of_cell in known.items() if of_cell})
    rows = []
    for label in rows_of(records):
        of_backbones = [cells[label, digest] for digest in backbones.values()]
        figures = (column.cell(of_cell, datasets, seeds) for of_cell in of_backbones)
        rows.append(TableRow(label, tuple(figures)))
    used = [r for r in records if r.task.data in datasets and r.task.seed in seeds]
    first = groups[0]
    chance = TableRow("chance", first.chance([column], datasets, used) * len(backbones), "chance")
    settings = slug(", ".join(_settings(first)))
    return Table(
        slug(f"{first.protocol}-{slug(column.head)}-{first.track}-{settings}-backbones"),
        f"{', '.join([first.protocol, column.head, *first.setting])}: by backbone",
        (first_column(first), *backbones),
        (*mark_best(rows), chance),
        _facts(first, datasets, seeds, records),
        (NOTE, *dict.fromkeys(note for group in groups for note in group.departures)),
    )


def _by_name(groups: Sequence[Group]) -> dict[str, str]:
    """Return heading -> digest of the backbones; the heading has the start of a digest if several
    share the name."""
    names = {group.backbone.digest: group.backbone.name for group in reversed(groups)}
    digests = dict.fromkeys(group.backbone.digest for group in groups)
    taken = Counter(names.values())
    return {
        names[digest] if taken[names[digest]] == 1 else f"{names[digest]} ({digest[:8]})": digest
        for digest in digests
    }


def _settings(group: Group) -> list[str]:
    """Write the settings that the runs share, but for templates."""
    parts = [f"{name} {value}" for name, value in without_templates(group.shared).items()]
    return parts if group.shots is None else [describe_shots(group.shots), *parts]


def _facts(
    group: Group, datasets: Sequence[str], seeds: Sequence[int], records: Sequence[Record]
) -> str:
    """Write the line under the table: data sets, seeds, and the settings that all runs share."""
    if not seeds:
        return "No figures: no data set and seed is there for every method on every backbone."
    missing = sorted({record.task.data for record in records} - {*datasets})
    missing += [f"seed {seed}" for seed in seeds_of(records) if seed not in seeds]
    parts = [
        f"{counted(len(datasets), 'data set')} ({', '.join(datasets)})",
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})",
        ", ".join(_settings(group)),
        f"templates {setting_text(group.shared['templates'])}",
        f"left out: {', '.join(missing)}" if missing else "",
    ]
    return "; ".join(filter(None, parts)) + "."
