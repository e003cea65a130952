"""Images as bytes in a parquet file: names of rows, and the files that they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter.predict.parquet import find_rows, is_row, rows_of, unpacked_rows

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def written(path: Path, columns: dict[str, list[object]], group: int = 2) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


CONTENTS: list[object] = [b"zero", b"one", b"two", None, b"four"]


@pytest.mark.parametrize(
    ("kind", "name"), [("bytes", "a.parquet"), ("struct", "a.parquet"), ("bytes", "B.PARQUET")]
)
def test_rows_become_files_in_their_order(tmp_path: Path, kind: str, name: str) -> None:
    cells = CONTENTS if kind == "bytes" else [{"bytes": cell, "path": "x.png"} for cell in CONTENTS]
    path = written(tmp_path / name, {"label": [0, 1, 2, 3, 4], "image": cells})
    rows = rows_of(str(path))
    assert [row.name for row in rows] == [f"{name}#{number}" for number in range(5)]
    bad: list[tuple[Path, str]] = []
    plain = tmp_path / "plain.png"
    (folder := tmp_path / "folder").mkdir()
    asked = [rows[4], plain, rows[0], rows[3], rows[4]]
    found = unpacked_rows(asked, folder, bad)
    assert [name for _, name in found] == [rows[4], plain, rows[0], rows[4]]
    assert [file.read_bytes() for file, name in found if is_row(name)] == [
        b"four",
        b"zero",
        b"four",
    ]
    assert found[1] == (plain, plain)
    assert bad == [(rows[3], f"{rows[3]}: holds no bytes")]


def test_other_tables_and_images_are_found_as_ever(colors: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", {"picture": [b"x", b"y"], "image_bytes": [b"1", b"2"]})
    table = written(tmp_path / "b.parquet", {"path": [str(colors / "train/red/0.png")]})
    assert (
        rows_of(str(table))
        == rows_of(str(colors))
        == rows_of(str(tmp_path / "missing.parquet"))
        == []
    )
    found = find_rows([str(table), str(path), str(colors / "test/red")], outside=True)
    assert [file.name for file in found.files[:3]] == ["a.parquet#0", "a.parquet#1", "0.png"]
    assert len(found.files) == 2 + 1 + 4
    file = unpacked_rows(rows_of(str(path))[:1], tmp_path, [])[0][0]
    assert file.read_bytes() == b"1"  # of two columns, that of a usual name


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable parquet file"):
        rows_of(str(tmp_path / "a.parquet"))
