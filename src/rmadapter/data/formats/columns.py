"""Reads tables of images, as text or parquet; columns are found by usual names or as the user says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rmadapter.errors import UserError, nearest, quoted
from rmadapter.support.files import read_text

USUAL = {  # if a table has several of them, the first is used
    "image": ("path", "image", "file", "filename", "file_name"),
    "label": ("label", "class", "category"),
    "label_list": ("labels",),  # replaces "label" in readers that accept it
    "split": ("split", "subset"),
    "group": ("group",),
    "name": ("name",),
    "given": ("given",),
    "suggested": ("suggested",),
    "decision": ("decision",),
}
SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
DELIMITERS = ",;\t"  # of equally good ones, the first is used
BETWEEN = "\x1f"  # joins the items of a list, as JSON lines and parquet have them

# the table's columns -> {"image": one of them, ...}
Choice: TypeAlias = "Callable[[Sequence[str]], dict[str, str]]"


def read_rows(
    path: Path,
    needed: Sequence[str],
    also: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of each row, for messages, and its cells, stripped, by kind.

    needed, also: kinds (keys of USUAL); those of `also` that the table lacks are left out. named:
    kind -> column, "" for the usual names; None if the user cannot name any. Raises UserError for a
    table that is unreadable, lacks a column or has no rows.
    """
    if unknown := next((what for what in named or () if what not in USUAL), ""):
        raise UserError(f"columns: unknown kind {quoted(unknown)}{nearest(unknown, USUAL)}")

    where = ""
    reader = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _text)
    for where, cells in reader(
        path, lambda there: choose_columns(path, there, needed, also, named)
    ):
        if packed := [what for what, cell in cells.items() if isinstance(cell, (bytes, dict))]:
            raise UserError(
                f"{path}, {where}: the {packed[0]} is data, not text; `datasets` can save images in tables"
            )
        yield f"{path}, {where}", {what: as_text(cell) for what, cell in cells.items()}
    if not where:
        raise UserError(f"{path}: has no rows of data")


def frame_cells(frame: Any, chosen: Mapping[str, str]) -> dict[str, list[Any]]:
    """Kind -> cells of the chosen column of a DataFrame; column names may be of any type, missing
    cells are None."""
    names = [*map(str, frame.columns)]
    columns = {what: frame.iloc[:, names.index(name)] for what, name in chosen.items()}
    return {
        what: [
            None if gone else cell
            for cell, gone in zip(column.tolist(), column.isna(), strict=True)
        ]
        for what, column in columns.items()
    }


def choose_columns(
    table: Path | str, there: Sequence[str], needed: Sequence[str], also: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Kind -> its column among `there`; other arguments as in `read_rows`. Raises UserError, naming
    the table."""
    plural = "label_list" in also and there and _column(table, "label_list", there, named, False)
    must = {*needed} - ({"label"} if plural else set())
    columns = {what: _column(table, what, there, named, what in must) for what in (*needed, *also)}
    return {what: column for what, column in columns.items() if column is not None}


def as_text(value: Any) -> str:
    """The cell as stripped text, "" for a missing one; the items of a list or array joined with
    BETWEEN."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return BETWEEN.join(map(as_text, value))
    missing = value is None or value != value  # NaN, as JSON lines of pandas have it
    return "" if missing else str(value).strip()


def _column(
    path: Path | str, what: str, there: Sequence[str], named: Mapping[str, str] | None, needed: bool
) -> str | None:
    """The table's column that is named, or else has a usual name in any case; None if it lacks one
    not `needed`."""
    if not there:
        raise UserError(f"{path}: the first line is empty; write the column names there")
    wanted = (named or {}).get(what, "")
    plain = {column.strip().casefold(): column for column in reversed(there)}
    usual = [plain[name] for name in USUAL[what] if name in plain and not wanted]
    found = [wanted] if wanted and wanted in there else usual  # a column without a name is nobody's
    if found and there.count(found[0]) > 1:
        raise UserError(f"{path}: two columns are called {quoted(found[0])}: rename one")
    if found or not (wanted or needed):
        return found[0] if found else None
    called = quoted(wanted) if wanted else " or ".join(USUAL[what])
    hint = (
        f"; name one with --{what}-column (columns={{'{what}': ...}})"
        if named is not None and not wanted
        else ""
    )
    raise UserError(
        f"{path}: none of its columns ({', '.join(there):.200}) is called {called}{hint}"
    )


def _text(path: Path, choose: Choice) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = "a readable CSV file in UTF-8"
    text = read_text(path, kind)
    try:
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True
        )
        columns = choose(reader.fieldnames or [])
        for row in reader:
            if None in row:
                raise UserError(
                    f"{path}, line {reader.line_num}: more cells than columns; quote cells with commas"
                )
            if not any(cell and cell.strip() for cell in row.values()):
                continue  # spreadsheets write such rows below the last one
            yield f"line {reader.line_num}", {what: row[column] for what, column in columns.items()}
    except csv.Error as error:
        raise UserError(f"{path}: not {kind} ({error})") from None


def _json_lines(path: Path, choose: Choice) -> Iterator[tuple[str, dict[str, Any]]]:
    """One object per line; any may have columns that others lack."""
    kind, rows = "readable JSON lines", {}
    for number, line in enumerate(read_text(path, kind).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not {kind} ({type(error).__name__})"
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f'{path}, line {number}: {quoted(row)}: write {{"column": value, ...}}'
                )
            rows[number] = row
    columns = (
        choose([*dict.fromkeys(name for row in rows.values() for name in row)]) if rows else {}
    )
    for number, row in rows.items():
        yield f"line {number}", {what: row.get(column) for what, column in columns.items()}


def header(path: Path) -> list[str]:
    """Column names of a table. Raises UserError if it is unreadable."""
    found: list[str] = []

    def keep(there: Sequence[str]) -> dict[str, str]:
        found.extend(there)
        return {}

    reader = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _text)
    next(iter(reader(path, keep)), None)
    return found


def _delimiter(text: str) -> str:
    """The delimiter that gives the most columns in the first line; spreadsheets write ; if numbers
    have a comma."""
    line = next(iter(text[:100_000].splitlines()), "")
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))


def _parquet(path: Path, choose: Choice) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = pyarrow("parquet", str(path))
    try:
        columns = choose(parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=[*columns.values()])
        cells = [table.column(column).to_pylist() for column in columns.values()]
    except UserError:
        raise
    except Exception as error:  # on broken files pyarrow raises nearly anything
        raise UserError(f"{path}: not a readable parquet file ({type(error).__name__})") from None
    for number, row in enumerate(zip(*cells, strict=True), 1):
        yield f"row {number}", dict(zip(columns, row, strict=True))


def pyarrow(module: str, where: str) -> Any:
    """Import a module of pyarrow. Raises UserError, naming `where`, if it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{module}")
    except ImportError:
        raise UserError(
            f"{where}: reading parquet needs pyarrow; `pip install pyarrow`, or use CSV"
        ) from None
