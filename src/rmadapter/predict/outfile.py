"""Answers in a file. While it grows it is NAME.partial: a line of JSON that identifies the run, and
one per image.

When complete, it becomes CSV, JSON lines or parquet. One that was interrupted is resumed.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rmadapter.data.formats.columns import pyarrow
from rmadapter.errors import UserError
from rmadapter.support.files import atomic, check_new, inert, inert_path, opened
from rmadapter.support.locks import hold

Row = dict[str, Any]
PARTIAL = ".partial"
WHAT = "unfinished answers of `rmadapter predict`"


@dataclass(eq=False)
class OutFile:
    """columns: of the finished file, in order. key: identifies the run and the settings that the
    rows come from.

    Raises UserError for a name without a known format's suffix, and for parquet if pyarrow is
    missing.
    """

    path: Path
    columns: Sequence[str]
    key: str
    done: Counter[str] = field(default_factory=Counter)  # images that have a row, or are bad
    answered: Counter[str] = field(default_factory=Counter)  # those of them that are not bad

    def __post_init__(self) -> None:
        self._write = _format(self.path)

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + PARTIAL)

    def rows(self) -> Iterator[Row]:
        """Rows of the unfinished file. The row of a bad image has "bad", which says what is wrong."""
        with opened(self.partial) as file:
            next(file)
            for number, line in enumerate(file, 2):
                try:
                    row = json.loads(line)
                    row["image"] + row.get("bad", row.get("label"))
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f"{self.partial}, line {number}: damaged; delete the file to start again"
                    ) from None
                yield row

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows; they stay if this process is killed later."""
        with _told(self.partial), open(self.partial, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def open(self) -> None:
        """Begin or resume. Raises UserError if the file exists, or if a partial one has another key
        or is damaged."""
        check_new(self.path)
        head = (json.dumps({"what": WHAT, "key": self.key}) + "\n").encode()
        if not self.partial.exists():
            with atomic(self.partial) as temporary:
                temporary.write_bytes(head)
            return
        with opened(self.partial) as file:
            if file.readline(1000) != head:
                raise UserError(
                    f"{self.partial}: holds answers from another run or other settings; resume it with the command "
                    "that began it, or delete it"
                )
        self._cut()
        for row in self.rows():
            self.done[row["image"]] += 1
            self.answered[row["image"]] += "bad" not in row

    def missing(self, images: Sequence[Path], gone: bool = False) -> list[Path]:
        """Images that have no row yet, in order; an image given twice gets two rows. gone: answered
        ones were moved. Raises UserError if a row is of none of the images."""
        if not gone and (others := self.answered - Counter(map(str, images))):
            raise UserError(
                f"{self.partial}: holds answers to other images, such as {next(iter(others))}; resume it with the "
                "command that began it, or delete it"
            )
        left, found = Counter(self.done), []
        for image in images:
            if left[str(image)]:
                left[str(image)] -= 1
            else:
                found.append(image)
        return found

    def _cut(self) -> None:
        """Remove a last line that a killed process left incomplete."""
        with _told(self.partial), open(self.partial, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                end -= 1
            file.truncate(end)

    def finish(self) -> None:
        """Write the final file and remove the unfinished one. Bad images only have rows if a column
        is "error"."""
        told = "error" in self.columns
        nothing = dict.fromkeys(self.columns)
        good = (
            {**nothing, **row, "error": row.get("bad", "")}
            for row in self.rows()
            if told or "bad" not in row
        )
        with atomic(self.path) as temporary:
            self._write(temporary, self.columns, good)
        self.partial.unlink()


def only_writer(path: Path) -> AbstractContextManager[None]:
    """A lock on the file. Raises UserError while another process writes it."""
    taken = UserError(f"{path}: another process is writing it")
    return hold(path.with_name(f".{path.name}.lock"), 0, taken, f"{path}: cannot be written (%s)")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); run the same command again to resume"
        ) from None


# Formats


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([cell(column, row[column]) for column in columns] for row in rows)


def cell(column: str, value: Any) -> Any:
    """A value that no spreadsheet takes for a formula; an image's path still leads to it."""
    if column == "image":
        return inert_path(value)
    if isinstance(value, bool):
        return str(value).lower()
    return inert(value) if isinstance(value, str) else value


def _jsonl(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(
            json.dumps({c: row[c] for c in columns}, ensure_ascii=False) + "\n" for row in rows
        )


def _parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    def kind(column: str) -> Any:
        number = column.startswith("probab") or column == "unfamiliar"
        return pa.bool_() if column == "unsure" else pa.float64() if number else pa.string()

    schema = pa.schema([(column, kind(column)) for column in columns])
    with ParquetWriter(path, schema) as writer:
        rest = iter(rows)
        while part := [*islice(rest, 10_000)]:
            whole = [{c: v.encode(errors="backslashreplace").decode() if isinstance(v := row[c], str) else v
                      for c in columns} for row in part]  # fmt: skip
            writer.write_table(pa.Table.from_pylist(whole, schema))


FORMATS: dict[str, Callable[[Path, Sequence[str], Iterable[Row]], None]]
FORMATS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _format(path: Path) -> Callable[[Path, Sequence[str], Iterable[Row]], None]:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"--out {path}: give a name that ends in {', '.join(FORMATS)}")
    if suffix == ".parquet":
        pyarrow("parquet", f"--out {path}")
    return FORMATS[suffix]
