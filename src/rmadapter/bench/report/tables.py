"""The tables of one group: means with intervals over seeds, differences and ranks over data sets,
and those of `costs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rmadapter.artifacts.record import BALANCED, Record
from rmadapter.bench.report.costs import cost_table, uses_tables
from rmadapter.bench.report.format import Cell, Table, TableRow, mark_best
from rmadapter.bench.report.groups import (
    OPEN_WORLD,
    RIGHT_HALF,
    TRANSFER,
    Column,
    Group,
    common_targets,
    counted,
    facts,
    first_column,
    other_images,
    rows_of,
    seeds_of,
    slug,
)
from rmadapter.bench.report.printed import printed_tables
from rmadapter.bench.report.stats import LEVEL, POWER, Paired, rank_table

AVERAGE = ("average", f"{BALANCED}average")
MEAN_NOTE = (
    "Mean ± half width of the 95 % interval over seeds (Student's t); HM: harmonic mean of base "
    "and novel."
)
BALANCED_NOTE = (
    "Balanced accuracy is the mean recall of the classes, which count alike; the classes tested "
    "have {} images each."
)
PAIR_NOTE = (
    "Tested over data sets (n): each counts once, with the mean difference of its pairs, which are "
    "runs of the same data set, shots, seed and images. Each target is a data set. The interval "
    "and the first p are Student's t of that row alone; the second p is that one, corrected by "
    "Holm for the number of rows of the same figure; the third is Wilcoxon's signed-rank test, not "
    "corrected. The variance over data sets counts, but not less than the runs within them say. "
    f"Could show: the difference that so many sets show in {POWER:.0%} of studies, p not "
    "corrected. The verdict is on the first named: ahead or behind where the corrected p of t is "
    f"below {LEVEL}, on three data sets or more; at most X: the interval holds no larger "
    "difference, either way."
)
PAIR_HEADS = (
    "compared with",
    "figure",
    "difference",
    "95 % from",
    "to",
    "n",
    "pairs",
    "better on",
    "worse on",
    "p, t",
    "p, Holm",
    "p, Wilcoxon",
    "could show",
    "verdict",
)


def make_tables(group: Group) -> list[Table]:
    """Make all tables: the average first, then one per data set or source, paired differences,
    ranks, cost, rules."""
    parts: list[Table] = []
    transfer = group.protocol in TRANSFER
    if len(group.datasets) > 1 and not transfer:
        parts = [_average_table(group)]
    for dataset in group.datasets:
        parts += _transfer_tables(group, dataset) if transfer else _set_tables(group, dataset)
    compared = [*_pair_tables(group), *_rank_tables(group)]
    return [*parts, *compared, cost_table(group), *uses_tables(group)]


def _means_table(
    group: Group,
    title: str,
    columns: Sequence[Column],
    datasets: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    block: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """Make a table of means, with a row per method or variant.

    Args:
        group: The group.
        title: Title of the table.
        columns: Its figures.
        datasets: Data sets that they average over.
        seeds: Seeds that they average over; None for those of each row.
        block: What it is about, as `PrintedTables` takes it.
        notes: Further footnotes.
    """
    rows: list[TableRow] = []
    for label, records in group.rows.items():
        selected = [record for record in records if record.task.data in datasets]
        cells = []
        for column in columns:
            source = group.comparable[label] if column.metric in AVERAGE else selected
            cells.append(column.cell(source, datasets, seeds))
        missing = _missing_seeds(selected, columns, group.seeds) if seeds is None else ""
        rows.append(TableRow(label, tuple(cells), note=missing))
        if selected:
            rows += printed_tables().rows(selected[0], block, columns)
    used = [
        record
        for record in group.records
        if record.task.data in datasets and (seeds is None or record.task.seed in seeds)
    ]
    first = [next(filter(None, (r.reason for r in some)), "") for some in rows_of(used).values()]
    reasons = "; ".join(filter(None, dict.fromkeys(first)))
    footnotes = (
        MEAN_NOTE,
        *notes,
        *([f"–: {reasons}."] if reasons else []),
        *group.departures,
        *printed_tables().notes(group, block, rows),
    )
    heads = (first_column(group), *(column.head for column in columns))
    name = f"{group.slug}-{'average' if seeds is not None else slug(datasets[0])}"
    chance = TableRow("chance", group.chance(columns, datasets, used), "chance")
    return Table(name, title, heads, (*mark_best(rows), chance), facts(group, used), footnotes)


def _missing_seeds(
    records: Sequence[Record], columns: Sequence[Column], seeds: Sequence[int]
) -> str:
    """Write a note on the seeds that a row lacks on one data set."""
    counts = {column.shots: len(seeds_of(column.select(records))) for column in columns}
    short = [shots for shots, count in counts.items() if count < len(seeds)]
    if not short:
        return ""
    if not records:
        return "not run"
    if None in short:
        return f"{counts[None]} of {len(seeds)} seeds"
    return f"fewer than {len(seeds)} seeds at {', '.join(map(str, short))} shots"


def _average_table(group: Group) -> Table:
    """Average over the data sets that every row has."""
    datasets, seeds = group.common
    return _means_table(
        group,
        average_title(datasets, seeds),
        group.averages,
        datasets,
        seeds=seeds,
        block="average" if printed_tables().is_average(group, datasets) else "",
        notes=left_out(group),
    )


def average_title(datasets: Sequence[str], seeds: Sequence[int]) -> str:
    """Title an average over data sets, or say why there is none."""
    if not seeds:
        return "No average: no data set and seed is there for every row"
    return f"Average over {counted(len(datasets), 'data set')}"


def left_out(group: Group) -> list[str]:
    """Write a note on what an average leaves out because not every row has it."""
    datasets, seeds = group.common
    sets = [dataset for dataset in group.datasets if dataset not in datasets]
    missing = [str(seed) for seed in group.seeds if seed not in seeds] if datasets else []
    parts = [
        f"{noun}{'' if len(names) == 1 else 's'} {', '.join(names)}"
        for noun, names in (("data set", sets), ("seed", missing))
        if names
    ]
    if not parts:
        return []
    return [f"Incomplete: the average leaves out {' and '.join(parts)}, which not every row has."]


def _set_tables(group: Group, dataset: str) -> list[Table]:
    columns = group.averages if group.protocol == "open-world" else group.columns
    table = _means_table(group, dataset, columns, [dataset], block=dataset)
    return [table, *_balanced_table(group, columns, dataset)]


def _transfer_tables(group: Group, source: str) -> list[Table]:
    records = [record for record in group.records if record.task.data == source]
    targets = sorted({name for record in records for name in record.targets})
    shared = common_targets(records)[0].targets
    columns = [Column(f"{source} (source)", "all", printed="imagenet")]
    columns += [Column(name, name, printed=name) for name in targets]
    columns.append(Column("average of the targets", "average", printed="average"))
    partial = f"The average is over the targets of all rows: {', '.join(sorted(shared))}."
    notes = [partial] if len(shared) < len(targets) else []
    title = f"Trained on {source}"
    table = _means_table(group, title, columns, [source], block=source, notes=notes)
    return [table, *_balanced_table(group, columns, source)]


def _balanced_table(group: Group, columns: Sequence[Column], dataset: str) -> list[Table]:
    """Make a table of balanced accuracies on one data set, if the classes that it tests have
    unequal numbers of images."""
    scores = [s for r in group.records if r.task.data == dataset for s in r.scores]
    rates = [score.balanced for score in scores if score.balanced]
    if not any(rate.differs for rate in rates):
        return []
    counts = f"{min(rate.fewest for rate in rates):,} to {max(rate.most for rate in rates):,}"
    balanced = [
        replace(column, metric=BALANCED + column.metric, printed="")
        for column in columns
        if column not in (*OPEN_WORLD[1:], *RIGHT_HALF)
    ]
    title, notes = f"{dataset}, balanced accuracy", (BALANCED_NOTE.format(counts),)
    table = _means_table(group, title, balanced, [dataset], notes=notes)
    return [replace(table, name=f"{table.name}-balanced")]


def _pair_tables(group: Group) -> list[Table]:
    if len(group.rows) < 2 or not group.compared:
        return []
    by_column = {column: group.differences(column) for column in group.columns}
    lines = [
        TableRow(label, _pair_cells(column, pairs[label]))
        for label in group.rows
        for column, pairs in by_column.items()
        if label in pairs
    ]
    name, title = f"{group.slug}-pairs", f"{group.reference} minus the others, in points"
    notes = (PAIR_NOTE, *other_images(group), *group.departures)
    return [Table(name, title, PAIR_HEADS, tuple(lines), facts(group, group.records), notes)]


def _pair_cells(column: Column, pair: Paired) -> tuple[Cell, ...]:
    tests = (None if p is None else f"{p:.3g}" for p in (pair.t, pair.holm, pair.wilcoxon))
    interval = (pair.difference, pair.low, pair.high)
    counts = (pair.sets, pair.pairs, pair.ahead, pair.behind)
    shown = (pair.could_show, pair.conclusion)
    return tuple(map(Cell, (column.head, *interval, *counts, *tests, *shown)))


def _rank_tables(group: Group) -> list[Table]:
    first, about, notes = first_column(group), facts(group, group.records), group.departures
    by_column = {column: group.ranks(column) for column in group.columns}
    return [
        rank_table(
            ranks, f"{group.slug}-ranks-{slug(column.head)}", column.head, first, about, notes
        )
        for column, ranks in by_column.items()
        if ranks
    ]
