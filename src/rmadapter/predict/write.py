"""Write answers to a file, and sort images into one folder per label.

While it grows, the file is NAME.partial: a line of JSON that identifies the run, and a line per
image. When complete, it becomes CSV, JSON lines or parquet. An interrupted one is resumed.
Sorting copies, moves or links images, and never overwrites anything.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, TypeGuard

from rmadapter.answers.answer import AnswerRow, Cell, cell
from rmadapter.data.formats.columnar import pyarrow
from rmadapter.errors import UserError
from rmadapter.support.files import atomic, cache_folder, check_new, csv_text, folder_name, opened
from rmadapter.support.locks import exclusive, hold
from rmadapter.support.terminal import bar

if TYPE_CHECKING:
    from rmadapter.predict.stream import AnswerSource, BadImages

PARTIAL = ".partial"
WHAT = "unfinished answers of `rmadapter predict`"


class Counts(TypedDict):
    """Counts of all rows of a file.

    Attributes:
        images: Number of images with an answer.
        unsure: Number of those whose answer is unsure.
        labels: Number of images of each label, the most frequent first.
        skipped: What is wrong with each bad image.
    """

    images: int
    unsure: int
    labels: dict[str, int]
    skipped: list[str]


def write_answers(
    images: Sequence[Path],
    model: AnswerSource,
    unsure: float,
    skip_bad: bool,
    file: AnswerFile,
    sorter: Sorter | None = None,
    progress: bool = True,
) -> Counts:
    """Answer the images that have no row yet, and finish the file.

    Args:
        images: Images to answer.
        model: Model that answers them.
        unsure: Probability below which the label is "unsure".
        skip_bad: Whether to skip unreadable images, and list them in the counts.
        file: File of the answers.
        sorter: Folders to sort the images into, too, if any.
        progress: Whether to show a bar.

    Returns:
        Counts of all rows of the file.
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


def _bad_rows(bad: BadImages | None) -> list[AnswerRow]:
    """Return rows of the bad images since the last call, and empty the list."""
    rows: list[AnswerRow] = [{"image": str(image), "bad": text} for image, text in bad or []]
    if bad:
        bad.clear()
    return rows


def _count(rows: Iterable[AnswerRow]) -> Counts:
    labels, unsure = Counter[str](), 0
    skipped: list[str] = []
    for row in rows:
        if "bad" in row:
            skipped.append(str(row["bad"]))
        else:
            labels[str(row["label"])] += 1
            unsure += bool(row.get("unsure"))
    ordered = dict(labels.most_common())
    return {"images": labels.total(), "unsure": unsure, "labels": ordered, "skipped": skipped}


@dataclass(eq=False)
class AnswerFile:
    """A file of answers.

    Attributes:
        path: Path of the finished file.
        columns: Columns of the finished file, in order.
        key: Identifies the run and the settings that the rows come from.

    Raises:
        UserError: The name has no known format's suffix, or pyarrow is missing for parquet.
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
        return partial_of(self.path)

    def rows(self) -> Iterator[AnswerRow]:
        """Yield rows of the unfinished file. The row of a bad image has "bad", which says what is
        wrong."""
        with opened(self.partial) as file:
            next(file)
            for number, line in enumerate(file, 2):
                row: object = None
                with suppress(ValueError, RecursionError):
                    row = json.loads(line)
                if not self._is_row(row):
                    raise UserError(
                        f"{self.partial}, line {number}: damaged; delete the file to start again"
                    )
                yield row

    def _is_row(self, row: object) -> TypeGuard[AnswerRow]:
        """Return whether a parsed line is a row that `write` can have written."""
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            return False
        if not isinstance(row.get("bad", row.get("label")), str):
            return False
        cells = [(row.get(column), kind_of(column)) for column in self.columns]
        return all(
            value is None
            or (kind is float and type(value) is int and abs(value) <= 1)
            or (type(value) is kind and value == value)
            for value, kind in cells
        )

    def write(self, rows: Iterable[AnswerRow]) -> None:
        """Append rows; they stay if this process is killed later."""
        with (
            _writing(self.partial),
            open(self.partial, "a", encoding="utf-8", newline="\n") as file,
        ):
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

        Args:
            images: All images to answer.
            moved: Whether answered images are no longer where they were.

        Raises:
            UserError: A row is of none of the images, and they were not moved.
        """
        if not self.done:
            return [*images]
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
        empty: AnswerRow = dict.fromkeys(self.columns)
        rows = (
            {**empty, **row, "error": row.get("bad", "")}
            for row in self.rows()
            if with_errors or "bad" not in row
        )
        with atomic(self.path) as temporary:
            self._write(temporary, self.columns, rows)
        self.partial.unlink()


def partial_of(path: Path) -> Path:
    """Return the path of the unfinished file of answers."""
    return path.with_name(path.name + PARTIAL)


def check_answer_file(path: Path) -> None:
    """Raise UserError for a file of answers that exists or has an unknown ending, as `AnswerFile`
    does later."""
    _format(path)
    check_new(path)


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


LISTED = "set"  # the column that is a list where the format has lists


