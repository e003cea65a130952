"""Tables of images, as text or parquet; columns have usual names or are named by the user."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rmadapter.data.budget import LINE, Budget
from rmadapter.data.formats.base import (
    SPLITS,
    Inputs,
    ReadOptions,
    Row,
    Rows,
    Source,
    class_name,
    listed_image,
    only_label,
)
from rmadapter.data.formats.columnar import cells_of, parquet_batches, pyarrow, text_columns
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.support.files import JsonObject, json_memory, read_text

if TYPE_CHECKING:
    import pandas

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
HAS_BOXES = False
HAS_COLUMNS = True
USUAL = {  # if a table has several of them, the first is used
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
DELIMITERS = ",;\t"  # of equally good ones, the first is used
NO_SPLITS = "none"  # in the place of a column of splits: all rows are one set
BETWEEN = "\x1f"  # joins the items of a list, as JSON lines and parquet have them

# the table's columns -> those to read, and those to read as long as they may hold splits
Choice: TypeAlias = "Callable[[Sequence[str]], tuple[Sequence[str], Sequence[str]]]"
Cells: TypeAlias = "Iterator[tuple[str, JsonObject]]"  # place of a row, and its cells by column


def detects(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def read(path: Path, options: ReadOptions) -> Source:
    splits = scan_table(path, options.outside, options.columns, options.budget)
    return Source(path.parent, splits, Counter())


def image_root(path: Path) -> Path:
    return path.parent


def list_images(path: Path, options: ReadOptions) -> Inputs:
    named = {"image": (options.columns or {}).get("image", "")}
    rows = read_rows(path, ["image"], named=named, budget=options.budget)
    return Inputs([listed_image(path, at, cells["image"], options.outside) for at, cells in rows])


def scan_table(
    path: Path, outside: bool = False, columns: Mapping[str, str] | None = None,
    budget: Budget | None = None,
) -> dict[str, Rows]:  # fmt: skip
    """Return split -> rows in the order of the table, on which draws depend; {"all": ...} without a
    split column.

    outside: whether images may be outside the table's folder. columns, budget: `named` and `budget`
    of `read_rows`. Raises UserError as `read_rows`, `listed_image` and `only_label`, and for an
    empty or very long label and a split other than train, val and test.
    """
    splits: dict[str, Rows] = {}
    images: dict[str, Path] = {}  # many rows may name one image
    optional = ("label_list", "split", "group")
    for where, cells in read_rows(path, ("image", "label"), optional, columns, budget):
        name = cells["image"]
        if name not in images:
            images[name] = listed_image(path, where, name, outside)
        image = images[name]
        label = only_label(row_labels(cells), where)
        if label is None:
            raise UserError(f"{where}: the label is empty")
        class_name(label, where)
        split = cells.get("split", "all")
        if "split" in cells and split.casefold() not in SPLITS:
            raise UserError(f"{where}: split is {split!r:.80}: write train, val or test")
        row = Row(label, image, cells.get("group", ""))
        splits.setdefault(SPLITS.get(split.casefold(), split), []).append(row)
    return splits


def row_labels(cells: Mapping[str, str]) -> list[str]:
    """Return the labels of a table's row: the items of a list; in a column called `labels`, also
    the parts between ; or |."""
    if "label" in cells:
        text = cells["label"]
    else:
        text = cells["label_list"].replace(";", BETWEEN).replace("|", BETWEEN)
    return [label for label in map(str.strip, text.split(BETWEEN)) if label]


def read_rows(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (),
    named: Mapping[str, str] | None = None, budget: Budget | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:  # fmt: skip
    """Yield the place of each row, for messages, and its cells, stripped, by kind.

    needed, optional: kinds (keys of USUAL); optional ones that the table lacks are left out. named:
    kind -> column, "" for the usual names, `NO_SPLITS`; None if the user cannot name any. budget:
    by default, one of its own. Raises UserError for a table that is unreadable or too large, lacks
    a column or has no rows, and as `Unread.refuse`.
    """
    unknown = next((kind for kind in named or () if kind not in USUAL), "")
    if unknown:
        raise UserError(f"columns: unknown kind {quoted(unknown)}{did_you_mean(unknown, USUAL)}")
    chosen: dict[str, str] = {}
    unread = Unread(())

    def choose(columns: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        nonlocal chosen, unread
        chosen = choose_columns(path, columns, needed, optional, named)
        unread = Unread.beside(chosen, columns, optional, named)
        return [*chosen.values()], unread.columns

    where = ""
    for where, row in _reader(path)(path, choose, budget or Budget()):
        cells = {kind: row.get(column) for kind, column in chosen.items()}
        for kind, cell in cells.items():
            if isinstance(cell, (bytes, dict)):
                advice = "`datasets` can save images in tables"
                raise UserError(f"{path}, {where}: the {kind} is data, not text; {advice}")
        for column in unread.columns:
            unread.see(column, row.get(column))
        yield f"{path}, {where}", {kind: as_text(cell) for kind, cell in cells.items()}
    if not where:
        raise UserError(f"{path}: has no rows of data")
    unread.refuse(path)


class Unread:
    """Columns of a table that are not read, watched for one that holds the splits under a name that
    is not usual: otherwise its test images would be trained on."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._splits: dict[str, set[str]] = {column: set() for column in columns}

    @classmethod
    def beside(
        cls, chosen: Mapping[str, str], columns: Sequence[str], optional: Sequence[str],
        named: Mapping[str, str] | None,
    ) -> Unread:  # fmt: skip
        """Return the columns beside those that were chosen; none if splits were, are not wanted, or
        the user says that there are none. Arguments as in `choose_columns`."""
        settled = "split" in chosen or (named or {}).get("split") == NO_SPLITS
        if settled or "split" not in optional:
            return cls(())
        known = {*chosen.values()}
        return cls(name for name in columns if name not in known and columns.count(name) == 1)

    @property
    def columns(self) -> list[str]:
        """The columns that may hold splits, by the cells seen so far."""
        return [*self._splits]

    def see(self, column: str, cell: object) -> bool:
        """Take a cell of one of `columns`; return whether the column may still hold splits."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return True
        text = cell.strip().casefold() if isinstance(cell, str) else "no split"
        if text in SPLITS:
            self._splits[column].add(SPLITS[text])
        elif text:
            del self._splits[column]
        return column in self._splits

    def refuse(self, table: Path | str) -> None:
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

    def keep(columns: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        names.extend(columns)
        return [], []

    next(_reader(path)(path, keep, Budget()), None)
    return names


def frame_cells(frame: pandas.DataFrame, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return kind -> cells of its column of a DataFrame; column names may be of any type, missing
    cells are None."""
    names = [*map(str, frame.columns)]
    cells: dict[str, list[Any]] = {}
    for kind, name in columns.items():
        column = frame.iloc[:, names.index(name)]
        missing = column.isna()
        pairs = zip(column.tolist(), missing, strict=True)
        cells[kind] = [None if gone else cell for cell, gone in pairs]
    return cells


