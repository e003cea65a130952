"""A table as a value, and its Markdown and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

from rmadapter.errors import UserError
from rmadapter.support.files import csv_text, inert

NO_FIGURE = "–"


@dataclass(frozen=True)
class Cell:
    """A figure or a text.

    Attributes:
        value: The figure or the text; None if there is neither.
        interval: Half the width of its 95 % interval; None if there is none to show.
        best: Whether it is the best of its column.
    """

    value: float | str | None = None
    interval: float | None = None
    best: bool = False

    @property
    def number(self) -> float:
        """The figure; NaN if there is none."""
        return float(self.value) if isinstance(self.value, (int, float)) else math.nan

    @property
    def text(self) -> str:
        """Two decimals; whole numbers with thousands separators."""
        if self.value is None:
            return NO_FIGURE
        if isinstance(self.value, str):
            return self.value
        shown = f"{self.value:,}" if isinstance(self.value, int) else minus(f"{self.value:.2f}")
        return shown if self.interval is None else f"{shown} ± {self.interval:.2f}"


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
        label: What stands in the first column.
        cells: The others.
        source: Where its figures are from.
        note: What is incomplete about it.
    """

    label: str
    cells: tuple[Cell, ...]
    source: Literal["measured", "paper", "chance"] = "measured"
    note: str = ""

    @property
    def title(self) -> str:
        """The label with the note."""
        return f"{self.label} ({self.note})" if self.note else self.label


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of its file.
        title: Title for readers.
        columns: Headings; the first is that of the row labels.
        rows: The rows.
        facts: What is needed to repeat it.
        footnotes: Notes below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    facts: str = ""
    footnotes: tuple[str, ...] = ()


def mark_best(rows: Sequence[TableRow]) -> tuple[TableRow, ...]:
    """Mark the largest measured figure of each column, and those that print the same; none in a
    column of one.

    Incomplete rows, the paper's and that of chance are not compared: they were not measured on the
    same runs.
    """
    compared = [row for row in rows if row.source == "measured" and not row.note]
    best: list[float | None] = []
    for cells in zip(*(row.cells for row in compared), strict=True):
        values = [round(cell.number, 2) for cell in cells if not math.isnan(cell.number)]
        best.append(max(values) if len(values) > 1 else None)

    def mark(row: TableRow) -> TableRow:
        pairs = zip(row.cells, best, strict=True)
        cells = (replace(cell, best=round(cell.number, 2) == top) for cell, top in pairs)
        return replace(row, cells=tuple(cells))

    return tuple(mark(row) if row in compared else row for row in rows)


def minus(text: str) -> str:
    """Return the number with a real minus sign, and no -0.00."""
    return re.sub(r"^-(?=0(\.0+)?$)", "", text).replace("-", "−")


def setting_text(value: object) -> str:
    """Write the value of a setting; texts of a list in quotation marks."""
    return ", ".join(f"“{v}”" for v in value) if isinstance(value, (list, tuple)) else str(value)


def to_markdown(table: Table) -> str:
    """Write a pipe table with its title, facts and footnotes: the best in bold, the paper's rows in
    italics. Raises UserError without pandas."""

    def escape(text: str) -> str:
        return text.replace("|", "\\|")

    def texts(row: TableRow) -> list[str]:
        style = "{}" if row.source == "measured" else "*{}*"
        cells = [("**{}**" if one.best else style).format(escape(one.text)) for one in row.cells]
        return [style.format(escape(row.title)), *cells]

    pandas = import_pandas("tables as Markdown")
    heads = [escape(head) for head in table.columns]
    frame = pandas.DataFrame([texts(row) for row in table.rows], columns=heads)
    aligned = ("left", *["right"] * (len(table.columns) - 1))
    body: str = frame.to_markdown(index=False, disable_numparse=True, colalign=aligned)
    notes = [f"{number}. {note}" for number, note in enumerate(table.footnotes, 1)]
    parts = [f"### {table.title}", body, table.facts, "\n".join(notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_csv(table: Table) -> str:
    """Write one line per row; a column with intervals is followed by one with half their widths."""
    first, *heads = map(inert, table.columns)
    columns: list[list[object]] = [
        [first, *(inert(row.label) for row in table.rows)],
        ["source", *(row.source for row in table.rows)],
        ["note", *(inert(row.note) for row in table.rows)],
    ]
    for place, head in enumerate(heads):
        cells = [row.cells[place] for row in table.rows]
        columns.append([head, *(_csv_value(cell.value) for cell in cells)])
        intervals = [_csv_value(cell.interval) for cell in cells]
        if any(intervals):
            columns.append([f"{head} ± 95 %", *intervals])
    header, *lines = zip(*columns, strict=True)
    return csv_text(header, lines)


def _csv_value(value: float | str | None) -> int | str | None:
    if isinstance(value, str):
        return inert(value)
    return f"{value:.4f}" if isinstance(value, float) else value


def import_pandas(what: str) -> ModuleType:
    """Import pandas, which tables and frames need. Raises UserError without the extra `report`.

    Args:
        what: What needs it, for the message.
    """
    try:
        import pandas
        import tabulate  # noqa: F401
    except ImportError:
        raise UserError(f"{what} need pandas: pip install 'rmadapter[report]'") from None
    module: ModuleType = pandas
    return module
