"""Records of one group as tables: means with intervals over seeds, differences over data sets,
costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rmadapter.artifacts.record import Record
from rmadapter.bench.report import paper
from rmadapter.bench.report import uses as fair
from rmadapter.bench.report.format import Cell, Row, Table, mark_best
from rmadapter.bench.report.groups import (
    TRANSFER,
    Group,
    alike,
    alongside,
    by_size,
    complete,
    entries,
    in_words,
    other_images,
    slug,
    tested,
)
from rmadapter.bench.report.ranks import Ranks, ranked, to_table
from rmadapter.bench.report.stats import HM_OF_MEANS, LEVEL, Paired, average, corrected, paired
from rmadapter.support.plots import duration

Rows = Mapping[str, Sequence[Record]]
PRINTED = ", as printed"
PAPER_NOTE = "Rows in italics are the paper's figures as they are printed, not measured here."
MEAN_NOTE = "Mean ± half width of the 95 % interval over seeds (Student's t); HM: harmonic mean of base and novel."
PAIR_NOTE = (
    "Tested over data sets (n): each counts once, with the mean difference of its pairs, which are runs of the same "
    "data set, shots, seed and images. Each target is a data set. The interval and the first p are Student's t of that "
    "row alone; the second p is that one, corrected by Holm for the number of rows of the same figure; the third is "
    "Wilcoxon's signed-rank test, not corrected. The verdict is on the first named: ahead or behind where the "
    f"corrected p of t is below {LEVEL}, on three data sets or more."
)
COST_NOTE = (
    "Medians over the runs, of the data sets and seeds that every row has if there are any. Memory is the peak "
    "resident memory of the process, the backbone included. Frozen activations that runs share count in the time of "
    "the run that came first."
)


@dataclass(frozen=True)
class Column:
    """A column of figures. metric: as `average` takes it. shots: for few-shot, which has a column
    per number of shots. printed: name of the paper's figure."""

    head: str
    metric: str
    shots: int | None = None
    printed: str = ""

    def of(self, records: Sequence[Record]) -> list[Record]:
        return [record for record in records if self.shots in (None, record.task.shots)]

    def cell(
        self, records: Sequence[Record], datasets: Sequence[str], seeds: Sequence[int] | None = None
    ) -> Cell:
        """The average. seeds: None for all there are."""
        mine = [record for record in self.of(records) if record.task.data in datasets]
        return average(mine, self.metric, datasets, _seeds(mine) if seeds is None else seeds)


HALVES = tuple(Column(head, metric, printed=metric) for metric, head in paper.NAMES.items())
AVERAGES = (
    *HALVES[:2],
    Column(HM_OF_MEANS, HM_OF_MEANS, printed="hm"),
    Column("mean of the HMs", "hm"),
)


def columns_of(group: Group) -> tuple[Column, ...]:
    """The figures that are measured in a group and compared in pairs."""
    if group.protocol == "few-shot":
        shots = sorted({record.task.shots for record in group.records}, key=by_size)
        return tuple(Column(in_words(k), "all", k) for k in shots)
    return (
        (Column("source", "all"), Column("targets", "average"))
        if group.protocol in TRANSFER
        else HALVES
    )


def reference(rows: Rows) -> str | None:
    """The row that the others are compared with: unchanged RMAdapter, else the first."""
    full = [label for label in rows if label == "RMAdapter" or label.endswith("(RMAdapter)")]
    own = [
        label
        for label, records in rows.items()
        if records[0].method.name == "rmadapter" and not records[0].variant
    ]
    return next(iter([*own, *full, *rows]), None)


def make_tables(group: Group) -> list[Table]:
    """The average first, then one per data set or source, paired differences, ranks, cost, rules."""
    parts = []
    if group.protocol in TRANSFER:
        parts = [_transfer(group, source) for source in group.datasets]
    else:
        if len(group.datasets) > 1:
            parts = [_average(group)]
        parts += [
            _means(group, dataset, columns_of(group), [dataset]) for dataset in group.datasets
        ]
    rules = fair.to_tables(group, first_column(group))
    return [*parts, *_pairs(group), *_ranks(group), _cost(group), *rules]


def _means(
    group: Group, title: str, columns: Sequence[Column], datasets: Sequence[str], seeds: Sequence[int] | None = None,
    block: str | None = None, notes: Sequence[str] = (),
) -> Table:  # fmt: skip
    """A table of a row per method or variant. seeds: None for each row's own. block: of the paper's
    figures."""
    lines: list[Row] = []
    block = paper.dataset_name(datasets[0]) if block is None else block
    comparable = entries(alike(group.records))
    for label, every in entries(group.records).items():
        mine = [record for record in every if record.task.data in datasets]
        sides = [comparable[label] if column.metric == "average" else mine for column in columns]
        cells = [
            column.cell(side, datasets, seeds) for column, side in zip(columns, sides, strict=True)
        ]
        note = _missing(mine, columns, group.seeds) if seeds is None else ""
        lines += [Row(label, tuple(cells), note=note), *_printed(mine, block, columns)]
    used = [
        r
        for r in group.records
        if r.task.data in datasets and (seeds is None or r.task.seed in seeds)
    ]
    first = (
        next((record.reason for record in some if record.reason), "")
        for some in entries(used).values()
    )
    reasons = "; ".join(dict.fromkeys(filter(None, first)))
    dashes = [f"–: {reasons}."] if reasons else []
    footnotes = (MEAN_NOTE, *notes, *dashes, *_paper_notes(group, lines, block))
    heads = (first_column(group), *(column.head for column in columns))
    name = f"{group.slug}-{'average' if seeds is not None else slug(datasets[0])}"
    return Table(name, title, heads, mark_best(lines), facts(group, used), footnotes)


