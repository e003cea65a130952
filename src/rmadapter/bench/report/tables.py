"""The tables of one group: means with intervals over seeds, differences and ranks over data sets,
and those of `costs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rmadapter.artifacts.record import BALANCED, Record, Score
from rmadapter.artifacts.value import Balanced
from rmadapter.bench.report import paper
from rmadapter.bench.report.costs import cost_table, uses_tables
from rmadapter.bench.report.format import Cell, Row, Table, mark_best
from rmadapter.bench.report.groups import (
    TRANSFER,
    Group,
    Rows,
    by_size,
    common_targets,
    complete,
    counted,
    describe_shots,
    facts,
    first_column,
    other_images,
    rows_of,
    seeds_of,
    slug,
)
from rmadapter.bench.report.stats import (
    HM_OF_MEANS,
    LEVEL,
    POWER,
    Paired,
    Ranks,
    average,
    correct,
    paired,
    rank_methods,
    rank_table,
)
from rmadapter.methods import METHODS, traits_of
from rmadapter.training.traits import Traits

PRINTED = ", as printed"
AVERAGE = ("average", f"{BALANCED}average")
PAPER_NOTE = "Rows in italics are the paper's figures as they are printed, not measured here."
NO_PAPER_NOTE = "The paper has no figures for this data set with these shots and test images."
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
    "compared with", "figure", "difference", "95 % from", "to", "n", "pairs", "better on",
    "worse on", "p, t", "p, Holm", "p, Wilcoxon", "could show", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of figures. metric: as `average` takes it. shots: for few-shot, which has a column
    per number of shots. printed: name of the paper's figure."""

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
        """Average the column's figure. seeds: None for all of the records."""
        selected = [r for r in self.select(records) if r.task.data in datasets]
        return average(
            selected, self.metric, datasets, seeds_of(selected) if seeds is None else seeds
        )


HALVES = tuple(Column(head, metric, printed=metric) for metric, head in paper.NAMES.items())
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


def columns_of(group: Group) -> tuple[Column, ...]:
    """Return the figures that are measured in a group and compared in pairs."""
    if group.protocol == "few-shot":
        shots = sorted({record.task.shots for record in group.records}, key=by_size)
        return tuple(Column(describe_shots(k), "all", k) for k in shots)
    if group.protocol in TRANSFER:
        return Column("source", "all"), Column("targets", "average")
    return OPEN_WORLD if group.protocol == "open-world" else HALVES


def _shown(group: Group) -> tuple[Column, ...]:
    """Return the figures of a group's tables of means."""
    if group.protocol == "open-world":
        return (*HALVES, *OPEN_WORLD, *RIGHT_HALF)
    return columns_of(group)


def reference(rows: Rows) -> str | None:
    """Return the row that the others are compared with: unchanged RMAdapter, else the first."""
    for label, records in rows.items():
        if records[0].method.name == "rmadapter" and not records[0].variant:
            return label
    for label, records in rows.items():
        variant = records[0].variant
        if variant == "RMAdapter" or variant.endswith("(RMAdapter)"):
            return label
    return next(iter(rows), None)


def make_tables(group: Group) -> list[Table]:
    """Make all tables: the average first, then one per data set or source, paired differences,
    ranks, cost, rules."""
    parts: list[Table] = []
    if group.protocol in TRANSFER:
        for source in group.datasets:
            parts += _transfer_tables(group, source)
    else:
        if len(group.datasets) > 1:
            parts = [_average_table(group)]
        columns = _shown(group)
        for dataset in group.datasets:
            parts.append(_means(group, dataset, columns, [dataset]))
            parts += _balanced_table(group, dataset, columns)
    return [
        *parts, *_pair_tables(group), *_rank_tables(group), cost_table(group),
        *uses_tables(group),
    ]  # fmt: skip


