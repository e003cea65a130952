"""Tables of images, as text or parquet; columns have usual names or are named by the user."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from rmadapter.data.budget import TEXT_BYTES, Budget
from rmadapter.data.formats.base import (
    OF_LIBRARIES,
    Format,
    Inputs,
    Listing,
    ReadOptions,
    Row,
    Rows,
    listed_image,
    parsing,
)
from rmadapter.data.formats.columnar import cells_of, parquet_batches, pyarrow, text_columns
from rmadapter.data.names import OTHER_SPLITS, SPLITS, listed_label, only_label
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.support.files import (
    JsonObject,
    csv_text,
    inert_path,
    json_memory,
    path_from,
    read_text,
    write_text,
)

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
USUAL_NAMES = {  # of columns; if a table has several of them, the first is used
    "image": ("path", "image", "file", "filename", "file_name"),
    "label": ("label", "class", "category"),
    "label_list": ("labels",),  # replaces "label" in readers that accept it
    "split": ("split", "subset"),
    "group": ("group",),
    "name": ("name",),
    "parent": ("parent",),
    "grandparent": ("grandparent",),
    "given": ("given",),
    "suggested": ("suggested",),
    "decision": ("decision",),
}
LABELLED = ("image", "label")  # kinds of columns that a table of labelled images has,
LABELLED_OPTIONAL = ("label_list", "split", "group")  # and those that it may have
DELIMITERS = ",;\t"  # of equally good ones, the first is used
NO_SPLITS = "none"  # in the place of a column of splits: all rows are one set
ITEM_SEPARATOR = "\x1f"  # joins the items of a list, as JSON lines and parquet have them

# the table's columns -> kind -> column to read, and columns to read as long as they may hold splits
Choice: TypeAlias = "Callable[[Sequence[str]], tuple[Mapping[str, str], Sequence[str]]]"
Cells: TypeAlias = "Iterator[tuple[str, JsonObject]]"  # place of a row, and its cells


def detects(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read(path: Path, options: ReadOptions) -> Listing:
    """List the images of a table. Raises UserError as `scan_table`."""
    splits = scan_table(path, options.outside, options.columns, options.budget)
    return Listing(path.parent, splits, Counter())


def list_images(path: Path, options: ReadOptions) -> Inputs:
    """List the images of a table, labelled or not. Raises UserError as `read_rows`."""
    named = {"image": (options.columns or {}).get("image", "")}
    rows = read_rows(path, ["image"], named=named, budget=options.budget)
    home = path.parent
    return Inputs([listed_image(home, at, cells["image"], options.outside) for at, cells in rows])


def scan_table(
    path: Path,
    outside: bool = False,
    columns: Mapping[str, str] | None = None,
    budget: Budget | None = None,
) -> dict[str, Rows]:
    """Return split -> rows in the order of the table, on which draws depend; {"all": ...} without a
    split column.

    Args:
        path: The table.
        outside: Whether images may be outside its folder.
        columns: As `named` of `read_rows`.
        budget: As for `read_rows`.

    Raises:
        UserError: As for `read_rows`, `listed_image` and `labelled_cells`, and for an empty or very
            long label.
    """
    splits: dict[str, Rows] = {}
    images: dict[str, Path] = {}  # many rows may name one image
    for where, cells in read_rows(path, LABELLED, LABELLED_OPTIONAL, columns, budget):
        name = cells["image"]
        if name not in images:
            images[name] = listed_image(path.parent, where, name, outside)
        label, split, group = labelled_cells(cells, where)
        if label is None:
            raise UserError(f"{where}: the label is empty")
        listed_label(label, where)
        splits.setdefault(split, []).append(Row(label, images[name], group))
    return splits


class LabelledCells(NamedTuple):
    """What a row says about its image.

    Attributes:
        label: Its label; None for none.
        split: Its split; "all" without a column.
        group: Its group.
    """

    label: str | None
    split: str
    group: str


def labelled_cells(cells: Mapping[str, object], where: str, part: str = "") -> LabelledCells:
    """Return what a row says about its image.

    Args:
        cells: Kind -> cell, of `LABELLED` and `LABELLED_OPTIONAL`.
        where: Place of the row, for messages.
        part: Name of the rows among which it is, which may be that of a split.

    Raises:
        UserError: Several labels, or a split other than train, val and test.
    """
    label = only_label(_labels(cells), where)
    own = as_text(cells.get("split"))
    split = SPLITS.get((own or part).casefold(), "")
    if not split and "split" in cells:
        raise UserError(f"{where}: split is {quoted(own)}: write train, val or test")
    return LabelledCells(label, split or "all", as_text(cells.get("group")))


def _labels(cells: Mapping[str, object]) -> list[str]:
    """Return the labels of a row: the items of a list; in a column called `labels`, also the parts
    between ; or |."""
    if "label" in cells:
        text = as_text(cells["label"])
    else:
        text = as_text(cells["label_list"])
        text = text.replace(";", ITEM_SEPARATOR).replace("|", ITEM_SEPARATOR)
    return [label for label in map(str.strip, text.split(ITEM_SEPARATOR)) if label]


def read_rows(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    budget: Budget | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of each row of a file, for messages, and its cells, stripped, by kind.

    Args:
        path: The file.
        needed: Kinds of columns (keys of USUAL_NAMES).
        optional: Kinds of columns that are left out if the table lacks them.
        named: Kind -> column, "" for the usual names, `NO_SPLITS`; None if the user cannot name
            any.
        budget: What reading may still take; by default, one of its own.

    Raises:
        UserError: The table is unreadable or too large, has no rows, and as for `chosen_cells`.
    """
    where = ""
    reader = _reader(path, budget or Budget())
    for where, cells in chosen_cells(str(path), reader, needed, optional, named):
        for kind, cell in cells.items():
            if isinstance(cell, (bytes, dict)):
                raise UserError(
                    f"{where}: the {kind} is data, not text; `datasets` can save images in tables"
                )
        yield where, {kind: as_text(cell) for kind, cell in cells.items()}
    if not where:
        raise UserError(f"{path}: has no rows of data")


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the cells, stripped, of some columns of a file. Raises UserError as `read_rows`."""

    def choose(known: Sequence[str]) -> tuple[Mapping[str, str], Sequence[str]]:
        for column in columns:
            if column not in known:
                raise UserError(f"{path}: has no column {quoted(column)}")
        return dict(zip(columns, columns, strict=True)), []

    for _, row in _reader(path, Budget())(choose):
        yield {column: as_text(row.get(column)) for column in columns}


def chosen_cells(
    table: str,
    reader: Callable[[Choice], Cells],
    needed: Sequence[str],
    optional: Sequence[str],
    named: Mapping[str, str] | None,
) -> Cells:
    """Yield the place of each row of any table, for messages, and its cells by kind.

    Args:
        table: Name of the table, for messages.
        reader: Yields the place of each row and its cells by column, once it has passed the names
            of all columns to the function that it gets.
        needed: As for `read_rows`.
        optional: As for `read_rows`.
        named: As for `read_rows`.

    Raises:
        UserError: A column is missing, or one that is not read holds the splits.
    """
    unknown = next((kind for kind in named or () if kind not in USUAL_NAMES), "")
    if unknown:
        hint = did_you_mean(unknown, USUAL_NAMES)
        raise UserError(f"columns: unknown kind {quoted(unknown)}{hint}")
    chosen: dict[str, str] = {}
    unread = Unread(())

    def choose(columns: Sequence[str]) -> tuple[Mapping[str, str], Sequence[str]]:
        nonlocal chosen, unread
        chosen = choose_columns(table, columns, needed, optional, named)
        # splits were chosen, are not wanted, or there are none, as the user says
        settled = "split" in chosen or (named or {}).get("split") == NO_SPLITS
        if "split" in optional and not settled:
            read, counts = {*chosen.values()}, Counter(columns)
            unread = Unread(name for name in columns if counts[name] == 1 and name not in read)
        return chosen, unread.columns

    for where, row in reader(choose):
        for column in unread.columns:
            unread.see(column, row.get(column))
        yield f"{table}, {where}", {kind: row.get(column) for kind, column in chosen.items()}
    unread.refuse(table)


class Unread:
    """Columns of a table that are not read, watched for one that holds the splits under a name that
    is not usual: otherwise its test images would be trained on."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._splits: dict[str, set[str]] = {column: set() for column in columns}

    @property
    def columns(self) -> list[str]:
        """The columns that may hold splits, by the cells seen so far."""
        return [*self._splits]

    def see(self, column: str, cell: object) -> bool:
        """Take a cell of one of `columns`; return whether the column may still hold splits."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return True
        text = cell.strip().casefold() if isinstance(cell, str) else "no split"
        if text in SPLITS or text in OTHER_SPLITS:
            self._splits[column].add(SPLITS.get(text, text))
        elif text:
            del self._splits[column]
        return column in self._splits

    def refuse(self, table: str) -> None:
        """Raise UserError for a column whose cells are the names of several splits, or empty."""
        for column, splits in self._splits.items():
            if len(splits) > 1:
                raise UserError(
                    f"{table}: the column {quoted(column)} looks like splits: call it split, or "
                    f"give --split-column {column:.80} (columns={{'split': {quoted(column)}}}); "
                    f"--split-column {NO_SPLITS} takes all rows as one set"
                )


def header(path: Path) -> list[str]:
    """Return the column names of a table. Raises UserError if it is unreadable."""
    names: list[str] = []

    def keep(columns: Sequence[str]) -> tuple[Mapping[str, str], Sequence[str]]:
        names.extend(columns)
        return {}, []

    next(_reader(path, Budget())(keep), None)
    return names


def choose_columns(
    table: str,
    columns: Sequence[str],
    needed: Sequence[str],
    optional: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return kind -> its column; arguments as for `chosen_cells`. Raises UserError if it lacks
    one."""
    if not columns:
        raise UserError(f"{table}: the first line is empty; write the column names there")
    lists = "label_list" in optional and _column(table, "label_list", columns, named, False)
    must = {*needed} - ({"label"} if lists else set())
    chosen = {}
    for kind in (*needed, *optional):
        column = _column(table, kind, columns, named, kind in must)
        if column is not None:
            chosen[kind] = column
    return chosen


