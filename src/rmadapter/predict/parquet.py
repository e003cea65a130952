"""Images as bytes in a parquet file, for `predict --ray`.

Each row has a name, FILE.parquet#ROW. It is written to a temporary file, so it is decoded by the
same code as any other image. The column holds bytes, or a struct with "bytes", as Hugging Face
writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.data.formats.base import Inputs
from rmadapter.data.formats.columnar import pyarrow
from rmadapter.data.formats.registry import find_images
from rmadapter.data.formats.tables import USUAL_NAMES
from rmadapter.errors import UserError
from rmadapter.predict.stream import BadImages
from rmadapter.support.files import user_path

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MARK = ".parquet#"
COLUMNS = ("bytes", "image_bytes", *USUAL_NAMES["image"], "img", "content")


def is_row(name: Path) -> bool:
    return MARK in name.name.lower()


def find_rows(
    words: Sequence[str],
    column: str = "",
    outside: bool = False,
    none: bool = False,
    crops: bool = False,
) -> Inputs:
    """Find images like `find_images`, but `words` may include parquet files of bytes, whose rows
    come first."""
    rows = {word: rows_of(word) for word in words}
    others = [word for word in words if not rows[word]]
    inputs = find_images(others, column, outside, none, crops) if others else Inputs()
    inputs.files = [row for names in rows.values() for row in names] + inputs.files
    return inputs


def rows_of(word: str) -> list[Path]:
    """Name the images in a parquet file; none if it is another kind of file or a table of paths."""
    path = user_path(word)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return []
    file = _opened(path)
    if not _column(file):
        return []
    return [path.with_name(f"{path.name}#{row}") for row in range(file.metadata.num_rows)]


def unpacked_rows(names: Sequence[Path], folder: Path, bad: BadImages) -> list[tuple[Path, Path]]:
    """Return (file, name) of each image in order.

    Args:
        names: Images, among them rows of parquet files.
        folder: Folder in which rows become files.
        bad: Collects the rows without bytes.
    """
    files: list[tuple[Path, Path]] = []
    contents = dict(_contents([name for name in names if is_row(name)]))
    for number, name in enumerate(names):
        if not is_row(name):
            files.append((name, name))
        elif name in contents:
            file = folder / str(number)
            file.write_bytes(contents[name])
            files.append((file, name))
        else:
            bad.append((name, f"{name}: holds no bytes"))
    return files


def _contents(names: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """Yield (name, bytes) of the rows that hold bytes; each row group is read once."""
    rows_of_table: dict[Path, set[int]] = {}
    for name in names:
        table, _, number = name.name.rpartition("#")
        rows_of_table.setdefault(name.with_name(table), set()).add(int(number))
    for path, rows in rows_of_table.items():
        file = _opened(path)
        column = _column(file)
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            in_group = sorted(row for row in rows if start <= row < start + size)
            if in_group:
                cells = file.read_row_group(group, columns=[column]).column(column)
                for row in in_group:
                    cell = cells[row - start].as_py()
                    content = cell.get("bytes") if isinstance(cell, dict) else cell
                    if content:
                        yield path.with_name(f"{path.name}#{row}"), content
            start += size


def _opened(path: Path) -> ParquetFile:
    parquet = pyarrow("parquet", str(path))
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # on broken files pyarrow raises nearly anything
        raise UserError(f"{path}: not a readable parquet file ({type(error).__name__})") from None


def _column(file: ParquetFile) -> str:
    """Return the column of bytes, by a usual name or else the first; "" if there is none."""
    types = pyarrow("types", "")
    columns = []
    for field in file.schema_arrow:
        is_bytes = types.is_binary(field.type) or types.is_large_binary(field.type)
        in_struct = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_bytes or in_struct:
            columns.append(field.name)
    return next((name for name in COLUMNS if name in columns), columns[0] if columns else "")
