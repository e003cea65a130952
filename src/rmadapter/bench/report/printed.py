"""The tables of a paper, whose figures stand beside ours in a report.

An entry point of `rmadapter.report_tables` names them; without one, nothing stands beside ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TypedDict

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.format import TableRow
from rmadapter.bench.report.groups import Column, Group


class Check(TypedDict):
    """A printed figure beside ours; what is missing is None.

    Attributes:
        table: Table of the paper.
        row: Row, as printed.
        figure: What it is.
        paper: The printed figure.
        ours: Mean of our runs.
        difference: Ours minus the paper's, in points.
        within: Whether that is within the tolerance.
        status: "measured", "n of m seeds" or "not measured".
    """

    table: str
    row: str
    figure: str
    paper: float
    ours: float | None
    difference: float | None
    within: bool | None
    status: str


class PrintedTables:
    """No tables. A package that has some overrides the methods.

    A block is what a table of means is about: a data set, "average" for the paper's own average, or
    "" for neither.

    Attributes:
        tolerance: Points within which a figure counts as reproduced.
    """

    tolerance = 1.0

    def is_average(self, group: Group, datasets: Sequence[str]) -> bool:
        """Return whether an average over these data sets is one of the paper's."""
        return False

    def rows(self, record: Record, block: str, columns: Sequence[Column]) -> list[TableRow]:
        """Return the paper's rows about the record's method, with a cell for each column."""
        return []

    def notes(self, group: Group, block: str, rows: Sequence[TableRow]) -> list[str]:
        """Write the footnotes about the paper of a table with these rows."""
        return []

    def check(self, records: Sequence[Record], tolerance: float) -> list[Check]:
        """Compare each printed figure with the mean of ours."""
        return []


@cache
def printed_tables() -> PrintedTables:
    """Return the tables of the installed paper."""
    found = next(iter(entry_points(group="rmadapter.report_tables")), None)
    tables: PrintedTables = found.load() if found else PrintedTables()
    return tables
