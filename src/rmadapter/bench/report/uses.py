"""A table of what each row of a group uses beyond the shots, by its records and, for our own
methods, by `uses`."""

from __future__ import annotations

from collections.abc import Sequence

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import Cell, Row, Table
from rmadapter.bench.report.groups import Group, entries
from rmadapter.methods.uses import PUBLISHED, TRACKS, TUNED, UNKNOWN, Uses, uses_of

HEADS = (
    "track",
    "extra data or texts",
    "teacher",
    "test images together",
    "constants of each data set",
    "tuned on",
)
NOTE = (
    "Methods of different tracks are not comparable. Constants are what the authors set for each data set; a row has "
    f"one setting for all, unless its name says “{PUBLISHED} for each set”. Parameters and seconds: see Cost."
)


def uses(records: Sequence[Record]) -> Uses | None:
    """What the records of one row use, including a search for settings; None if an outside method
    does not say."""
    method = records[0].method
    found = uses_of(method.name, method.settings, method.uses)
    _, searched, trials = records[0].variant.partition(f", {TUNED} ")
    if found is None or not searched:
        return found
    return found.model_copy(update={"tuned": f"{found.tuned}; then {trials} on folds of its shots"})


def to_tables(group: Group, first: str) -> list[Table]:
    """One table, or none if the rows are ranked and all of one method. first: heading of the column
    of rows."""
    if group.track == TRACKS[0] and len({record.method.name for record in group.records}) < 2:
        return []
    rows = tuple(
        Row(label, tuple(map(Cell, _cells(records))))
        for label, records in entries(group.records).items()
    )
    backbone = f"{group.backbone.name} ({group.backbone.digest[:8]})."
    return [Table(f"{group.slug}-rules", "Rules", (first, *HEADS), rows, backbone, (NOTE,))]


def _cells(records: Sequence[Record]) -> tuple[str | None, ...]:
    found = uses(records)
    if found is None:
        return (UNKNOWN, *[None] * (len(HEADS) - 1))
    own = bool(records[0].variant) and PUBLISHED in records[0].variant
    constants = found.constants and (f"{'in use' if own else 'not in use'}: {found.constants}")
    texts = (found.track, found.extra, found.teacher, found.test_time, constants, found.tuned)
    return tuple(text or None for text in texts)
