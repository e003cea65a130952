"""Tables of images: delimiters, and which column is which."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rmadapter.data.formats.tables import BETWEEN, choose_columns, read_rows
from rmadapter.errors import UserError


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_delimiter_gives_the_most_columns(tmp_path: Path, mark: str, name: str) -> None:
    lines = [["path", '"note, with; all\tthree"', "label"], ["a.png", "x", '"sea, horse; or"']]
    (tmp_path / name).write_text("\r\n".join(mark.join(cells) for cells in lines))
    assert list(read_rows(tmp_path / name, ["image", "label"])) == [
        (f"{tmp_path / name}, line 2", {"image": "a.png", "label": "sea, horse; or"})
    ]


def cells(path: Path, text: str, **named: str) -> dict[str, str]:
    path.write_text(text)
    [(_, found)] = read_rows(path, ["image", "label"], ["split", "group"], named)
    return found


@pytest.mark.parametrize("image", ["path", "image", "file", "filename", "file_name", "File_Name"])
@pytest.mark.parametrize("label", ["label", "class", "Category"])
def test_usual_names_are_recognised(tmp_path: Path, image: str, label: str) -> None:
    expected = {"image": "a.png", "label": "cat"}
    assert cells(tmp_path / "t.csv", f"{label},{image}\ncat, a.png \n") == expected


@pytest.mark.parametrize("text", [",path,label\n0,a.png,cat\n", "path;label;\na.png;cat;\n"])
def test_unnamed_columns_are_ignored(text: str, tmp_path: Path) -> None:
    """As pandas and Excel write them."""
    (tmp_path / "t.csv").write_text(text)
    rows = read_rows(tmp_path / "t.csv", ("image", "label"), ("label_list", "split", "group"))
    assert [cells for _, cells in rows] == [{"image": "a.png", "label": "cat"}]


def test_the_first_usual_name_counts_and_a_named_column_more(tmp_path: Path) -> None:
    text = "image,path,class,label,subset,group,fold\n1,2,3,4,5,6,7\n"
    expected = {"image": "2", "label": "4", "split": "5", "group": "6"}
    assert cells(tmp_path / "t.csv", text) == expected
    found = cells(tmp_path / "t.csv", text, image="image", label="class", split="fold", group="")
    assert found == {"image": "1", "label": "3", "split": "7", "group": "6"}
    assert cells(tmp_path / "t.csv", "path,label,split\na,b\n")["split"] == ""  # there, and empty


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        ("a,b\n", {}, r"\(a, b\) is called path or .* --image-column"),
        ("path,b\n", {}, r"\(path, b\) is called label or .* --label-column"),
        ("path,label\n", {"group": "patient"}, r"\(path, label\) is called 'patient'$"),
        ("path,label\n", {"label": "Label"}, "is called 'Label'$"),
        ("path,label\n", {"labels": "x"}, "unknown kind 'labels'; did you mean 'label'"),
        ("path,label\n", {}, "has no rows of data"),
        ("", {}, "the first line is empty"),
        ('path,label\n"a,b\n', {}, "not a readable CSV file"),
    ],
)
def test_invalid_tables_fail(tmp_path: Path, text: str, named: dict[str, str], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        cells(tmp_path / "t.csv", text, **named)


def test_errors_mention_column_options_only_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"called label or class or category$"):
        list(read_rows(tmp_path / "t.csv", ["label"]))


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "t.parquet"
    parquet.write_table(
        pa.table({"image": ["a.png", None], "class": [3, 4], "pixels": [b"x", b"y"]}), file
    )
    assert list(read_rows(file, ["image", "label"], ["group"])) == [
        (f"{file}, row 1", {"image": "a.png", "label": "3"}),
        (f"{file}, row 2", {"image": "", "label": "4"}),
    ]
    with pytest.raises(UserError, match=r"\(image, class, pixels\) is called 'x'"):
        list(read_rows(file, ["image"], named={"image": "x"}))
    words = r"t\.parquet, row 1: the image is data, not text; `datasets` can save images in tables$"
    with pytest.raises(UserError, match=words):  # and not the data itself
        list(read_rows(file, ["image"], named={"image": "pixels"}))
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_rows(file, ["image"]))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"t\.parquet: reading parquet needs pyarrow"):
        list(read_rows(tmp_path / "t.parquet", ["image"]))


def test_labels_may_stand_in_for_the_label() -> None:
    kinds = ("image", "label"), ("label_list", "split")
    expected = {"image": "path", "label_list": "Labels"}
    assert choose_columns("t", ["path", "Labels"], *kinds) == expected
    assert choose_columns("t", ["path", "class"], *kinds) == {"image": "path", "label": "class"}
    for there in (
        ["path"],
        ["path", "labels"],
    ):  # who asks for one label alone gets no list of them
        with pytest.raises(UserError, match="is called label or class or category"):
            choose_columns("t", there, *(kinds if there == ["path"] else (("image", "label"), ())))


def test_a_list_is_one_cell(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a", "label": [" x", 1, null]}\n')
    assert [cells for _, cells in read_rows(tmp_path / "t.jsonl", ("label",))] == [
        {"label": BETWEEN.join(["x", "1", ""])}
    ]


def test_a_number_that_is_none_is_an_empty_cell(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "a", "label": NaN}\n')
    assert [cells for _, cells in read_rows(tmp_path / "t.jsonl", ("label",))] == [{"label": ""}]


def test_any_line_of_json_may_bring_a_column(tmp_path: Path) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text(
        '{"path": "1.png", "label": "cat"}\n{"path": "2.png", "label": "dog", "split": "test"}\n'
    )
    rows = [cells for _, cells in read_rows(table, ["image", "label"], ["split"])]
    assert [row["split"] for row in rows] == ["", "test"]


def test_empty_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n1.png,cat\n,\n2.png,\n , \n")
    rows = [*read_rows(tmp_path / "a.csv", ["image", "label"])]
    assert [cells["image"] for _, cells in rows] == ["1.png", "2.png"]
    assert rows[1][0].endswith("line 4")
    with pytest.raises(UserError, match="has no rows of data"):
        cells(tmp_path / "t.csv", "path,label\n,\n,\n")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("path,label\n1.png,cat\n2.png,cat, tabby\n", "line 3: more cells than columns"),
        ("path,label,label\n1.png,cat,dog\n", "two columns are called 'label': rename one"),
    ],
)
def test_extra_cells_are_refused(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=hint):
        list(read_rows(tmp_path / "a.csv", ["image", "label"]))