def _missing(records: Sequence[Record], columns: Sequence[Column], seeds: Sequence[int]) -> str:
    """A note on the seeds that a row lacks on one data set."""
    have = {column.shots: len(_seeds(column.of(records))) for column in columns}
    short = [shots for shots, count in have.items() if count < len(seeds)]
    if not short:
        return ""
    if not records:
        return "not run"
    if None in short:
        return f"{have[None]} of {len(seeds)} seeds"
    return f"fewer than {len(seeds)} seeds at {', '.join(map(str, short))} shots"


def _seeds(records: Sequence[Record]) -> list[int]:
    return sorted({record.task.seed for record in records})


def _average(group: Group) -> Table:
    """The average over the data sets that every row has."""
    datasets, seeds = complete(entries(group.records))
    of_paper = {paper.dataset_name(d) for d in datasets} == paper.halves().keys() - {"average"}
    block = "average" if of_paper and all(map(paper.belongs, group.records)) else ""
    columns = columns_of(group) if group.protocol == "few-shot" else AVERAGES
    return _means(
        group, average_title(datasets, seeds), columns, datasets, seeds, block, left_out(group)
    )


def average_title(datasets: Sequence[str], seeds: Sequence[int]) -> str:
    if not seeds:
        return "No average: no data set and seed is there for every row"
    return f"Average over {len(datasets)} data set{'' if len(datasets) == 1 else 's'}"


def left_out(group: Group) -> list[str]:
    """A note on what an average leaves out because not every row has it."""
    datasets, seeds = complete(entries(group.records))
    sets = [dataset for dataset in group.datasets if dataset not in datasets]
    missing = [str(seed) for seed in group.seeds if seed not in seeds] if datasets else []
    kinds = (("data set", sets), ("seed", missing))
    told = [
        f"{what}{'' if len(names) == 1 else 's'} {', '.join(names)}"
        for what, names in kinds
        if names
    ]
    return (
        [f"Incomplete: the average leaves out {' and '.join(told)}, which not every row has."]
        if told
        else []
    )


def _transfer(group: Group, source: str) -> Table:
    here = [record for record in group.records if record.task.data == source]
    targets = sorted({name for record in here for name in record.targets})
    shared = alike(here)[0].targets
    columns = [Column(f"{source} (source)", "all", printed="imagenet")]
    columns += [Column(name, name, printed=paper.dataset_name(name)) for name in targets]
    columns.append(Column("average of the targets", "average", printed="average"))
    partial = f"The average is over the targets of all rows: {', '.join(sorted(shared))}."
    notes = [partial] if len(shared) < len(targets) else []
    return _means(group, f"Trained on {source}", columns, [source], notes=notes)


def _printed(records: Sequence[Record], block: str, columns: Sequence[Column]) -> list[Row]:
    """The paper's row for these records, if it has one."""
    found = paper.printed(records[0], block) if records else None
    if found is None:
        return []
    return [
        Row(
            f"{found[0]}{PRINTED}",
            tuple(Cell(found[1].get(column.printed)) for column in columns),
            True,
        )
    ]


def _paper_notes(group: Group, rows: Sequence[Row], block: str) -> list[str]:
    if shown := [row.label.removesuffix(PRINTED) for row in rows if row.paper]:
        return [PAPER_NOTE, *paper.footnotes(group.protocol, block, shown)]
    protocols = (*TRANSFER, *paper.ABLATIONS, "base-to-novel")
    known = group.backbone.name in paper.BACKBONES and group.protocol in protocols
    return (
        ["The paper has no figures for this data set with these shots and test images."]
        if known and block
        else []
    )


def _pairs(group: Group) -> list[Table]:
    rows = entries(alike(group.records))
    first = reference(rows)
    if first is None or len(rows) < 2 or not group.compared:
        return []
    together = {column: differences(rows, first, column) for column in columns_of(group)}
    lines = []
    for label in (label for label in rows if label != first):
        for column, pairs in together.items():
            if label in pairs:
                found = pairs[label]
                tests = (
                    None if p is None else f"{p:.3g}" for p in (found.t, found.holm, found.wilcoxon)
                )
                values = (
                    found.difference,
                    found.low,
                    found.high,
                    found.sets,
                    found.pairs,
                    found.ahead,
                    found.behind,
                )
                lines.append(
                    Row(label, (Cell(column.head), *map(Cell, (*values, *tests, found.verdict))))
                )
    heads = (
        "compared with", "figure", "difference", "95 % from", "to", "n", "pairs", "better on", "worse on",
        "p, t", "p, Holm", "p, Wilcoxon", "verdict",
    )  # fmt: skip
    notes = (PAIR_NOTE, *other_images(group))
    title = f"{first} minus the others, in points"
    return [
        Table(f"{group.slug}-pairs", title, heads, tuple(lines), facts(group, group.records), notes)
    ]


