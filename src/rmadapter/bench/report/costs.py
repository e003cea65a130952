"""The tables of what each row of a group costs, and of what it uses beyond the shots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from statistics import median
from typing import TypeAlias

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import Cell, Table, TableRow
from rmadapter.bench.report.groups import (
    Group,
    facts,
    first_column,
    machines,
)
from rmadapter.training.traits import PUBLISHED, UNKNOWN, Uses

COST_NOTE = (
    "Medians over the runs, of the data sets and seeds that every row has if there are any. Memory "
    "is the peak resident memory of the process, the backbone included. Frozen activations that "
    "runs share count in the time of the run that came first."
)
Figure: TypeAlias = "Callable[[Record], float | None]"
GPU_MEMORY: Figure = attrgetter("peak_gpu_mb")
COSTS: dict[str, Figure] = {
    "peak memory, MB": attrgetter("peak_mb"),
    "peak GPU memory, MB": GPU_MEMORY,
    "training, s": lambda record: record.seconds.get("train"),
    "one step, s": attrgetter("step_seconds"),
    "evaluation, s": lambda record: record.seconds.get("evaluate"),
    "all, s": lambda record: record.seconds.get("total"),
}
USES_HEADS = (
    "track",
    "extra data or texts",
    "teacher",
    "test images together",
    "constants of each data set",
    "tuned on",
)
USES_NOTE = (
    "Methods of different tracks are not comparable. Constants are what the authors set for each "
    "data set; a row has one setting for all, unless its name says "
    f"“{PUBLISHED} for each set”. Parameters and seconds: see Cost."
)


def cost_table(group: Group) -> Table:
    """Make a table of what each row costs; of few-shot, with the most shots."""
    used = group.records
    if group.protocol == "few-shot":
        used = group.columns[-1].select(used)
    on_gpu = any(GPU_MEMORY(record) is not None for record in used)
    figures = {head: of for head, of in COSTS.items() if on_gpu or of is not GPU_MEMORY}
    rows = []
    for label, records in replace(group, records=used).costs.items():
        cells = (_median(map(of, records)) for of in figures.values())
        rows.append(TableRow(label, (_parameters(records), *cells, Cell(len(records)))))
    hardware = machines(used)
    different = "Measured on different machines, so that times cannot be compared: "
    prefix = different if len(hardware) > 1 else "On "
    return Table(
        f"{group.slug}-cost",
        "Cost",
        (first_column(group), "trained parameters", *figures, "runs"),
        tuple(rows),
        facts(group, used),
        (COST_NOTE, *([f"{prefix}{'; '.join(hardware)}."] if hardware else [])),
    )


def _median(figures: Iterable[float | None]) -> Cell:
    known = [figure for figure in figures if figure is not None]
    return Cell(median(known) if known else None)


def _parameters(records: Sequence[Record]) -> Cell:
    numbers = sorted({record.parameters for record in records if record.parameters is not None})
    if len(numbers) > 1:
        return Cell(f"{numbers[0]:,} to {numbers[-1]:,}")
    return Cell(numbers[0] if numbers else None)


def uses_tables(group: Group) -> list[Table]:
    """Make a table of what each row uses, or none if the rows are ranked and all of one method."""
    if group.ranked and len({record.method.name for record in group.records}) < 2:
        return []
    rows = tuple(
        TableRow(label, tuple(map(Cell, _uses_texts(group.uses(label), records[0].variant))))
        for label, records in group.rows.items()
    )
    backbone = f"{group.backbone.name} ({group.backbone.digest[:8]})."
    heads = (first_column(group), *USES_HEADS)
    return [Table(f"{group.slug}-rules", "Rules", heads, rows, backbone, (USES_NOTE,))]


def _uses_texts(uses: Uses | None, variant: str) -> list[str | None]:
    if uses is None:
        return [UNKNOWN, *[None] * (len(USES_HEADS) - 1)]
    in_use = "in use" if PUBLISHED in variant else "not in use"
    constants = f"{in_use}: {uses.constants}" if uses.constants else ""
    texts = (uses.track, uses.extra, uses.teacher, uses.test_time, constants, uses.tuned)
    return [text or None for text in texts]
