"""Damaged parquet and Arrow files: pyarrow itself may end the process, or take gigabytes."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from rmadapter.data.budget import Budget
from rmadapter.data.formats.columnar import check_arrow
from rmadapter.data.formats.tables import scan_table
from rmadapter.errors import UserError

pa = pytest.importorskip("pyarrow")


def read_damaged(file: Path, content: bytes, places: range) -> None:
    """Read a file with one bit of a byte changed, for each of the places; it has 18 rows."""
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        try:
            splits = scan_table(file)
        except UserError:
            continue
        assert sum(map(len, splits.values())) == 18


def test_a_damaged_file_neither_ends_the_process_nor_loses_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pa.table({"path": ["a.png"] * 18, "label": ["a", "b"] * 9}), file)
    content = file.getvalue()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    arguments = (tmp_path / "t.parquet", content, range(footer + 50))
    process = multiprocessing.get_context("spawn").Process(target=read_damaged, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_file_must_begin_with_a_schema(tmp_path: Path) -> None:
    """pyarrow would read a message of no kind as a schema."""
    content: Any = bytearray(pa.schema([("label", pa.string())]).serialize().to_pybytes())
    content[content.index(b"\0\1\4\0", 8) + 1] = 0  # its kind, before the version of the format
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.arrow.*schema"):
        check_arrow(tmp_path / "a.arrow", Budget())