def _csv(path: Path, columns: Sequence[str], rows: Iterable[AnswerRow]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        file.write(csv_text(columns, (), "\r\n"))
        for row in rows:
            line = [cell(column, row[column]) for column in columns]
            file.write(csv_text(line, (), "\r\n"))


def _jsonl(path: Path, columns: Sequence[str], rows: Iterable[AnswerRow]) -> None:
    with open(path, "w", newline="\n", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            line = _with_list({column: row[column] for column in columns})
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _with_list(row: AnswerRow) -> dict[str, object]:
    """Return a row for a format that has lists."""
    if LISTED not in row:
        return {**row}
    return {**row, LISTED: json.loads(str(row[LISTED]))}


def kind_of(column: str) -> type[str] | type[bool] | type[float]:
    """Return the type of a column's cells."""
    if column in ("unsure", "familiar"):
        return bool
    return float if column.startswith("probab") or column == "unfamiliar" else str


def _parquet(path: Path, columns: Sequence[str], rows: Iterable[AnswerRow]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    types = {str: pa.string(), bool: pa.bool_(), float: pa.float64()}
    kinds = {column: types[kind_of(column)] for column in columns}
    if LISTED in kinds:
        kinds[LISTED] = pa.list_(pa.string())
    schema = pa.schema([*kinds.items()])
    rest = iter(rows)
    with ParquetWriter(path, schema) as writer:
        while part := [*islice(rest, 10_000)]:
            table = [_with_list({column: _utf8(row[column]) for column in columns}) for row in part]
            writer.write_table(pa.Table.from_pylist(table, schema))


def _utf8(value: Cell) -> Cell:
    """Replace what cannot be UTF-8, such as parts of odd file names."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


WRITERS: dict[str, Callable[[Path, Sequence[str], Iterable[AnswerRow]], None]]
WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _format(path: Path) -> Callable[[Path, Sequence[str], Iterable[AnswerRow]], None]:
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(f"--out {path}: give a name that ends in {', '.join(WRITERS)}")
    if suffix == ".parquet":
        pyarrow("parquet", f"--out {path}")
    return WRITERS[suffix]


# Sorting


@dataclass(eq=False)
class Sorter:
    """Folders for the images of each label.

    Attributes:
        root: Parent of the folders.
        labels: All labels that answers may have.
        how: Whether images are copied, moved or linked.

    Raises:
        UserError: Two labels would share a folder.
    """

    root: Path
    labels: Sequence[str]
    how: Literal["copy", "move", "link"] = "copy"
    # normalised path -> how many images wanted it
    _taken: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folders = {label: folder_name(label) for label in self.labels}
        owners: dict[str, str] = {}
        for label, folder in self.folders.items():
            other = owners.setdefault(_normalised(folder), label)
            if other != label:
                raise UserError(
                    f"labels {other!r} and {label!r} would share the folder {folder!r}: rename one"
                )

    @property
    def settings(self) -> list[str]:
        return [str(self.root.resolve()), self.how]

    def check(self, searched: Sequence[Path], images: Sequence[Path]) -> None:
        """Raise UserError if the search for images would find sorted ones, if an image would be
        moved twice, or if an image from an archive, which must stay in the cache, would not be
        copied."""
        root = self.root.resolve()
        for folder in searched:
            if folder.resolve() in (root, *root.parents):
                raise UserError(
                    f"{self.root}: lies in {folder}, which is searched for images; choose another "
                    "folder to sort into"
                )
        homes = {folder: folder.resolve() for folder in {image.parent for image in images}}
        targets = {root / name for name in self.folders.values()}
        for folder in [*map(Path.resolve, searched), *homes.values()]:
            if not targets.isdisjoint((folder, *folder.parents)):
                raise UserError(
                    f"{folder}: images are sorted into it as well; choose another folder to sort "
                    "into"
                )
        if self.how == "copy":
            return
        cache = cache_folder().resolve()
        for folder, home in homes.items():
            if cache in home.parents:
                raise UserError(
                    f"{folder}: images from an archive can only be copied; remove --{self.how}"
                )
        counts = Counter(homes[image.parent] / image.name for image in images)
        if self.how == "move" and counts.total() > len(counts):
            twice = counts.most_common(1)[0][0]
            raise UserError(f"{twice}: is given twice, but can only be moved once")

    def place(self, image: Path, label: str) -> Path:
        """Return a free path for an image, with a number if its name is taken."""
        folder = self.root / self.folders[label]
        while True:
            key = _normalised(str(folder / image.name))
            count = self._taken[key] = self._taken.get(key, 0) + 1
            name = image.name if count == 1 else f"{image.stem}-{count}{image.suffix}"
            target = folder / name
            target_key = _normalised(str(target))
            if count > 1 and target_key in self._taken:
                continue
            self._taken.setdefault(target_key, 1)
            if not os.path.lexists(target):
                return target

    def resume(self, rows: Iterable[AnswerRow]) -> None:
        """Reserve the places of earlier rows, and bring images there that a killed process did
        not."""
        for row in rows:
            if "sorted_to" in row:
                image, target = str(row["image"]), str(row["sorted_to"])
                self._taken.setdefault(_normalised(target), 1)
                if os.path.lexists(image):
                    self.put(Path(image), Path(target))

    def put(self, image: Path, place: Path) -> None:
        """Bring an image to its place, completely or not at all; an existing file there is left
        alone."""
        if os.path.lexists(place):
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # the target of a link may be relative
            if self.how == "link" or (self.how == "move" and image.is_symlink()):
                os.symlink(image.resolve(), place)
            elif self.how == "copy" or not _renamed(image, place):
                with atomic(place, sync=self.how == "move") as temporary:
                    shutil.copyfile(image, temporary)  # without the mode, which may forbid writing
                    times = image.stat()
                    os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
            if self.how == "move":
                image.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{image}: cannot be placed at {place} ({error.strerror or error})"
            ) from None


def _renamed(image: Path, place: Path) -> bool:
    """Rename the image if both places are on one file system; return whether they are."""
    try:
        os.rename(image, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _normalised(path: str) -> str:
    """Return a form that is equal for paths that some file system takes for the same, whatever
    their case and accents."""
    return unicodedata.normalize("NFC", path).casefold()
