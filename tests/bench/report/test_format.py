"""Oracles: the csv module, and what a reader of the table must find in it."""

from __future__ import annotations

import csv
import io
import re
import sys

import pytest

from rmadapter.bench.report.format import (
    Cell,
    Table,
    TableRow,
    mark_best,
    minus,
    to_csv,
    to_markdown,
)
from rmadapter.errors import UserError

ROWS = mark_best(
    [
        TableRow("A_1 & co", (Cell(70.123, 0.5), Cell(3.0))),
        TableRow("B|b", (Cell(70.1249), Cell(2.0))),
        TableRow("C", (Cell(99.0), Cell()), note="1 of 3 seeds"),
        TableRow("D, as printed", (Cell(80.0), Cell(1.0)), "paper"),
    ]
)
TABLE = Table("t", "A table of 5 %", ("method", "x_y", "time"), ROWS, "3 seeds.", ("A note.",))


def test_best_is_marked_among_complete_measured_rows_with_ties() -> None:
    assert [[cell.best for cell in row.cells] for row in ROWS] == [
        [True, True],  # 70.123 and 70.1249 print the same
        [True, False],
        [False, False],
        [False, False],
    ]
    assert not mark_best([TableRow("alone", (Cell(1.0),))])[0].cells[0].best


def test_numbers_have_two_decimals() -> None:
    values = {1234: "1,234", 1234.5678: "1234.57", -0.5: "−0.50", -0.001: "0.00", "x": "x"}
    assert [Cell(value).text for value in (*values, None)] == [*values.values(), "–"]
    assert Cell(70.0, 0.333).text == "70.00 ± 0.33"
    assert minus("-0") == "0"


def test_markdown_is_a_pipe_table_with_notes() -> None:
    text = to_markdown(TABLE)
    lines = [re.sub(r" +", " ", line) for line in text.splitlines()]
    assert "| A_1 & co | **70.12 ± 0.50** | **3.00** |" in lines
    assert "| B\\|b | **70.12** | 2.00 |" in lines
    assert "| C (1 of 3 seeds) | 99.00 | – |" in lines
    assert "| *D, as printed* | *80.00* | *1.00* |" in lines
    assert text.index("3 seeds.") < text.index("1. A note.")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert rows[0]["method"] == "A_1 & co"
    expected = ("70.1230", "0.5000", "")
    assert (rows[0]["x_y"], rows[0]["x_y ± 95 %"], rows[1]["x_y ± 95 %"]) == expected
    assert [row["source"] for row in rows] == ["measured", "measured", "measured", "paper"]
    assert (rows[2]["note"], rows[2]["time"]) == ("1 of 3 seeds", "")


def test_missing_pandas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[report\]'"):
        to_markdown(TABLE)


def test_a_formula_is_text_to_a_spreadsheet() -> None:
    odd = ['=HYPERLINK("http://x")', "+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1"]
    rows = tuple(TableRow(text, (Cell(text), Cell(-1.5), Cell(-7)), note=text) for text in odd)
    text = to_csv(Table("t", "", ("=method", "=a", "b", "c"), rows))
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=method", "source", "note", "'=a", "b", "c"]
    for written, line in zip(odd, lines, strict=True):
        inert = "'" + re.sub(r"\s", " ", written)
        assert line == [inert, "measured", inert, inert, "-1.5000", "-7"]
