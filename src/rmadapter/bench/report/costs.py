"""The tables of what each row of a group costs, and of what it uses beyond the shots."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rmadapter.artifacts.record import Record
from rmadapter.bench.protocols import TUNED
from rmadapter.bench.report.format import Cell, Row, Table
from rmadapter.bench.report.groups import (
    Group,
    by_size,
    comparable_costs,
    facts,
    first_column,
    machines,
    rows_of,
)
from rmadapter.methods.uses import uses_of
from rmadapter.training.traits import PUBLISHED, TRACKS, UNKNOWN, Uses

COST_NOTE = (
    "Medians over the runs, of the data sets and seeds that every row has if there are any. Memory "
    "is the peak resident memory of the process, the backbone included. Frozen activations that "
    "runs share count in the time of the run that came first."
)


USES_HEADS = (
    "track", "extra data or texts", "teacher", "test images together",
    "constants of each data set", "tuned on",
)  # fmt: skip


USES_NOTE = (
    "Methods of different tracks are not comparable. Constants are what the authors set for each "
    "data set; a row has one setting for all, unless its name says "
    f"“{PUBLISHED} for each set”. Parameters and seconds: see Cost."
)


def cost_table(group: Group) -> Table:
    used = group.records
    if group.protocol == "few-shot":
        most = max((record.task.shots for record in used), key=by_size)
        used = [record for record in used if record.task.shots == most]
    on_gpu = any(record.peak_gpu_mb is not None for record in used)
    heads = ["trained parameters", "peak memory, MB", *(["peak GPU memory, MB"] if on_gpu else [])]
    heads += ["training, s", "one step, s", "evaluation, s", "all, s", "runs"]
    lines = []
    for label, records in comparable_costs(rows_of(used)).items():
        columns: list[list[float | None]] = [[r.peak_mb for r in records]]
        columns += [[r.peak_gpu_mb for r in records]] if on_gpu else []
        columns.append([r.seconds.get("train") for r in records])
        columns.append([r.step_seconds for r in records])
        columns += [[r.seconds.get(name) for r in records] for name in ("evaluate", "total")]
        known = ([value for value in column if value is not None] for column in columns)
        medians = (Cell(median(values) if values else None) for values in known)
        lines.append(Row(label, (_parameters(records), *medians, Cell(len(records)))))
    hardware = machines(used)
    different = "Measured on different machines, so that times cannot be compared: "
    prefix = different if len(hardware) > 1 else "On "
    notes = (COST_NOTE, *([f"{prefix}{'; '.join(hardware)}."] if hardware else []))
    columns_heads = (first_column(group), *heads)
    return Table(
        f"{group.slug}-cost", "Cost", columns_heads, tuple(lines), facts(group, used), notes
    )


def _parameters(records: Sequence[Record]) -> Cell:
    numbers = sorted({record.parameters for record in records if record.parameters is not None})
    if len(numbers) > 1:
        return Cell(f"{numbers[0]:,} to {numbers[-1]:,}")
    return Cell(numbers[0] if numbers else None)


def uses_tables(group: Group) -> list[Table]:
    """Make a table of what each row uses, or none if the rows are ranked and all of one method."""
    if group.track == TRACKS[0] and len({record.method.name for record in group.records}) < 2:
        return []
    rows = tuple(
        Row(label, tuple(map(Cell, _uses_texts(records))))
        for label, records in rows_of(group.records).items()
    )
    backbone = f"{group.backbone.name} ({group.backbone.digest[:8]})."
    heads = (first_column(group), *USES_HEADS)
    return [Table(f"{group.slug}-rules", "Rules", heads, rows, backbone, (USES_NOTE,))]


def row_uses(records: Sequence[Record]) -> Uses | None:
    """Return what the records of one row use, including a search for settings; None if an outside
    method does not say."""
    method = records[0].method
    uses = uses_of(method.name, method.settings, method.uses)
    _, searched, trials = records[0].variant.partition(f", {TUNED} ")
    if uses is None or not searched:
        return uses
    return uses.model_copy(update={"tuned": f"{uses.tuned}; then {trials} on folds of its shots"})


def _uses_texts(records: Sequence[Record]) -> list[str | None]:
    uses = row_uses(records)
    if uses is None:
        return [UNKNOWN, *[None] * (len(USES_HEADS) - 1)]
    in_use = "in use" if PUBLISHED in records[0].variant else "not in use"
    constants = f"{in_use}: {uses.constants}" if uses.constants else ""
    texts = (uses.track, uses.extra, uses.teacher, uses.test_time, constants, uses.tuned)
    return [text or None for text in texts]