def as_text(value: object) -> str:
    """Return the cell as stripped text, "" for a missing one; the items of a list or array joined
    with ITEM_SEPARATOR."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return ITEM_SEPARATOR.join(map(as_text, value))
    missing = value is None or value != value  # NaN, as JSON lines of pandas have it
    return "" if missing else str(value).strip()


def _column(
    table: str, kind: str, columns: Sequence[str], named: Mapping[str, str] | None, needed: bool
) -> str | None:
    """Return the column that is named, or else has a usual name in any case; None if there is none
    and it is not `needed`."""
    wanted = (named or {}).get(kind, "")
    if kind == "split" and wanted == NO_SPLITS:
        return None
    if wanted:
        matches = [wanted] if wanted in columns else []
    else:
        plain = {column.strip().casefold(): column for column in reversed(columns)}
        matches = [plain[name] for name in USUAL_NAMES[kind] if name in plain]
    if matches and columns.count(matches[0]) > 1:
        raise UserError(f"{table}: two columns are called {quoted(matches[0])}: rename one")
    if matches:
        return matches[0]
    if not (wanted or needed):
        return None
    called = quoted(wanted) if wanted else " or ".join(USUAL_NAMES[kind])
    hint = ""
    if named is not None and not wanted:
        hint = f"; name one with --{kind}-column (columns={{'{kind}': ...}})"
    raise UserError(
        f"{table}: none of its columns ({', '.join(columns):.200}) is called {called}{hint}"
    )


# Readers


def _reader(path: Path, budget: Budget) -> Callable[[Choice], Cells]:
    read = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _text)
    return partial(read, path, budget)


def _text(path: Path, budget: Budget, choose: Choice) -> Cells:
    kind = "a readable CSV file in UTF-8"
    text = read_text(path, kind, errors="surrogateescape")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not {kind}; save it as CSV UTF-8, which spreadsheets offer "
            "beside CSV"
        ) from None
    delimiter = _delimiter(text)
    budget.take("memory", 2 * len(text) + TEXT_BYTES * text.count(delimiter), path)
    budget.expect("rows", text.count("\n"), path)
    content = io.BytesIO(text.encode())
    del text  # unlike this, a StringIO would take four bytes for each character
    lines = io.TextIOWrapper(content, "utf-8", newline="")
    try:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        choose(reader.fieldnames or [])
        for row in reader:
            budget.take("rows", 1, path)
            where = f"line {reader.line_num}"
            if None in row:
                raise UserError(
                    f"{path}, {where}: more cells than columns; quote cells with commas"
                )
            if any(cell and cell.strip() for cell in row.values()):
                yield where, row
            # spreadsheets write empty rows below the last one
    except csv.Error as error:
        raise UserError(f"{path}: not {kind} ({error})") from None


def _delimiter(text: str) -> str:
    """Return the delimiter that gives the most columns in the first line; spreadsheets write ; if
    numbers have a comma."""
    line = next(iter(text[:100_000].splitlines()), "").replace("\0", "")  # an error in Python 3.10
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))


def _json_lines(path: Path, budget: Budget, choose: Choice) -> Cells:
    """Yield one object per line; any may have columns that others lack."""
    kind = "readable JSON lines"
    rows: dict[int, JsonObject] = {}
    text = read_text(path, kind)
    budget.take("memory", json_memory(text) + TEXT_BYTES * text.count("\n"), path)
    budget.expect("rows", text.count("\n"), path)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        budget.take("rows", 1, path)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = type(error).__name__
            raise UserError(f"{path}, line {number}: not {kind} ({reason})") from None
        if not isinstance(row, dict):
            advice = 'write {"column": value, ...}'
            raise UserError(f"{path}, line {number}: {quoted(row)}: {advice}")
        rows[number] = row
    names = dict.fromkeys(name for row in rows.values() for name in row)
    if rows:
        choose([*names])
    for number, row in rows.items():
        yield f"line {number}", row


def _parquet(path: Path, budget: Budget, choose: Choice) -> Cells:
    parquet = pyarrow("parquet", str(path))
    number = 0
    with parsing(path, "a readable parquet file", OF_LIBRARIES):
        chosen, unread = choose(parquet.read_schema(path).names)
        columns = [*chosen.values(), *_with_splits_at_first(path, unread)]
        for batch in parquet_batches(path, columns, budget):
            cells = dict(zip(batch.schema.names, cells_of(batch, path, budget), strict=True))
            for row in range(batch.num_rows):
                number += 1
                yield f"row {number}", {name: cells[name][row] for name in columns}


def _with_splits_at_first(path: Path, columns: Sequence[str]) -> list[str]:
    """Return those of a parquet file's columns that begin like a column of splits; others, such as
    captions, need not be read to the end."""
    unread = Unread(text_columns(path, columns))
    budget = Budget()
    first = parquet_batches(path, unread.columns, budget) if unread.columns else iter(())
    for batch in first:
        for column, cells in zip(batch.schema.names, cells_of(batch, path, budget), strict=True):
            all(unread.see(column, cell) for cell in cells)
        break
    return unread.columns


FORMAT = Format(
    "table",
    detects,
    read,
    list_images,
    image_root=lambda path: path.parent,
    check=header,
    suffixes=SUFFIXES,
    has_columns=True,
)


# Writing


def write(splits: Mapping[str, Rows], out: Path, home: Path) -> None:
    """Write the table of `table_text`."""
    write_text(out, table_text(splits, home))


def table_text(splits: Mapping[str, Rows], home: Path) -> str:
    """Return a CSV table of path and label, and of split and group if there are any.

    Args:
        splits: Split -> rows.
        home: The folder that paths are relative to.
    """
    has_splits = "all" not in splits
    has_groups = any(row.group for rows in splits.values() for row in rows)
    header = ["path", "label", *["split"] * has_splits, *["group"] * has_groups]
    lines = []
    for split, rows in splits.items():
        for row in rows:
            path = inert_path(path_from(home, row.image))
            lines.append([path, row.label, *[split] * has_splits, *[row.group] * has_groups])
    return csv_text(header, lines)
