"""Images stored as bytes in a parquet file: each row has a name, FILE.parquet#ROW.

During prediction a row is written to a temporary file, so it is decoded by the same code as any
other image. The column holds bytes, or a struct with "bytes", as Hugging Face writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rmadapter.data.formats.columns import USUAL, pyarrow
from rmadapter.data.inputs import Inputs, find_images
from rmadapter.errors import UserError
from rmadapter.support.files import user_path

MARK = ".parquet#"
NAMES = ("bytes", "image_bytes", *USUAL["image"], "img", "content")


def is_row(name: Path) -> bool:
    return MARK in name.name.lower()


def find_rows(words: Sequence[str], **how: Any) -> Inputs:
    """As `find_images`, but `words` may include parquet files of bytes, whose rows come first."""
    rows = {word: rows_of(word) for word in words}
    others = [word for word in words if not rows[word]]
    found = find_images(others, **how) if others else Inputs()
    found.files = [row for some in rows.values() for row in some] + found.files
    return found


def rows_of(word: str) -> list[Path]:
    """Names of the images in a parquet file; none if it is another kind of file or a table of
    paths."""
    path = user_path(word)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return []
    file = _opened(path)
    if not _column(file):
        return []
    return [path.with_name(f"{path.name}#{row}") for row in range(file.metadata.num_rows)]


def unpacked_rows(
    names: Sequence[Path], folder: Path, bad: list[tuple[Path, str]]
) -> list[tuple[Path, Path]]:
    """(file, name) of each image in order; rows become files in `folder`. bad: collects rows
    without bytes."""
    found: list[tuple[Path, Path]] = []
    contents = dict(_contents([name for name in names if is_row(name)]))
    for number, name in enumerate(names):
        if not is_row(name):
            found.append((name, name))
        elif content := contents.get(name):
            (file := folder / str(number)).write_bytes(content)
            found.append((file, name))
        else:
            bad.append((name, f"{name}: holds no bytes"))
    return found


def _contents(names: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """(name, bytes) of rows of any files; each row group is read once."""
    wanted: dict[Path, set[int]] = {}
    for name in names:
        table, _, number = name.name.rpartition("#")
        wanted.setdefault(name.with_name(table), set()).add(int(number))
    for path, rows in wanted.items():
        file, start = _opened(path), 0
        column = _column(file)
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if here := sorted(row for row in rows if start <= row < start + size):
                cells = file.read_row_group(group, columns=[column]).column(column)
                for row in here:
                    cell = cells[row - start].as_py()
                    content = cell.get("bytes") if isinstance(cell, dict) else cell
                    if content:
                        yield path.with_name(f"{path.name}#{row}"), content
            start += size


def _opened(path: Path) -> Any:
    parquet = pyarrow("parquet", str(path))
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # on broken files pyarrow raises nearly anything
        raise UserError(f"{path}: not a readable parquet file ({type(error).__name__})") from None


def _column(file: Any) -> str:
    """The column of bytes, by a usual name or else the first; "" if there is none."""
    types = pyarrow("types", "")
    held = [
        field.name
        for field in file.schema_arrow
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    return next((usual for usual in NAMES if usual in held), held[0] if held else "")