def choose_columns(
    table: Path | str, columns: Sequence[str], needed: Sequence[str], optional: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Return kind -> its column; arguments as in `read_rows`. Raises UserError if it lacks one."""
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
    with BETWEEN."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return BETWEEN.join(map(as_text, value))
    missing = value is None or value != value  # NaN, as JSON lines of pandas have it
    return "" if missing else str(value).strip()


def _column(
    table: Path | str, kind: str, columns: Sequence[str], named: Mapping[str, str] | None,
    needed: bool,
) -> str | None:  # fmt: skip
    """Return the column that is named, or else has a usual name in any case; None if there is none
    and it is not `needed`."""
    wanted = (named or {}).get(kind, "")
    if kind == "split" and wanted == NO_SPLITS:
        return None
    if wanted:
        matches = [wanted] if wanted in columns else []
    else:
        plain = {column.strip().casefold(): column for column in reversed(columns)}
        matches = [plain[name] for name in USUAL[kind] if name in plain]
    if matches and columns.count(matches[0]) > 1:
        raise UserError(f"{table}: two columns are called {quoted(matches[0])}: rename one")
    if matches:
        return matches[0]
    if not (wanted or needed):
        return None
    called = quoted(wanted) if wanted else " or ".join(USUAL[kind])
    hint = ""
    if named is not None and not wanted:
        hint = f"; name one with --{kind}-column (columns={{'{kind}': ...}})"
    raise UserError(
        f"{table}: none of its columns ({', '.join(columns):.200}) is called {called}{hint}"
    )


# Readers


def _reader(path: Path) -> Callable[[Path, Choice, Budget], Cells]:
    return {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _text)


def _text(path: Path, choose: Choice, budget: Budget) -> Cells:
    kind = "a readable CSV file in UTF-8"
    text = read_text(path, kind, errors="surrogateescape")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        advice = "save it as CSV UTF-8, which spreadsheets offer beside CSV"
        raise UserError(f"{path}, line {line}: not {kind}; {advice}") from None
    delimiter = _delimiter(text)
    budget.take("memory", 2 * len(text) + LINE * text.count(delimiter), path)
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


def _json_lines(path: Path, choose: Choice, budget: Budget) -> Cells:
    """Yield one object per line; any may have columns that others lack."""
    kind = "readable JSON lines"
    rows: dict[int, JsonObject] = {}
    text = read_text(path, kind)
    budget.take("memory", json_memory(text) + LINE * text.count("\n"), path)
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


def _parquet(path: Path, choose: Choice, budget: Budget) -> Cells:
    parquet = pyarrow("parquet", str(path))
    number = 0
    try:
        columns, unread = choose(parquet.read_schema(path).names)
        columns = [*columns, *_with_splits_at_first(path, unread)]
        for batch in parquet_batches(path, columns, budget):
            cells = dict(zip(batch.schema.names, cells_of(batch, path, budget), strict=True))
            for row in range(batch.num_rows):
                number += 1
                yield f"row {number}", {name: cells[name][row] for name in columns}
    except UserError:
        raise
    except Exception as error:  # on broken files pyarrow raises nearly anything
        raise UserError(f"{path}: not a readable parquet file ({type(error).__name__})") from None


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
