"""Tables of images: delimiters, which column is which, rows with labels, and tables that are
refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rmadapter.data.formats import tables as reader
from rmadapter.data.formats.base import Row
from rmadapter.data.formats.tables import ITEM_SEPARATOR, choose_columns, read_rows, scan_table
from rmadapter.errors import UserError
from tests.hostile import tables


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_the_delimiter_gives_the_most_columns(tmp_path: Path, mark: str, name: str) -> None:
    lines = [["path", '"note, with; all\tthree"', "label"], ["a.png", "x", '"sea, horse; or"']]
    (tmp_path / name).write_text("\r\n".join(mark.join(cells) for cells in lines))
    assert list(read_rows(tmp_path / name, ["image", "label"])) == [
        (f"{tmp_path / name}, line 2", {"image": "a.png", "label": "sea, horse; or"})
    ]


def cells(path: Path, text: str, **named: str) -> dict[str, str]:
    path.write_text(text, encoding="utf-8")
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
    assert cells(tmp_path / "t.csv", text) == {"image": "a.png", "label": "cat"}


def test_the_first_usual_name_counts_and_a_named_column_more(tmp_path: Path) -> None:
    text = "image,path,class,label,subset,group,fold\n1,2,3,4,5,6,7\n"
    expected = {"image": "2", "label": "4", "split": "5", "group": "6"}
    assert cells(tmp_path / "t.csv", text) == expected
    found = cells(tmp_path / "t.csv", text, image="image", label="class", split="fold", group="")
    assert found == {"image": "1", "label": "3", "split": "7", "group": "6"}
    assert cells(tmp_path / "t.csv", "path,label,split\na,b\n")["split"] == ""  # there, and empty


SPLIT_ROWS = [("a.png", "cat", " Train"), ("b.png", "cat", ""), ("c.png", "dog", "testing")]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_splits_under_another_name_are_not_ignored(tmp_path: Path, name: str) -> None:
    """Whatever stands in the other columns; the user may name the column, or say that there are no
    splits. A column of one split, or of other words, is none of splits."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(SPLIT_ROWS, columns=["path", "label", "set"])
    frame["note"], frame["seen"], frame["number"] = ["train", "test", "x"], "test", [1, 2, None]

    def write() -> Path:
        match name:
            case "t.csv":
                frame.to_csv(tmp_path / name, index=False)
            case "t.jsonl":
                frame.to_json(tmp_path / name, orient="records", lines=True)
            case _:
                frame.to_parquet(tmp_path / name)
        return tmp_path / name

    for words in (SPLIT_ROWS, SPLIT_ROWS * 10):
        frame = pd.concat([frame] * (len(words) // len(frame)))
        with pytest.raises(UserError, match=r"'set' looks like splits: .* --split-column set"):
            scan_table(write(), columns={"split": ""})
        assert [*scan_table(tmp_path / name, columns={"split": "none"})] == ["all"]
    frame["set"] = frame["set"].replace("", "val")
    assert [*scan_table(write(), columns={"split": "set"})] == ["train", "val", "test"]
    frame["split"] = "train"
    assert [*scan_table(write())] == ["train"]
    assert [*scan_table(tmp_path / name, columns={"split": "none"})] == ["all"]
    del frame["split"]
    frame.loc[frame.index[-1], "set"] = "holdout"
    with pytest.raises(UserError, match="'set' looks like splits"):
        scan_table(write())
    frame.loc[frame.index[-1], "set"] = "garden"
    assert [*scan_table(write())] == ["all"]


@pytest.mark.parametrize(
    ("text", "named", "words"),
    [
        ("a,b\n", {}, r"\(a, b\) is called path or .* --image-column"),
        ("path,b\n", {}, r"\(path, b\) is called label or .* --label-column"),
        ("path,label\n", {"group": "patient"}, r"\(path, label\) is called 'patient'$"),
        ("path,label\n", {"label": "Label"}, "is called 'Label'$"),
        ("path,label\n", {"labels": "x"}, "unknown kind 'labels'; did you mean 'label'"),
        ("path,label\n", {}, "has no rows of data"),
        ("path,label\n,\n,\n", {}, "has no rows of data"),
        ("", {}, "the first line is empty"),
        ('path,label\n"a,b\n', {}, "not a readable CSV file"),
        ("path,label\n1.png,cat\n2.png,cat, tabby\n", {}, "line 3: more cells than columns"),
        ("path,label,label\n1.png,cat,dog\n", {}, "two columns are called 'label'"),
        ("path,label\n,b\n", {}, "line 2: the path is empty"),
        ("path,label\na,\n", {}, "line 2: the label is empty"),
        ("path,labels\na, ;|\n", {}, "line 2: the label is empty"),
        ("path,labels\na,\n", {}, "line 2: the label is empty"),
        ("path,labels\na,cat;dog\n", {}, "line 2.*'cat'.*'dog'"),
        ("path,labels\na,cat|dog\n", {}, "line 2.*'cat'.*'dog'"),
        ("path,label\nhttp://x/a.png,b\n", {}, "line 2: .* is a web address"),
        ("path,label,split\na,b,dev\n", {}, "line 2: split is 'dev'"),
        ("path,label,split\na,b,all\n", {}, "line 2: split is 'all'"),
        ("path,label,split\na,b\n", {}, "line 2: split is ''"),
    ],
)
def test_invalid_tables_are_refused(
    tmp_path: Path, text: str, named: dict[str, str], words: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        scan_table(tmp_path / "t.csv", columns=named)


def test_a_table_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\na.png,k\xe4fer\n")
    with pytest.raises(UserError, match=r"t\.csv, line 2: .*UTF-8.*; .*CSV UTF-8"):
        scan_table(tmp_path / "t.csv")


def test_column_options_are_named_only_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"called label or class or category$"):
        list(read_rows(tmp_path / "t.csv", ["label"]))


def test_a_table_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "t.parquet"
    table = {"image": ["a.png", None], "class": [3, 4], "pixels": [b"x", b"y"]}
    parquet.write_table(pa.table(table), file)
    assert list(read_rows(file, ["image", "label"], ["group"])) == [
        (f"{file}, row 1", {"image": "a.png", "label": "3"}),
        (f"{file}, row 2", {"image": "", "label": "4"}),
    ]
    for named, words in (
        ("x", r"\(image, class, pixels\) is called 'x'"),
        # and not the data itself
        (
            "pixels",
            r"t\.parquet, row 1: the image is data, .*`datasets` can save images in tables$",
        ),
    ):
        with pytest.raises(UserError, match=words):
            list(read_rows(file, ["image"], named={"image": named}))
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable parquet file"):
        list(read_rows(file, ["image"]))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"t\.parquet: reading parquet needs pyarrow"):
        list(read_rows(tmp_path / "t.parquet", ["image"]))


def test_a_column_called_labels_replaces_label_where_lists_are_read() -> None:
    kinds = ("image", "label"), ("label_list", "split")
    expected = {"image": "path", "label_list": "Labels"}
    assert choose_columns("t", ["path", "Labels"], *kinds) == expected
    assert choose_columns("t", ["path", "class"], *kinds) == {"image": "path", "label": "class"}
    for columns, optional in ((["path"], kinds[1]), (["path", "labels"], ())):
        with pytest.raises(UserError, match="is called label or class or category"):
            choose_columns("t", columns, kinds[0], optional)


@pytest.mark.parametrize(
    ("value", "cell"), [('[" x", 1, null]', ITEM_SEPARATOR.join(["x", "1", ""])), ("NaN", "")]
)
def test_values_of_json_become_text(tmp_path: Path, value: str, cell: str) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"path": "a", "label": {value}}}\n')
    assert [cells for _, cells in read_rows(tmp_path / "t.jsonl", ("label",))] == [{"label": cell}]


