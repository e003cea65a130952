"""A cleaned copy follows the decisions; the data set is unchanged; an error writes nothing."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from rmadapter.curate.apply import Cleaned, apply_decisions, cleaned_name
from rmadapter.data.read import read_images
from rmadapter.errors import UserError

COLUMNS = ["image", "given", "suggested", "decision"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def decisions(path: Path, *rows: tuple[str, ...]) -> Path:
    """Write rows of (image, decision) or (image, given, suggested, decision)."""
    columns = ["image", "decision"] if len(rows[0]) == 2 else COLUMNS
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def data(colors: Path, tmp_path: Path) -> Path:
    shutil.copytree(colors, tmp_path / "data")
    (tmp_path / "data/classnames.json").write_text('{"red": "bright red"}')
    (tmp_path / "data/train/red/broken.png").write_bytes(b"x")
    return tmp_path / "data"


def test_folder_is_copied(data: Path, tmp_path: Path) -> None:
    before = contents(data)
    chosen = decisions(
        tmp_path / "d.csv",
        ("train/blue/0.png", "blue", "red", "relabel"),
        ("train/blue/1.png", "blue", "red", "Relabel: night_sky"),
        ("train/blue/2.png", "blue", "red", "keep"),
        ("train/blue/3.png", "blue", "red", ""),
        ("train/red/broken.png", "red", "", "drop"),
    )
    done = apply_decisions(data, chosen, tmp_path / "new/clean")
    expected = dict(before)
    del expected["train/red/broken.png"]
    expected["train/red/0-2.png"] = expected.pop("train/blue/0.png")  # 0.png is there already
    expected["train/night_sky/1-2.png"] = expected.pop("train/blue/1.png")
    assert contents(tmp_path / "new/clean") == expected
    assert contents(data) == before
    assert done == Cleaned(images=40, relabelled=2, dropped=1)
    images = read_images(tmp_path / "new/clean", progress=False)
    assert images["train"].classes == ("blue", "green", "night sky", "bright red")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/clean"]


def test_folder_without_splits(data: Path, tmp_path: Path) -> None:
    chosen = decisions(tmp_path / "d.csv", ("blue/0.png", "relabel:red"), ("red/5.png", "drop"))
    done = apply_decisions(data / "train", chosen, tmp_path / "clean")
    assert (tmp_path / "clean/red/0-2.png").read_bytes() == (data / "train/blue/0.png").read_bytes()
    assert not (tmp_path / "clean/red/5.png").exists()
    assert (done.images, done.dropped) == (24, 1)


def test_table_becomes_a_list(data: Path, tmp_path: Path) -> None:
    """One image is listed twice, under two labels: the given one says which row is meant."""
    table = data / "list.csv"
    lines = ["file;kind;part;patient", "train/blue/0.png;blue;train;p"]
    lines += ["train/blue/0.png;red;train;", "train/red/1.png;red;train;"]
    lines += ["train/red/2.png;blue;train;q", "test/red/1.png;red;test;"]
    table.write_text("\n".join(lines))
    before = contents(data)
    chosen = decisions(
        tmp_path / "d.csv",
        ("train/blue/0.png", "red", "", "drop"),
        ("train/red/2.png", "blue", "red", "relabel"),
    )
    columns = {"image": "file", "label": "kind", "split": "part", "group": "patient"}
    done = apply_decisions(table, chosen, tmp_path / "clean/list.csv", columns=columns)
    assert done == Cleaned(images=4, relabelled=1, dropped=1)
    assert (tmp_path / "clean/list.csv").read_text().splitlines() == [
        "path,label,split,group",
        "../data/train/blue/0.png,blue,train,p",
        "../data/train/red/1.png,red,train,",
        "../data/train/red/2.png,red,train,q",
        "../data/test/red/1.png,red,test,",
    ]
    assert contents(data) == before
    sets = read_images(tmp_path / "clean/list.csv", outside=True, progress=False)
    assert [len(images) for images in sets.values()] == [3, 1]


def test_class_without_images_is_named(data: Path, tmp_path: Path) -> None:
    rows = [(f"blue/{i}.png", "drop") for i in range(6)]
    chosen = decisions(tmp_path / "d.csv", *rows)
    assert apply_decisions(data / "train", chosen, tmp_path / "clean").without == ("blue",)


IMAGE = "train/blue/0.png"
WRONG = [
    ([(IMAGE, "blue", "red", "delete")], "d.csv, line 2: .*'delete'.* relabel"),
    ([(IMAGE, "blue", "red", "drop:red")], "decision 'drop:red'"),
    ([(IMAGE, "blue", "", "relabel")], "relabel:CLASS"),
    ([(IMAGE, "blue", "red", "relabel:rod")], "'rod'.*'red'"),
    ([("train/blue/9.png", "blue", "", "drop")], "'train/blue/9.png' is not a training image of"),
    ([("test/blue/0.png", "blue", "", "drop")], "'test/blue/0.png' is not a training image of"),
    ([(IMAGE, "red", "", "drop")], "with the label 'red'"),
    ([(IMAGE, "blue", "", "drop"), (IMAGE, "blue", "", "keep")], "line 3: 'train/blue/0.png'"),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_wrong_decisions_write_nothing(
    data: Path, tmp_path: Path, rows: list[tuple[str, ...]], message: str
) -> None:
    chosen = decisions(tmp_path / "d.csv", *rows)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        apply_decisions(data, chosen, tmp_path / "clean")
    assert contents(tmp_path) == before


def test_wrong_targets_and_tables_are_refused(data: Path, tmp_path: Path) -> None:
    chosen, without = decisions(tmp_path / "d.csv", (IMAGE, "drop")), tmp_path / "without.csv"
    without.write_text(f"image,given\n{IMAGE},blue\n")
    (tmp_path / "there").mkdir()
    (data / "list.csv").write_text("path,label\ntrain/blue/0.png,blue\ntrain/red/0.png,red\n")
    for named, source, table, out in (
        ("there:", data, chosen, tmp_path / "there"),
        ("lies in", data, chosen, data / "train/clean"),
        (r"--out .*\.csv", data / "list.csv", chosen, tmp_path / "clean"),
        (r"--out .*clean\.csv", data, chosen, tmp_path / "clean.csv"),
        ("decision", data, without, tmp_path / "clean"),
    ):
        with pytest.raises(UserError, match=named):
            apply_decisions(source, table, out)
    assert not (tmp_path / "clean").exists()


def test_full_disk_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def full(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(28, "No space left on device")
        shutil.copyfile(source, target)

    monkeypatch.setattr("rmadapter.curate.apply.shutil.copy2", full)
    chosen = decisions(tmp_path / "d.csv", (IMAGE, "blue", "", "drop"))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="No space left on device"):
        apply_decisions(data, chosen, tmp_path / "clean")
    assert contents(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_archive_becomes_a_folder(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images stay when the cache is cleared."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", colors / "train")
    chosen = decisions(tmp_path / "d.csv", ("red/0.png", "relabel:blue"))
    assert cleaned_name(archive) == "CLEAN"
    assert apply_decisions(archive, chosen, tmp_path / "clean").relabelled == 1
    shutil.rmtree(tmp_path / "cache")
    found = read_images(tmp_path / "clean")["all"]
    assert len(found) == len(read_images(colors)["train"])


def test_other_formats_become_a_list(colors: Path, tmp_path: Path) -> None:
    home = tmp_path / "set"
    shutil.copytree(colors / "train", home / "images")
    rows = [f"images/{label}/{n}.png,{label}" for label in ("blue", "red") for n in (0, 1)]
    (home / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    chosen = decisions(tmp_path / "d.csv", ("images/red/0.png", "relabel:blue"))
    with pytest.raises(UserError, match=r"ends in \.csv"):
        apply_decisions(home, chosen, tmp_path / "clean")
    done = apply_decisions(home, chosen, tmp_path / "clean.csv")
    assert done == Cleaned(images=4, relabelled=1, dropped=0)
    assert "set/images/red/0.png,blue" in (tmp_path / "clean.csv").read_text()


def test_folders_above_classes_are_not_splits(colors: Path, tmp_path: Path) -> None:
    """Their splits are in a table, which a copy of the folders would lose."""
    home = tmp_path / "set"
    shutil.copytree(colors / "train", home / "cam1")
    splits = ("train", "train", "test")
    rows = [
        f"cam1/{label}/{n}.png,{label},{splits[n]}" for label in ("blue", "red") for n in range(3)
    ]
    (home / "metadata.csv").write_text("\n".join(["file_name,label,split", *rows]))
    chosen = decisions(tmp_path / "d.csv", ("cam1/red/0.png", "relabel:blue"))
    assert cleaned_name(home) == "CLEAN.csv"
    apply_decisions(home, chosen, tmp_path / "clean.csv")
    found = read_images(tmp_path / "clean.csv", outside=True)
    assert {split: images.labels for split, images in found.items()} == {
        "train": (0, 0, 0, 1),
        "test": (0, 1),
    }


def test_prompt_names_are_copied(data: Path, tmp_path: Path) -> None:
    shutil.move(data, tmp_path / "domains/photo")
    photo = tmp_path / "domains/photo"
    shutil.move(photo / "classnames.json", tmp_path / "domains/classnames.json")
    (photo / "train/red/broken.png").unlink()
    chosen = decisions(tmp_path / "d.csv", ("train/blue/0.png", "drop"))
    apply_decisions(photo, chosen, tmp_path / "clean")
    names = ("blue", "green", "night sky", "bright red")
    assert read_images(tmp_path / "clean", progress=False)["train"].classes == names
    rows = [f"{label}/0.png,{label}" for label in ("blue", "green", "night_sky", "red")]
    (photo / "train/list.csv").write_text("\n".join(["path,label", *rows]))
    (photo / "train/classnames.json").write_text('{"red": "bright red"}')
    chosen = decisions(tmp_path / "e.csv", ("blue/0.png", "keep"))
    apply_decisions(photo / "train/list.csv", chosen, tmp_path / "lists/a.csv")
    found = read_images(tmp_path / "lists/a.csv", progress=False, outside=True)
    assert found["all"].classes == names
    (tmp_path / "lists/classnames.json").write_text('{"red": "crimson"}')
    with pytest.raises(UserError, match=r"classnames\.json"):
        apply_decisions(photo / "train/list.csv", chosen, tmp_path / "lists/b.csv")
    assert not (tmp_path / "lists/b.csv").exists()


def test_names_of_another_list_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "classnames.json").rename(tmp_path / "names.json")
    (data / "train/list.csv").write_text("path,label\nblue/0.png,blue\nred/0.png,red\n")
    chosen = decisions(tmp_path / "d.csv", ("blue/0.png", "keep"))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/classnames.json").write_text('{"red": "crimson"}')
    with pytest.raises(UserError, match=r"classnames\.json"):
        apply_decisions(data / "train/list.csv", chosen, tmp_path / "lists/a.csv")
    (tmp_path / "names.json").rename(data / "train/classnames.json")
    apply_decisions(data / "train/list.csv", chosen, tmp_path / "others/a.csv")
    assert "classnames.json" in capsys.readouterr().err


def test_groups_are_copied(colors: Path, tmp_path: Path) -> None:
    """The groups of class folders stand in a metadata.csv."""
    home = Path(shutil.copytree(colors / "train", tmp_path / "set"))
    rows = [f"{label}/{n}.png,{label},p{n}" for label in ("blue", "red") for n in (0, 1)]
    (home / "metadata.csv").write_text("\n".join(["file_name,label,group", *rows]))
    chosen = decisions(tmp_path / "d.csv", ("red/0.png", "drop"))
    with pytest.raises(UserError, match=r"--out .*clean"):
        apply_decisions(home, chosen, tmp_path / "clean")
    apply_decisions(home, chosen, tmp_path / "clean.csv")
    images = read_images(tmp_path / "clean.csv", progress=False, outside=True)["all"]
    assert images.groups == ("p0", "p1", "p1")


def test_name_of_a_copy_from_within_the_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cleaned_name(data) == "CLEAN"
    monkeypatch.chdir(data / "train")
    assert cleaned_name("..") == str(data.resolve().with_name("CLEAN"))