def differences(rows: Rows, first: str, column: Column) -> dict[str, Paired]:
    """Differences of one row to every other that it has pairs with, tested together."""
    others = {label: column.of(records) for label, records in rows.items() if label != first}
    found = {
        label: paired(column.of(rows[first]), records, column.metric)
        for label, records in others.items()
    }
    return corrected({label: pair for label, pair in found.items() if pair is not None})


def rankings(group: Group, columns: Sequence[Column] | None = None) -> dict[Column, Ranks]:
    """Ranks in each figure that has enough methods and data sets. columns: of these figures, by
    default of all."""
    rows = entries(alike(group.records))
    columns = (columns_of(group) if columns is None else columns) if group.compared else ()
    found = {
        c: ranked({label: c.of(records) for label, records in rows.items()}, c.metric)
        for c in columns
    }
    return {column: ranks for column, ranks in found.items() if ranks is not None}


def _ranks(group: Group) -> list[Table]:
    told = facts(group, group.records)
    return [
        to_table(
            ranks, f"{group.slug}-ranks-{slug(column.head)}", column.head, first_column(group), told
        )
        for column, ranks in rankings(group).items()
    ]


def _cost(group: Group) -> Table:
    most = max((record.task.shots for record in group.records), key=by_size)
    used = [
        record
        for record in group.records
        if group.protocol != "few-shot" or record.task.shots == most
    ]
    on_gpu = any(record.peak_gpu_mb is not None for record in used)
    heads = ["trained parameters", "peak memory, MB", *(["peak GPU memory, MB"] if on_gpu else [])]
    heads += ["training, s", "one step, s", "evaluation, s", "all, s", "runs"]
    lines = []
    for label, records in alongside(entries(used)).items():
        train, evaluate, total = (
            [r.seconds.get(name) for r in records] for name in ("train", "evaluate", "total")
        )
        memory = [
            [r.peak_mb for r in records],
            *([[r.peak_gpu_mb for r in records]] if on_gpu else []),
        ]
        columns = [*memory, train, [r.step_seconds for r in records], evaluate, total]
        known = ([value for value in column if value is not None] for column in columns)
        medians = (median(values) if values else None for values in known)
        lines.append(Row(label, (_parameters(records), *map(Cell, medians), Cell(len(records)))))
    where = machines(used)
    told = (
        "Measured on different machines, so that times cannot be compared: "
        if len(where) > 1
        else "On "
    )
    notes = (COST_NOTE, *([f"{told}{'; '.join(where)}."] if where else []))
    return Table(
        f"{group.slug}-cost",
        "Cost",
        (first_column(group), *heads),
        tuple(lines),
        facts(group, used),
        notes,
    )


def _parameters(records: Sequence[Record]) -> Cell:
    numbers = sorted({record.parameters for record in records if record.parameters is not None})
    return Cell(
        f"{numbers[0]:,} to {numbers[-1]:,}"
        if len(numbers) > 1
        else numbers[0]
        if numbers
        else None
    )


def first_column(group: Group) -> str:
    return group.axis or ("variant" if group.protocol.startswith("ablation") else "method")


def facts(group: Group, records: Sequence[Record]) -> str:
    """Seeds, shots, backbone, images tested and time: the line under every table."""
    images: dict[str, dict[str, int]] = defaultdict(dict)  # of each set, by the data trained on
    for record in records:
        for name, count in tested(record).items():
            images[name][record.task.data] = max(count, images[name].get(record.task.data, 0))
    told = ", ".join(f"{name} {sum(counts.values()):,}" for name, counts in images.items())
    seeds, shots = _seeds(records), sorted({record.task.shots for record in records}, key=by_size)
    parts = [
        f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'} ({', '.join(map(str, seeds))})",
        in_words(*shots),
        f"{group.backbone.name} ({group.backbone.digest[:8]})",
        *([f"images tested: {told}"] if told else []),
        f"{len(records)} run{'' if len(records) == 1 else 's'}, {duration(total_seconds(records))}",
    ]
    return "; ".join(parts) + "."


def total_seconds(records: Sequence[Record]) -> float:
    """A run that is in the records of several protocols was made once."""
    made = {record.key or str(id(record)): record.seconds.get("total", 0) for record in records}
    return sum(made.values())


def machines(records: Sequence[Record]) -> list[str]:
    """The machines that runs were made on, as text."""
    return sorted(
        {
            ", ".join(f"{k} {v}" for k, v in record.machine.items())
            for record in records
            if record.machine
        }
    )
