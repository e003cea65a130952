"""Tables of methods by backbones: what no other table of a report shows, as each is of one
backbone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rmadapter.artifacts.record import BackboneName, Record
from rmadapter.bench.report.format import Row, Table, mark_best, setting_text
from rmadapter.bench.report.groups import (
    Group,
    complete,
    counted,
    describe_shots,
    first_column,
    rows_of,
    seeds_of,
    slug,
)
from rmadapter.bench.report.tables import Column, chance_row, columns_of, departures
from rmadapter.training.traits import TRACKS

NOTE = (
    "Mean over the data sets and seeds that every method has on every backbone that it was run on, "
    "± half the width of the 95 % interval over seeds (Student's t); HM: of the harmonic means of "
    "base and novel. The best of each backbone is in bold. –: not run, or without an answer. "
    "Differences between backbones are not tested: the images that they learnt from differ, too."
)

Cells: TypeAlias = "Mapping[tuple[str, str], Sequence[Record]]"  # by row and digest of a backbone


def backbone_tables(groups: Sequence[Group]) -> list[Table]:
    """Make a table of methods by backbones for each figure of the groups that differ in their
    backbone alone; none where no two do."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        settings = {name: value for name, value in group.shared.items() if name != "templates"}
        key = (group.protocol, group.track, group.axis, group.shots, group.prompts, settings)
        alike.setdefault(json.dumps(key), []).append(group)
    tables = []
    for members in alike.values():
        if len({group.backbone.digest for group in members}) > 1 and members[0].compared:
            for column in dict.fromkeys(c for group in members for c in columns_of(group)):
                tables.append(_table(members, column))
    return tables


def _table(groups: Sequence[Group], column: Column) -> Table:
    """Make the table of one figure. groups: of one setting, on several backbones."""
    backbones = _by_name(groups)
    records = [record for group in groups for record in column.select(group.records)]
    cells = {
        (label, digest): [record for record in of_row if record.backbone.digest == digest]
        for label, of_row in rows_of(records).items()
        for digest in backbones.values()
    }
    datasets, seeds = _common(cells, column)
    rows = []
    for label in rows_of(records):
        of_backbones = [cells[label, digest] for digest in backbones.values()]
        figures = (column.cell(of_cell, datasets, seeds) for of_cell in of_backbones)
        rows.append(Row(label, tuple(figures)))
    used = [r for r in records if r.task.data in datasets and r.task.seed in seeds]
    [guess] = chance_row(used, [column], datasets).cells
    chance = Row("chance", (guess,) * len(backbones), "chance")
    first = groups[0]
    name = f"{first.protocol}-{slug(column.head)}-{first.track}-{slug(_settings(first))}-backbones"
    return Table(
        slug(name),
        _title(first, column),
        (first_column(first), *backbones),
        (*mark_best(rows), chance),
        _facts(first, datasets, seeds, records),
        (NOTE, *dict.fromkeys(note for group in groups for note in departures(group))),
    )


def _by_name(groups: Sequence[Group]) -> dict[str, str]:
    """Return heading -> digest of the backbones; the heading has the start of a digest if several
    share the name."""
    found: dict[str, BackboneName] = {}
    for group in groups:
        found.setdefault(group.backbone.digest, group.backbone)
    taken = Counter(one.name for one in found.values())
    return {
        one.name if taken[one.name] == 1 else f"{one.name} ({digest[:8]})": digest
        for digest, one in found.items()
    }


def _common(cells: Cells, column: Column) -> tuple[list[str], list[int]]:
    """Return the data sets and seeds that every cell with a figure has."""
    known = {
        f"{label} on {digest}": [r for r in records if r.metric(column.metric) is not None]
        for (label, digest), records in cells.items()
    }
    return complete({name: records for name, records in known.items() if records})


def _title(group: Group, column: Column) -> str:
    parts = [group.protocol, column.head]
    parts += [] if group.shots is None else [describe_shots(group.shots)]
    parts += [f"{group.shared['draw']} draw"] if "draw" in group.shared else []
    parts += [] if group.track == TRACKS[0] else [group.track]
    return f"{', '.join(parts)}: by backbone"


def _settings(group: Group) -> str:
    """Write the settings that the runs share, but for templates."""
    parts = [f"{name} {value}" for name, value in group.shared.items() if name != "templates"]
    shots = [] if group.shots is None else [describe_shots(group.shots)]
    return ", ".join([*shots, *parts])


def _facts(
    group: Group, datasets: Sequence[str], seeds: Sequence[int], records: Sequence[Record]
) -> str:
    """Write the line under the table: data sets, seeds, and the settings that all runs share."""
    if not seeds:
        return "No figures: no data set and seed is there for every method on every backbone."
    others = sorted({record.task.data for record in records} - {*datasets})
    missing = sorted({*seeds_of(records)} - {*seeds})
    parts = [
        f"{counted(len(datasets), 'data set')} ({', '.join(datasets)})",
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})",
        _settings(group),
        f"templates {setting_text(group.shared['templates'])}",
        *([f"left out: {', '.join([*others, *(f'seed {seed}' for seed in missing)])}"]
          if others or missing else []),
    ]  # fmt: skip
    return "; ".join(parts) + "."
