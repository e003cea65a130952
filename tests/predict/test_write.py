"""Files of answers and sorted images: formats, and how an interrupted command is resumed."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pytest

from rmadapter.answers.answer import AnswerRow
from rmadapter.errors import UserError
from rmadapter.predict.write import AnswerFile, Sorter, only_writer
from tests.helpers.shell import limited_file_size

COLUMNS = ["image", "label", "probability", "unsure"]


def row(image: str, label: str = "sea_horse") -> AnswerRow:
    return {"image": image, "label": label, "probability": 0.75, "unsure": label == "unsure"}


def started(path: Path, key: str = "k") -> AnswerFile:
    file = AnswerFile(path, COLUMNS, key)
    file.open()
    return file


def test_csv_and_json_lines_hold_the_rows(tmp_path: Path) -> None:
    bad: AnswerRow = {"image": "c.png", "bad": "c.png: not an image"}
    rows = [row("a,b.png"), row("caf\udce9.png", "unsure"), bad]
    for suffix in (".csv", ".jsonl"):
        file = started(tmp_path / f"answers{suffix}")
        file.write(rows)
        assert not file.path.exists()
        file.finish()
        assert not file.partial.exists()
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as text:
        assert list(csv.reader(text)) == [
            COLUMNS,
            ["a,b.png", "sea_horse", "0.75", "false"],
            ["caf\\udce9.png", "unsure", "0.75", "true"],
        ]  # fmt: skip
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows[:2]


def test_csv_has_no_formula_and_paths_still_work(tmp_path: Path) -> None:
    file = started(tmp_path / "answers.csv")
    file.write([row("=1+1.png", '=HYPERLINK("http://x")'), row("-x/a.png")])
    file.finish()
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as text:
        cells = [line[:2] for line in csv.reader(text)][1:]
    assert cells == [["./=1+1.png", '\'=HYPERLINK("http://x")'], ["./-x/a.png", "sea_horse"]]


def test_parquet_keeps_numbers_and_texts(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [row("a.png") | {"unfamiliar": 0.5}, row("b.png") | {"unfamiliar": 1.0}]
    file = AnswerFile(tmp_path / "answers.parquet", [*COLUMNS, "unfamiliar"], "k")
    file.open()
    file.write(rows)
    file.finish()
    assert parquet.read_table(file.path).to_pylist() == rows


def test_prediction_sets_are_lists_where_the_format_has_lists(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sets = [["cat", "a, b"], ["cat"]]
    rows = [row(f"{n}.png") | {"set": json.dumps(labels)} for n, labels in enumerate(sets)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        file = AnswerFile(tmp_path / f"answers{suffix}", [*COLUMNS, "set"], "k")
        file.open()
        file.write(rows)
        file.finish()
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["set"] for line in lines] == sets
    assert parquet.read_table(tmp_path / "answers.parquet")["set"].to_pylist() == sets
    with open(tmp_path / "answers.csv", newline="", encoding="utf-8") as text:
        assert [json.loads(line["set"]) for line in csv.DictReader(text)] == sets


def test_interrupted_file_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.csv"
    started(out).write([row("a.png"), row("a.png"), {"image": "bad.png", "bad": "bad.png: no"}])
    with open(out.with_name("answers.csv.partial"), "a", encoding="utf-8") as file:
        file.write('{"image": "b.png", "lab')  # what a kill leaves
    again = started(out)
    wanted = [Path(name) for name in ("a.png", "b.png", "a.png", "bad.png", "a.png")]
    assert again.missing(wanted) == [Path("b.png"), Path("a.png")]  # the third a.png has no row yet
    with pytest.raises(UserError, match=r"csv\.partial: .* a\.png"):
        again.missing([Path("c.png"), Path("b.png")])
    assert again.missing([Path("b.png")], moved=True) == [Path("b.png")]  # the others were moved
    assert again.missing([Path("a.png")] * 2) == []  # a bad file needs no row
    again.write([row("b.png")])
    again.finish()
    images = [line.split(",")[0] for line in out.read_text("utf-8").splitlines()[1:]]
    assert images == ["a.png", "a.png", "b.png"]


def test_unusable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "answers.csv"
    started(out).write([row("a.png")])
    with pytest.raises(UserError, match=r"answers\.csv\.partial"):
        started(out, "other")
    with open(out.with_name("answers.csv.partial"), "a", encoding="utf-8") as file:
        file.write('{"image": 3}\n')
    with pytest.raises(UserError, match="line 3"):
        started(out)
    out.write_text("mine")
    with pytest.raises(UserError, match=r"answers\.csv:"):
        started(out)
    with pytest.raises(UserError, match=r"ends in \.csv, \.jsonl, \.parquet"):
        started(tmp_path / "answers.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pyarrow"):
        started(tmp_path / "answers.parquet")
    assert not list(tmp_path.glob("*.parquet*"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("probability", "=1+1"), ("probability", 10**400), ("probability", [1]),
        ("probability", float("nan")), ("probability", True), ("unsure", 1), ("unsure", "no"),
        ("label", 3), ("label", {}), ("label", ["a"]), ("label", True), ("image", None),
    ],
)  # fmt: skip
def test_a_row_with_a_cell_of_another_type_is_refused(
    tmp_path: Path, column: str, value: object
) -> None:
    """Before any image is read, in every format."""
    file = started(tmp_path / "answers.parquet")
    file.write([row("a.png")])
    with open(file.partial, "a", encoding="utf-8") as lines:
        lines.write(json.dumps({**row("b.png"), column: value}) + "\n")
    with pytest.raises(UserError, match=r"answers\.parquet\.partial, line 3"):
        started(tmp_path / "answers.parquet")


def test_full_disk_loses_no_written_row(tmp_path: Path) -> None:
    file = started(tmp_path / "answers.csv")
    file.write([row("a.png")])
    with limited_file_size(400), pytest.raises(UserError, match=r"answers\.csv\.partial"):
        file.write([row(f"{i}.png") for i in range(50)])
    again = started(tmp_path / "answers.csv")
    assert again.done["a.png"] == 1
    assert again.done.total() < 10


def test_file_is_locked_for_one_process(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a.csv"):
        with pytest.raises(UserError, match=r"a\.csv"), only_writer(tmp_path / "a.csv"):
            pass
        with only_writer(tmp_path / "b.csv"):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"a\.csv"), only_writer(tmp_path / "file/a.csv"):
        pass


# Sorting


def image(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.as_posix(), encoding="utf-8")
    return path


def test_taken_names_get_a_number(tmp_path: Path) -> None:
    image(tmp_path / "out/cat/a-4.jpg")
    sorter = Sorter(tmp_path / "out", ["cat", "dog"])
    names = ["a.jpg", "a-2.jpg", "A.JPG", "a.jpg", "a.jpg"]
    found = [sorter.place(tmp_path / str(i) / name, "cat").name for i, name in enumerate(names)]
    assert found == ["a.jpg", "a-2.jpg", "A-3.JPG", "a-5.jpg", "a-6.jpg"]
    assert sorter.place(tmp_path / "a.jpg", "dog") == tmp_path / "out/dog/a.jpg"


@pytest.mark.parametrize("how", ["copy", "move", "link"])
def test_images_are_copied_moved_or_linked_and_never_overwritten(tmp_path: Path, how: str) -> None:
    source, sorter = image(tmp_path / "in/a.jpg", "new"), Sorter(tmp_path / "out", ["cat"], how)  # type: ignore[arg-type]
    os.utime(source, (1e9, 1e9))
    there = image(tmp_path / "out/cat/b.jpg", "old")
    sorter.put(source, there)
    assert (there.read_text(), source.read_text()) == ("old", "new")
    place = sorter.place(source, "cat")
    sorter.put(source, place)
    assert (place.read_text(), place.stat().st_mtime) == ("new", 1e9)
    assert source.exists() == (how != "move")
    assert place.is_symlink() == (how == "link")
    assert sorted(path.name for path in place.parent.iterdir()) == ["a.jpg", "b.jpg"]


def test_moving_a_link_and_between_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, sorter = image(tmp_path / "in/a.jpg", "x"), Sorter(tmp_path / "out", ["cat"], "move")
    (tmp_path / "in/link.jpg").symlink_to("a.jpg")
    sorter.put(tmp_path / "in/link.jpg", tmp_path / "out/cat/link.jpg")
    assert (tmp_path / "out/cat/link.jpg").read_text() == "x"
    assert not (tmp_path / "in/link.jpg").is_symlink()

    def another_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", another_disk)
    source.chmod(0o444)  # as cameras write them
    sorter.put(source, tmp_path / "out/cat/a.jpg")
    assert (tmp_path / "out/cat/a.jpg").read_text() == "x"
    assert os.access(tmp_path / "out/cat/a.jpg", os.W_OK)
    assert (tmp_path / "out/cat/a.jpg").stat().st_mode & 0o200
    assert not source.exists()


def test_killed_process_is_resumed(tmp_path: Path) -> None:
    """The row is written first, so that its place is known."""
    source, place = image(tmp_path / "in/a.jpg", "x"), tmp_path / "out/cat/a.jpg"
    sorter = Sorter(tmp_path / "out", ["cat"])
    bad: AnswerRow = {"image": "gone.jpg", "bad": "no image"}
    sorter.resume([{"image": str(source), "sorted_to": str(place)}, bad])
    assert place.read_text() == "x"
    assert sorter.place(source, "cat").name == "a-2.jpg"
    mover = Sorter(tmp_path / "out", ["cat"], "move")
    mover.resume([{"image": "moved.jpg", "sorted_to": str(place)}])


def test_folder_names_are_valid_on_any_system(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path, ["sea_horse", "a/b", "..", "Käfer "])
    assert list(sorter.folders.values()) == ["sea_horse", "a_b", "_", "Käfer"]
    odd = Sorter(tmp_path, ["a. .", "aux", "NUL.txt", "com1 .x", "console"])
    assert list(odd.folders.values()) == ["a", "aux_", "NUL.txt_", "com1 .x_", "console"]
    with pytest.raises(UserError, match="'a/b' and 'A_b'"):
        Sorter(tmp_path, ["a/b", "A_b"])


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    one = tmp_path / "in/a.jpg"
    for root in (tmp_path / "in", tmp_path / "in/sorted/new"):
        with pytest.raises(UserError, match=str(tmp_path / "in")):
            Sorter(root, ["cat"]).check([tmp_path / "in"], [one])
    Sorter(tmp_path / "inner", ["cat"]).check([tmp_path / "in"], [one, one])
    with pytest.raises(UserError, match=r"a\.jpg"):
        Sorter(tmp_path / "inner", ["cat"], "move").check([], [one, one])
    for searched, images in (
        ([tmp_path / "in/cat"], []),
        ([tmp_path / "in/cat/old"], []),
        ([], [tmp_path / "in/cat/a.jpg"]),
    ):
        with pytest.raises(UserError, match=str(tmp_path / "in/cat")):
            Sorter(tmp_path / "in", ["cat"]).check(searched, images)
    Sorter(tmp_path / "in", ["cat"]).check([tmp_path / "in/dog"], [one])
    image(tmp_path / "file")
    with pytest.raises(UserError, match=str(one)):
        Sorter(tmp_path / "file", ["cat"], "link").put(one, tmp_path / "file/cat/a.jpg")


def test_images_of_an_archive_are_only_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They must stay in the cache, where the next command finds the archive's images."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    inside = image(tmp_path / "cache/unpacked/photos-1/cat/a.jpg")
    for how in ("move", "link"):
        with pytest.raises(UserError, match=f"--{how}$"):
            Sorter(tmp_path / "out", ["cat"], how).check([], [image(tmp_path / "in/b.jpg"), inside])  # type: ignore[arg-type]
    Sorter(tmp_path / "out", ["cat"]).check([], [inside])


def test_image_with_two_paths_is_moved_once(tmp_path: Path) -> None:
    one = image(tmp_path / "in/a.jpg")
    (tmp_path / "same").symlink_to("in")
    (tmp_path / "in/link.jpg").symlink_to("a.jpg")  # which is moved as a link, beside its target
    sorter = Sorter(tmp_path / "out", ["cat"], "move")
    sorter.check([], [one, tmp_path / "in/link.jpg"])
    with pytest.raises(UserError, match=r"in/a\.jpg"):
        sorter.check([], [one, tmp_path / "same/a.jpg"])
