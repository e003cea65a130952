"""Parquet and Arrow files, read so that the bytes of their values are counted first.

A value that many rows share is stored once, so a small file may hold terabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rmadapter.data.budget import TEXT_BYTES, Budget
from rmadapter.errors import UserError

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch

BATCH_ROWS, BATCH_BYTES = 16, 2**30  # at once, unless a single value may take more
# types of which pyarrow's newer versions know more than its older ones
SHARING_TYPES = ("run_end_encoded", "string_view", "binary_view", "list_view", "large_list_view")
# positions in the format's tables Message and RecordBatch (arrow.apache.org/docs/format/IPC.html)
HEADER_FIELD, COMPRESSION_FIELD = 2, 3


def pyarrow(module: str, where: str) -> ModuleType:
    """Import a module of pyarrow. Raises UserError, naming `where`, if it is not installed."""
    try:
        return import_module(f"pyarrow.{module}")
    except ImportError:
        raise UserError(
            f"{where}: reading parquet needs pyarrow; `pip install pyarrow`, or use CSV"
        ) from None


def parquet_batches(
    path: Path, columns: Sequence[str] | None, budget: Budget
) -> Iterator[RecordBatch]:
    """Yield a few rows of a parquet file at a time, and take them from the budget's rows.

    Args:
        path: The file.
        columns: Those to read, None for all.
        budget: What reading may still take.

    Raises:
        UserError: Types whose values may share their bytes, or fewer rows than the file says.
        Exception: Whatever pyarrow raises for broken files.
    """
    parquet = pyarrow("parquet", str(path))
    count = 0
    with parquet.ParquetFile(path) as file:
        facts = file.metadata
        budget.expect("rows", facts.num_rows, path)
        for field in file.schema_arrow:
            if columns is None or field.name in columns:
                _check_type(path, field.name, field.type)
        # not of single columns: asked for a damaged one, pyarrow ends the process
        sizes = [facts.row_group(group).total_byte_size for group in range(facts.num_row_groups)]
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max([1, *sizes])))
        for batch in file.iter_batches(rows, columns=columns, use_threads=False):
            budget.take("rows", batch.num_rows, path)
            count += batch.num_rows
            yield batch
        if count != facts.num_rows:  # pyarrow ends with the shortest column, without a word
            raise UserError(
                f"{path}: damaged (of {facts.num_rows:,} rows only {count:,} can be read); write "
                "it again"
            )


def text_columns(path: Path, columns: Sequence[str]) -> list[str]:
    """Return those of a parquet file's columns that hold text."""
    types = pyarrow("types", str(path))
    schema = pyarrow("parquet", str(path)).read_schema(path)
    found = []
    for name in columns:
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_string(kind) or types.is_large_string(kind):
            found.append(name)
    return found


def cells_of(batch: RecordBatch, path: Path, budget: Budget) -> list[list[object]]:
    """Return the values of each column of a batch, and take their memory."""
    columns = [getattr(column, "dictionary_decode", lambda one=column: one)() for column in batch]
    size = sum(column.nbytes for column in columns)
    budget.take("memory", size + TEXT_BYTES * batch.num_rows * batch.num_columns, path)
    return [column.to_pylist() for column in columns]


def _check_type(path: Path, name: str, kind: DataType, inner: bool = False) -> None:
    """Raise UserError for a column whose values may share their bytes: for views, run lengths, and
    dictionaries in lists and the like.

    Args:
        path: The file.
        name: Name of the column.
        kind: Type of its values.
        inner: Whether the type is that of a part of its values.
    """
    types = pyarrow("types", str(path))
    shared = [getattr(types, f"is_{name}", None) for name in SHARING_TYPES]
    is_inner = inner and types.is_dictionary(kind)
    if is_inner or any(is_shared(kind) for is_shared in shared if is_shared):
        raise UserError(
            f"{path}: the column {name!r:.80} is of the type {str(kind)!r:.80}; save it as plain "
            "text"
        )
    for number in range(kind.num_fields):
        _check_type(path, name, kind.field(number).type, True)


# Arrow files as `datasets` writes them: a stream of messages


def check_arrow(path: Path, budget: Budget) -> None:
    """Take the rows of an Arrow file from the budget.

    Raises:
        UserError: A compressed file, of which nobody knows how large it is, or types whose values
            may share their bytes.
        Exception: Whatever pyarrow raises for damaged parts.
    """
    arrow = pyarrow("ipc", str(path))
    file = pyarrow("lib", str(path)).memory_map(str(path))
    messages = arrow.MessageReader.open_stream(file)
    first = messages.read_next_message()
    if first.type != "schema":  # pyarrow would read any other as one, which may take gigabytes
        raise UserError(f"{path}: not a readable Arrow file (it begins with no schema)")
    schema = arrow.read_schema(first)
    for field in schema:
        _check_type(path, field.name, field.type, True)
    for message in messages:
        if _is_compressed(message.metadata.to_pybytes()):
            raise UserError(f"{path}: is compressed; `datasets` writes plain Arrow files")
        batch = arrow.read_record_batch(message, schema)
        batch.validate(full=True)  # else offsets could lead anywhere in memory
        budget.take("rows", batch.num_rows, path)


def _is_compressed(metadata: bytes) -> bool:
    """Return whether a message of a record batch says that its body is compressed."""
    message: int = struct.unpack_from("<I", metadata)[0]
    place = _place(metadata, message, HEADER_FIELD)
    batch: int = place + struct.unpack_from("<I", metadata, place)[0]
    return _place(metadata, batch, COMPRESSION_FIELD) != batch


def _place(data: bytes, table: int, field: int) -> int:
    """Return where a field of a table of FlatBuffers is; the table's own place if it is missing."""
    fields: int = table - struct.unpack_from("<i", data, table)[0]
    size: int = struct.unpack_from("<H", data, fields)[0]
    place = 4 + 2 * field
    offset: int = struct.unpack_from("<H", data, fields + place)[0] if place < size else 0
    return table + offset
