"""A table as a plain record, and the same record as Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A figure with the half width of its 95 % interval (None: there is none to show), or a text."""

    value: float | str | None = None
    interval: float | None = None
    best: bool = False

    @property
    def number(self) -> float:
        """The figure; NaN where there is none."""
        return float(self.value) if isinstance(self.value, (int, float)) else math.nan

    @property
    def text(self) -> str:
        """Two decimals; whole numbers with their thousands apart."""
        if self.value is None:
            return NOTHING
        if isinstance(self.value, str):
            return self.value
        shown = f"{self.value:,}" if isinstance(self.value, int) else minus(f"{self.value:.2f}")
        return shown if self.interval is None else f"{shown} ± {self.interval:.2f}"


@dataclass(frozen=True)
class Row:
    """paper: the figures are printed ones, not measured here. note: what is incomplete about the row."""

    label: str
    cells: tuple[Cell, ...]
    paper: bool = False
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.label} ({self.note})" if self.note else self.label


@dataclass(frozen=True)
class Table:
    """name: of its files and anchors. columns: the first heads the labels. facts: what it takes to repeat it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    facts: str = ""
    footnotes: tuple[str, ...] = field(default=())


def mark_best(rows: Sequence[Row], order: Sequence[int]) -> tuple[Row, ...]:
    """The best measured value of each column marked, and those that print the same; none in a column of one value.

    order: per column, 1 where more is better, -1 where less is, 0 where nothing is marked. Incomplete rows and the
    paper's take no part: they were not measured on the same runs.
    """
    marked = list(rows)
    for column, sign in enumerate(order):
        values = {
            index: round(value, 2)
            for index, row in enumerate(rows)
            if not row.paper and not row.note and isinstance(value := row.cells[column].value, (int, float))
        }
        if sign and len(values) > 1:
            best = max(values.values(), key=lambda value: sign * value)
            for index in (i for i, value in values.items() if value == best):
                cells = list(marked[index].cells)
                cells[column] = replace(cells[column], best=True)
                marked[index] = replace(marked[index], cells=tuple(cells))
    return tuple(marked)


def minus(text: str) -> str:
    """The number with a real minus sign, and no -0.00."""
    return re.sub(r"^-(?=0(\.0+)?$)", "", text).replace("-", "−")


def to_markdown(table: Table) -> str:
    """A pipe table with its title, facts and footnotes."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = [line(table.columns), "|---|" + "---:|" * (len(table.columns) - 1)]
    body = []
    for row in table.rows:
        cells = [f"**{c.text}**" if c.best else f"*{c.text}*" if row.paper else c.text for c in row.cells]
        body.append(line([f"*{row.title}*" if row.paper else row.title, *cells]))
    notes = [f"{number}. {note}" for number, note in enumerate(table.footnotes, 1)]
    parts = [f"### {table.title}", "\n".join([*head, *body]), table.facts, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


_TEX = {character: f"\\{character}" for character in "&%$#_{}"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\ldots{}"}
_TEX |= {"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "→": r"$\to$", "<": "$<$", ">": "$>$", "·": r"$\cdot$"}


def tex(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(_TEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """A table float; it needs the package booktabs."""
    body = []
    for row in table.rows:
        cells = [rf"\textbf{{{tex(c.text)}}}" if c.best else tex(c.text) for c in row.cells]
        label = rf"\textit{{{tex(row.title)}}}" if row.paper else tex(row.title)
        body.append(" & ".join([label, *cells]) + r" \\")
    caption = ". ".join([table.title, *([table.facts.rstrip(".")] if table.facts else [])]) + "."
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{tex(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        " & ".join(map(tex, table.columns)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip\footnotesize {tex(note)}" for note in table.footnotes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line per row; a column that has intervals is followed by one with their half widths."""
    wide = [any(row.cells[i].interval is not None for row in table.rows) for i in range(len(table.columns) - 1)]
    head = [table.columns[0], "source", "note"]
    for name, has in zip(table.columns[1:], wide, strict=True):
        head += [name, f"{name} ± 95 %"] if has else [name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        line = [row.label, "paper" if row.paper else "measured", row.note]
        for cell, has in zip(row.cells, wide, strict=True):
            line.append(_plain(cell.value))
            line += [_plain(cell.interval)] if has else []
        writer.writerow(line)
    return out.getvalue()


def _plain(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
