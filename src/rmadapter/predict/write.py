"""Write answers to a file.

While it grows, the file is NAME.partial: a line of JSON that identifies the run, and a line per
image. When complete, it becomes CSV, JSON lines or parquet. An interrupted one is resumed.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypedDict

from rmadapter.data.formats.tables import pyarrow
from rmadapter.errors import UserError
from rmadapter.predict.answer import Cell, Row, cell
from rmadapter.predict.sorting import Sorter
from rmadapter.predict.stream import Answers, BadImages
from rmadapter.support.files import atomic, check_new, opened
from rmadapter.support.locks import exclusive, hold
from rmadapter.support.terminal import bar

PARTIAL = ".partial"
WHAT = "unfinished answers of `rmadapter predict`"


class Counts(TypedDict):
    """Counts of all rows of a file. skipped: what is wrong with each bad image."""

    images: int
    unsure: int
    skipped: list[str]


def write_answers(
    images: Sequence[Path], model: Answers, unsure: float, skip_bad: bool, file: AnswerFile,
    sorter: Sorter | None = None, progress: bool = True,
) -> Counts:  # fmt: skip
    """Answer the images that have no row yet, and finish the file. Returns counts of all its rows.

    unsure: probability below which the label is "unsure". sorter: also sort the images into
    folders.
    """
    with only_writer(file.path), exclusive(sorter.root) if sorter else nullcontext():
        file.open()
        todo = file.missing(images, moved=sorter is not None and sorter.how == "move")
        if sorter:
            sorter.resume(file.rows())
        bad: BadImages | None = [] if skip_bad else None
        zero_shot = "zero_shot_label" in file.columns
        unfamiliar = "unfamiliar" in file.columns
        with bar(progress) as display:
            done = file.done.total()
            task = display.add_task("predicting", total=done + len(todo), completed=done, note="")
            for batch in model.predict(todo, zero_shot, bad, unfamiliar):
                rows = [answer.row(unsure) for answer in batch]
                if sorter:  # rows are written first, so that a killed process can go on
                    for answer, row in zip(batch, rows, strict=True):
                        row["sorted_to"] = str(sorter.place(answer.image, str(row["label"])))
                file.write([*rows, *_bad_rows(bad)])
                if sorter:
                    for answer, row in zip(batch, rows, strict=True):
                        sorter.put(answer.image, Path(str(row["sorted_to"])))
                display.advance(task, len(batch))
            file.write(_bad_rows(bad))
        counts = _count(file.rows())
        file.finish()
    return counts


def _bad_rows(bad: BadImages | None) -> list[Row]:
    """Return rows of the bad images since the last call, and empty the list."""
    rows: list[Row] = [{"image": str(image), "bad": text} for image, text in bad or []]
    if bad:
        bad.clear()
    return rows


def _count(rows: Iterable[Row]) -> Counts:
    counts: Counts = {"images": 0, "unsure": 0, "skipped": []}
    for row in rows:
        if "bad" in row:
            counts["skipped"].append(str(row["bad"]))
        else:
            counts["images"] += 1
            counts["unsure"] += bool(row.get("unsure"))
    return counts


@dataclass(eq=False)
class AnswerFile:
    """A file of answers.

    columns: of the finished file, in order. key: identifies the run and the settings that the rows
    come from. Raises UserError for a name without a known format's suffix, and for parquet if
    pyarrow is missing.
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
        """Yield rows of the unfinished file. The row of a bad image has "bad", which says what is
        wrong."""
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
        with _writing(self.partial), open(self.partial, "a", encoding="utf-8") as file:
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
                    f"{self.partial}: holds answers from another run or other settings; resume it "
                    "with the command that began it, or delete it"
                )
        self._cut()
        for row in self.rows():
            self.done[str(row["image"])] += 1
            self.answered[str(row["image"])] += "bad" not in row

    def missing(self, images: Sequence[Path], moved: bool = False) -> list[Path]:
        """List the images that have no row yet, in order; an image given twice gets two rows.

        moved: answered images are no longer where they were. Raises UserError if a row is of none
        of the images.
        """
        others = self.answered - Counter(map(str, images))
        if others and not moved:
            raise UserError(
                f"{self.partial}: holds answers to other images, such as {next(iter(others))}; "
                "resume it with the command that began it, or delete it"
            )
        left = Counter(self.done)
        todo = []
        for image in images:
            if left[str(image)]:
                left[str(image)] -= 1
            else:
                todo.append(image)
        return todo

    def _cut(self) -> None:
        """Remove a last line that a killed process left incomplete."""
        with _writing(self.partial), open(self.partial, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                file.seek(end - 1)
                if file.read(1) == b"\n":
                    break
                end -= 1
            file.truncate(end)

    def finish(self) -> None:
        """Write the final file and remove the unfinished one. Bad images only have rows if a column
        is "error"."""
        with_errors = "error" in self.columns
        empty: Row = dict.fromkeys(self.columns)
        rows = (
            {**empty, **row, "error": row.get("bad", "")}
            for row in self.rows()
            if with_errors or "bad" not in row
        )
        with atomic(self.path) as temporary:
            self._write(temporary, self.columns, rows)
        self.partial.unlink()


def only_writer(path: Path) -> AbstractContextManager[None]:
    """Lock a file of answers. Raises UserError while another process writes it."""
    busy = UserError(f"{path}: another process is writing it")
    return hold(path.with_name(f".{path.name}.lock"), 0, busy, f"{path}: cannot be written (%s)")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
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


def _jsonl(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            line = {column: row[column] for column in columns}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    types = dict.fromkeys(columns, pa.string())
    for column in columns:
        if column == "unsure":
            types[column] = pa.bool_()
        elif column.startswith("probab") or column == "unfamiliar":
            types[column] = pa.float64()
    schema = pa.schema(list(types.items()))
    rest = iter(rows)
    with ParquetWriter(path, schema) as writer:
        while part := [*islice(rest, 10_000)]:
            table = [{column: _utf8(row[column]) for column in columns} for row in part]
            writer.write_table(pa.Table.from_pylist(table, schema))


def _utf8(value: Cell) -> Cell:
    """Replace what cannot be UTF-8, such as parts of odd file names."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


FORMATS: dict[str, Callable[[Path, Sequence[str], Iterable[Row]], None]]
FORMATS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _format(path: Path) -> Callable[[Path, Sequence[str], Iterable[Row]], None]:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"--out {path}: give a name that ends in {', '.join(FORMATS)}")
    if suffix == ".parquet":
        pyarrow("parquet", f"--out {path}")
    return FORMATS[suffix]