def test_any_line_of_json_may_bring_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"path": "1.png", "label": "cat"}\n{"path": "2.png", "label": "dog", "split": "test"}\n'
    )
    rows = [cells for _, cells in read_rows(tmp_path / "a.jsonl", ["image", "label"], ["split"])]
    assert [row["split"] for row in rows] == ["", "test"]


def test_empty_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n1.png,cat\n,\n2.png,\n , \n")
    rows = [*read_rows(tmp_path / "a.csv", ["image", "label"])]
    assert [cells["image"] for _, cells in rows] == ["1.png", "2.png"]
    assert rows[1][0].endswith("line 4")


def test_rows_keep_their_order_in_each_split(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("label,path,split\nb,2.png,test\na,1.png,Train\nb,0.png,training\n")
    found = {split: [row.label for row in rows] for split, rows in scan_table(table).items()}
    assert found == {"test": ["b"], "train": ["a", "b"]}


def test_the_user_may_name_columns(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("group\tclass\tfile\tpatient\na\tcat\t1.png\tp1\nb\tdog\t2.png\t\n")
    assert scan_table(table) == {
        "all": [Row("cat", tmp_path / "1.png", "a"), Row("dog", tmp_path / "2.png", "b")]
    }
    found = scan_table(table, columns={"image": "", "group": "patient", "label": "group"})
    assert found == {"all": [Row("a", tmp_path / "1.png", "p1"), Row("b", tmp_path / "2.png")]}


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../secret.png"])
def test_images_outside_the_folder_must_be_allowed(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,label\na/1.png,a\n{name},b\n")
    with pytest.raises(UserError, match=r"t\.csv, line 3: .* lies outside .*--allow-outside"):
        scan_table(tmp_path / "t.csv")
    assert scan_table(tmp_path / "t.csv", outside=True)["all"][1] == Row("b", tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("t.csv", "path,labels\n1.png,cat; cat;\n2.png,|dog\n", ["cat", "dog"]),
        ("t.csv", "path,label\n1.png,black;white\n2.png,a|b\n", ["black;white", "a|b"]),
        ("t.csv", "path,label,labels\n1.png,one,x;y\n2.png,two,z\n", ["one", "two"]),
        ("t.jsonl", '{"path": "1", "label": ["a;b"]}\n{"path": "2", "label": "c"}', ["a;b", "c"]),
        ("t.jsonl", '{"path": "1", "label": ["cat", "dog"]}', None),
    ],
)
def test_a_row_has_one_label(tmp_path: Path, name: str, text: str, labels: list[str]) -> None:
    (tmp_path / name).write_text(text)
    if labels:
        assert [row.label for row in scan_table(tmp_path / name)["all"]] == labels
    else:
        with pytest.raises(UserError, match=f"{name}, line 1.*'cat'.*'dog'"):
            scan_table(tmp_path / name)


@pytest.mark.ci
def test_hostile_tables_are_read_or_refused(tmp_path: Path) -> None:
    errors = []
    for _, content in tables.cases(seed=1, count=150):
        (tmp_path / "table.csv").write_bytes(content)
        try:
            rows = [row for rows in scan_table(tmp_path / "table.csv").values() for row in rows]
        except UserError as error:
            errors.append(str(error))
        else:
            assert all(row.label and row.image.is_relative_to(tmp_path) for row in rows)
    assert 0 < len(errors) < 150
    assert max(map(len, errors)) < 500


def test_an_image_that_many_rows_name_is_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three million rows of one photo took 84 seconds to read."""
    names: list[str] = []
    usual = reader.listed_image

    def counted(table: Path, where: str, name: str, outside: bool = False) -> Path:
        names.append(name)
        return usual(table, where, name, outside)

    monkeypatch.setattr(reader, "listed_image", counted)
    rows = "".join(f"{number % 2}.png,a\n" for number in range(1000))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    found = scan_table(tmp_path / "t.csv")["all"]
    assert names == ["0.png", "1.png"]
    assert [row.image for row in found] == [tmp_path / f"{n % 2}.png" for n in range(1000)]


def test_a_label_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "cat", "label": "\\ud800"}')
    with pytest.raises(UserError, match=r"line 1: .*ud800.* is not a class name"):
        scan_table(tmp_path / "t.jsonl")


def test_a_path_that_no_disk_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "\\ud800.png", "label": "cat"}')
    with pytest.raises(UserError, match=r"line 1: .*ud800"):
        scan_table(tmp_path / "t.jsonl")