def _means(
    group: Group, title: str, columns: Sequence[Column], datasets: Sequence[str],
    seeds: Sequence[int] | None = None, block: str | None = None, notes: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Make a table of a row per method or variant. seeds: None for each row's own. block: of the
    paper's figures."""
    rows: list[Row] = []
    block = paper.dataset_name(datasets[0]) if block is None else block
    comparable = rows_of(common_targets(group.records))
    for label, records in rows_of(group.records).items():
        selected = [record for record in records if record.task.data in datasets]
        cells = []
        for column in columns:
            source = comparable[label] if column.metric in AVERAGE else selected
            cells.append(column.cell(source, datasets, seeds))
        note = _missing_seeds(selected, columns, group.seeds) if seeds is None else ""
        rows += [Row(label, tuple(cells), note=note), *_printed_rows(selected, block, columns)]
    used = [
        record
        for record in group.records
        if record.task.data in datasets and (seeds is None or record.task.seed in seeds)
    ]
    reasons = dict.fromkeys(
        next((record.reason for record in records if record.reason), "")
        for records in rows_of(used).values()
    )
    reason = "; ".join(filter(None, reasons))
    dashes = [f"–: {reason}."] if reason else []
    footnotes = (
        MEAN_NOTE, *notes, *dashes, *departures(group), *_paper_notes(group, rows, block),
    )  # fmt: skip
    heads = (first_column(group), *(column.head for column in columns))
    name = f"{group.slug}-{'average' if seeds is not None else slug(datasets[0])}"
    rows = [*mark_best(rows), chance_row(used, columns, datasets)]
    return Table(name, title, heads, tuple(rows), facts(group, used), footnotes)


def departures(group: Group) -> list[str]:
    """Write notes on the methods of a group that are not written from their authors' code, or that
    leave out parts of it."""
    methods = {record.method.name: record.method.title for record in group.records}
    unseen, left_out = [], []
    for name, title in methods.items():
        traits = traits_of(name) if name in METHODS else Traits()
        unseen += [f"{title or name} ({traits.own_reading})"] if traits.own_reading else []
        left_out += [f"{title or name} ({traits.left_out})"] if traits.left_out else []
    notes = [f"Not written from the authors' code: {'; '.join(unseen)}."] if unseen else []
    notes += [f"Parts of the authors' code left out: {'; '.join(left_out)}."] if left_out else []
    return notes


def chance_row(
    records: Sequence[Record], columns: Sequence[Column], datasets: Sequence[str]
) -> Row:
    """Average what guesses among the classes would get."""
    guesses: dict[tuple[str, int], Record] = {}  # by data set and shots, as seeds share the classes
    for record in common_targets(records):
        scores = tuple(
            s.model_copy(update={"accuracy": s.chance, "open_world": {}, "balanced": _chance(s)})
            for s in record.scores
        )
        if scores:
            task = replace(record.task, seed=0)
            guess = record.model_copy(update={"scores": scores, "task": task})
            guesses[task.data, task.shots] = guess
    cells = (column.cell([*guesses.values()], datasets, [0]) for column in columns)
    return Row("chance", tuple(Cell(cell.value) for cell in cells), "chance")


def _chance(score: Score) -> Balanced | None:
    """Return the balanced accuracy that guesses would get, if that of the method is known."""
    rate = score.balanced
    return rate and rate.model_copy(update={"accuracy": score.chance})


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
    datasets, seeds = complete(rows_of(group.records))
    of_paper = {paper.dataset_name(d) for d in datasets} == paper.halves().keys() - {"average"}
    block = "average" if of_paper and all(map(paper.belongs, group.records)) else ""
    columns = _shown(group) if group.protocol in ("few-shot", "open-world") else AVERAGES
    title = average_title(datasets, seeds)
    return _means(group, title, columns, datasets, seeds, block, left_out(group))


def average_title(datasets: Sequence[str], seeds: Sequence[int]) -> str:
    """Title an average over data sets, or say why there is none."""
    if not seeds:
        return "No average: no data set and seed is there for every row"
    return f"Average over {counted(len(datasets), 'data set')}"


def left_out(group: Group) -> list[str]:
    """Write a note on what an average leaves out because not every row has it."""
    datasets, seeds = complete(rows_of(group.records))
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


def _transfer_tables(group: Group, source: str) -> list[Table]:
    records = [record for record in group.records if record.task.data == source]
    targets = sorted({name for record in records for name in record.targets})
    shared = common_targets(records)[0].targets
    columns = [Column(f"{source} (source)", "all", printed="imagenet")]
    columns += [Column(name, name, printed=paper.dataset_name(name)) for name in targets]
    columns.append(Column("average of the targets", "average", printed="average"))
    partial = f"The average is over the targets of all rows: {', '.join(sorted(shared))}."
    notes = [partial] if len(shared) < len(targets) else []
    means = _means(group, f"Trained on {source}", columns, [source], notes=notes)
    return [means, *_balanced_table(group, source, columns)]


def _balanced_table(group: Group, dataset: str, columns: Sequence[Column]) -> list[Table]:
    """Make a table of balanced accuracies on a data set, if the classes that it tests have unequal
    numbers of images."""
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
    notes = (BALANCED_NOTE.format(counts),)
    title = f"{dataset}, balanced accuracy"
    table = _means(group, title, balanced, [dataset], block="", notes=notes)
    return [replace(table, name=f"{table.name}-balanced")]


def _printed_rows(records: Sequence[Record], block: str, columns: Sequence[Column]) -> list[Row]:
    """Return the paper's row for these records, if it has one."""
    printed = paper.printed(records[0], block) if records else None
    if printed is None:
        return []
    name, figures = printed
    cells = tuple(Cell(figures.get(column.printed)) for column in columns)
    return [Row(f"{name}{PRINTED}", cells, "paper")]


def _paper_notes(group: Group, rows: Sequence[Row], block: str) -> list[str]:
    shown = [row.label.removesuffix(PRINTED) for row in rows if row.source == "paper"]
    if shown:
        return [PAPER_NOTE, *paper.footnotes(group.protocol, block, shown)]
    protocols = (*TRANSFER, *paper.ABLATIONS, "base-to-novel")
    in_paper = group.backbone.name in paper.BACKBONES and group.protocol in protocols
    return [NO_PAPER_NOTE] if in_paper and block else []


def _pair_tables(group: Group) -> list[Table]:
    rows = rows_of(common_targets(group.records))
    first = reference(rows)
    if first is None or len(rows) < 2 or not group.compared:
        return []
    by_column = {column: differences(rows, first, column) for column in columns_of(group)}
    lines = [
        Row(label, _pair_cells(column, pairs[label]))
        for label in rows
        for column, pairs in by_column.items()
        if label in pairs
    ]
    name, title = f"{group.slug}-pairs", f"{first} minus the others, in points"
    notes = (PAIR_NOTE, *other_images(group), *departures(group))
    return [Table(name, title, PAIR_HEADS, tuple(lines), facts(group, group.records), notes)]


def _pair_cells(column: Column, pair: Paired) -> tuple[Cell, ...]:
    tests = (None if p is None else f"{p:.3g}" for p in (pair.t, pair.holm, pair.wilcoxon))
    interval = (pair.difference, pair.low, pair.high)
    counts = (pair.sets, pair.pairs, pair.ahead, pair.behind)
    shown = (pair.could_show, pair.conclusion)
    return tuple(map(Cell, (column.head, *interval, *counts, *tests, *shown)))


def differences(rows: Rows, first: str, column: Column) -> dict[str, Paired]:
    """Compare one row to every other that it has pairs with; the differences are tested
    together."""
    pairs = {}
    for label, records in rows.items():
        if label != first:
            pair = paired(column.select(rows[first]), column.select(records), column.metric)
            if pair is not None:
                pairs[label] = pair
    return correct(pairs)


def rankings(group: Group, columns: Sequence[Column] | None = None) -> dict[Column, Ranks]:
    """Rank the rows in each figure that has enough methods and data sets. columns: of these
    figures, by default of all."""
    if not group.compared:
        return {}
    rows = rows_of(common_targets(group.records))
    rankings = {}
    for column in columns_of(group) if columns is None else columns:
        selected = {label: column.select(records) for label, records in rows.items()}
        ranks = rank_methods(selected, column.metric)
        if ranks is not None:
            rankings[column] = ranks
    return rankings


def _rank_tables(group: Group) -> list[Table]:
    first = first_column(group)
    about = facts(group, group.records)
    tables = [
        rank_table(ranks, f"{group.slug}-ranks-{slug(column.head)}", column.head, first, about)
        for column, ranks in rankings(group).items()
    ]
    notes = departures(group)
    return [replace(table, footnotes=(*table.footnotes, *notes)) for table in tables]
