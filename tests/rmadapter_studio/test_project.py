"""The labels of a folder: written at once, read by `fit`, undone, kept when a process is killed or
the disk is full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rmadapter.data.formats.registry import locate
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter_studio import project as module
from rmadapter_studio.project import ADDED, FACTS, TABLE, Project, unlistable
from tests.helpers.small_images import picture, png, write_images

NAMES = ("cat_1.png", "cat_2.png", "sub/deep/owl_1.png", "sub/dog_1.png", "sub/dog_2.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", *NAMES)


def labelled(folder: Path) -> dict[str, str]:
    """Return the labels as every command reads them."""
    [images] = read_images(folder, progress=False).values()
    pairs = zip(range(len(images)), images.labels, strict=True)
    return {images.name(row): str(images.written[label]) for row, label in pairs}


def test_labels_are_read_by_every_command_and_images_stay(photos: Path) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    project = Project(photos)
    assert project.images == NAMES
    assert project.add_classes(["cat", " big  dog "]) == ["cat", "big dog"]
    project.label(["cat_1.png", "cat_2.png"], "cat")
    project.label(["sub/dog_1.png"], "Big_Dog")  # the same in a prompt
    project.label(["sub/deep/owl_1.png"], "owl")
    project.skip(["sub/dog_2.png"])
    expected = {"cat_1.png": "cat", "cat_2.png": "cat"}
    expected |= {"sub/dog_1.png": "big dog", "sub/deep/owl_1.png": "owl"}
    assert labelled(photos) == expected
    assert project.counts() == {"cat": 2, "big dog": 1, "owl": 1}
    again = Project(photos)
    assert (again.labels, again.classes) == (expected, ["cat", "big dog", "owl"])
    assert again.skipped == {"sub/dog_2.png"}
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before


def test_images_of_runs_are_not_images_of_the_project(photos: Path) -> None:
    """Neither the page nor `fit` counts what a run below `runs` holds; a folder of that name may
    hold images beside runs."""
    project = Project(photos)
    project.label(["cat_1.png", "cat_2.png"], "cat")
    project.label(["sub/dog_1.png"], "dog")
    before = locate(photos).read()
    for kept, name in (("ridge-1", "run.json"), ("stopped", "split.json")):
        write_images(photos / "runs" / kept, "cat_1.png", "heat/dog_1.png")
        (photos / "runs" / kept / name).write_text("{}")
        (photos / "runs" / kept / "report.html").touch()
    project.scan()
    assert project.images == NAMES == Project(photos).images
    after = locate(photos).read()
    assert (after.splits, after.ignored) == (before.splits, before.ignored)
    write_images(photos / "runs", "of a river/cat_1.png")
    project.scan()
    assert {*project.images} == {*NAMES, "runs/of a river/cat_1.png"}


def test_nothing_is_written_before_the_first_label(photos: Path) -> None:
    Project(photos)
    assert sorted(path.name for path in photos.iterdir()) == ["cat_1.png", "cat_2.png", "sub"]


def test_undo_restores_labels_classes_and_skips(photos: Path) -> None:
    project = Project(photos)
    states = []
    steps = (
        lambda: project.add_classes(["cat"]),
        lambda: project.label(["cat_1.png", "cat_2.png"], "cat"),
        lambda: project.label(["cat_2.png"], "owl"),
        lambda: project.skip(["cat_1.png", "sub/dog_1.png"]),
        lambda: project.label(["cat_2.png"], ""),
        lambda: project.label(["cat_1.png"], project.none_label()),
        lambda: project.remove_class("none"),
    )
    for step in steps:
        states.append((dict(project.labels), [*project.classes], {*project.skipped}))
        step()
    project.skip([])  # changes nothing, so there is nothing to undo
    for labels, classes, skipped in reversed(states):
        project.undo()
        assert (project.labels, project.classes, project.skipped) == (labels, classes, skipped)
        again = Project(photos)
        assert (again.labels, again.skipped) == (labels, skipped)
    assert not (photos / TABLE).exists()
    with pytest.raises(UserError, match="nothing to undo"):
        project.undo()


def test_each_person_undoes_their_own_steps(photos: Path) -> None:
    """What another one has marked since, and classes that hold images, stay."""
    project = Project(photos)
    project.label(["cat_1.png", "cat_2.png"], "cat", by="anna")
    project.label(["sub/dog_1.png"], "dog", by="ben")
    project.label(["cat_2.png", "sub/dog_2.png"], "owl", by="ben")
    project.label(["sub/dog_1.png"], "cat", by="anna")
    project.add_classes(["fox"], by="ben")
    assert (project.undoable("anna"), project.undoable("cleo")) == (True, False)
    with pytest.raises(UserError, match="nothing to undo"):
        project.undo("cleo")
    assert project.undo("anna") == ["sub/dog_1.png"]
    assert project.labels["sub/dog_1.png"] == "dog"
    assert project.undo("anna") == ["cat_1.png"]  # ben has labelled the other one
    expected = {"cat_2.png": "owl", "sub/dog_1.png": "dog", "sub/dog_2.png": "owl"}
    assert (project.labels, project.classes) == (expected, ["dog", "owl", "fox"])
    assert not project.undoable("anna")
    project.undo("ben")
    assert sorted(project.undo("ben")) == ["cat_2.png", "sub/dog_2.png"]
    assert project.labels == {"cat_2.png": "cat", "sub/dog_1.png": "dog"}
    assert project.classes == ["dog", "cat"]
    again = Project(photos)
    assert (again.labels, again.classes) == (project.labels, project.classes)


def test_none_of_these_is_the_catch_all_class(photos: Path) -> None:
    project = Project(photos)
    assert project.none_label() == "none"
    project.add_classes(["cat", "Other"])
    assert project.none_label() == "Other"


@pytest.mark.ci
def test_a_killed_process_loses_nothing(photos: Path) -> None:
    """It is killed while it labels and skips in an endless loop."""
    code = """
import sys
from rmadapter_studio.project import Project
project = Project(sys.argv[1])
with project.alone():
    for turn in range(10**9):
        project.label(project.images[:4], f"class {turn}")
        project.skip([project.images[4]])
        print(turn, flush=True)
        project.label([project.images[4]], "x")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(photos)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        seen = [process.stdout.readline() for _ in range(20)]
        process.kill()
        last = int([*seen, *process.stdout][-1])
    project = Project(photos)
    [label] = {project.labels[name] for name in NAMES if name != project.images[4]}
    assert label in (f"class {last}", f"class {last + 1}")
    assert labelled(photos) == project.labels
    with project.alone():
        project.label([NAMES[0]], "cat")
    assert not [path for path in photos.iterdir() if path.suffix == ".lock"]


def test_one_process_at_a_time(photos: Path) -> None:
    with Project(photos).alone(), pytest.raises(UserError, match="another process"):  # noqa: SIM117
        with Project(photos).alone():
            pass


@pytest.mark.parametrize("name", ["write_imagefolder", "write_json"])
def test_full_disk_changes_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project = Project(photos)
    project.label(["cat_1.png"], "cat")

    def fail(path: Path, *_: object) -> None:
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(UserError, match="No space"):
        project.label(["cat_2.png"], "owl")
    assert (project.labels, project.classes) == ({"cat_1.png": "cat"}, ["cat"])
    monkeypatch.undo()
    project.undo()
    assert project.labels == Project(photos).labels


def test_edits_by_hand_are_kept(photos: Path) -> None:
    project = Project(photos)
    project.label(["cat_1.png"], "cat")
    (photos / TABLE).write_text("file_name,label\ncat_1.png,kitten\nsub/dog_1.png,dog\n")
    project.label(["cat_2.png"], "cat")
    assert project.labels == {"cat_1.png": "kitten", "cat_2.png": "cat", "sub/dog_1.png": "dog"}
    assert project.labels == Project(photos).labels
    project.undo()
    assert labelled(photos) == {"cat_1.png": "kitten", "sub/dog_1.png": "dog"}


def test_images_that_moved_away_keep_their_labels(photos: Path) -> None:
    project = Project(photos)
    project.label(NAMES[:2], "cat")
    (photos / "cat_1.png").rename(photos.parent / "away.png")
    project.scan()
    project.label(["sub/dog_1.png"], "dog")
    again = Project(photos)
    assert again.labels["cat_1.png"] == "cat"
    assert again.missing == ["cat_1.png"]
    with pytest.raises(UserError, match=r"cat_1\.png.*no such image"):
        again.label(["cat_1.png"], "dog")


@pytest.mark.parametrize("name", ["../photos/cat_1.png", "/etc/passwd", "", ".", "sub", "cat_1"])
def test_only_images_of_the_folder_can_be_labelled(photos: Path, name: str) -> None:
    project = Project(photos)
    for call in (lambda: project.label([name], "cat"), lambda: project.skip([name])):
        with pytest.raises(UserError, match="no such image"):
            call()
    assert not (photos / TABLE).exists()
    assert project.classes == []


@given(
    stems=st.lists(
        st.text(
            st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
            min_size=1, max_size=20,
        ),
        min_size=2, max_size=4, unique=True,
    ),
    label=st.text(max_size=12),
)  # fmt: skip
@settings(
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_odd_names_are_labelled_or_left_out(
    tmp_path_factory: pytest.TempPathFactory, stems: list[str], label: str
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    for stem in stems:
        (folder / f"{stem}.png").write_bytes(png("cat"))
    project = Project(folder)
    for name in project.images:
        assert unlistable(name) == ""
    try:
        project.label(project.images, label)
    except UserError:
        assert not (folder / TABLE).exists()
        return
    assert Project(folder).labels == project.labels
    if project.labels:
        assert labelled(folder) == project.labels


@pytest.mark.parametrize(
    "name",
    [
        "=1+1.png",
        "-a,b;c.png",
        "a\nb.png",
        'a"b.png',
        "a\\b.png",
        "a\rb.png",
        "test/x.png",
        "🦓.png",
    ],
)
def test_hostile_names_are_read_back(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, "cat_1.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    picture("dog").save(tmp_path / name)
    project = Project(tmp_path)
    project.label([name], "dog = x")
    project.label(["cat_1.png"], "cat")
    assert labelled(tmp_path) == project.labels == Project(tmp_path).labels
    assert project.labels == {name: "dog = x", "cat_1.png": "cat"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_no_table_can_hold_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "cat_1.png")
    for name in (b"a\xff.png", b" b.png", b"http:/x.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(png("dog"))
    project = Project(tmp_path)
    assert project.images == ("cat_1.png",)
    assert len(project.left_out) == 3
    assert all("rename it" in reason for reason in project.left_out)


def test_added_images_never_replace_others(photos: Path, tmp_path: Path) -> None:
    project = Project(photos)
    for colour in ("cat", "dog"):
        (tmp_path / "new.png").write_bytes(png(colour))
        project.add_image(tmp_path / "new.png", "a.png")
    assert project.images[-2:] == (f"{ADDED}/a.png", f"{ADDED}/a-2.png")
    assert (photos / ADDED / "a.png").read_bytes() == png("cat")
    assert {*Project(photos).images} == {*project.images}


def test_images_are_not_added_through_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / ADDED).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "new.png").write_bytes(png("cat"))
    with pytest.raises(UserError, match=ADDED):
        Project(photos).add_image(tmp_path / "new.png", "a.png")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_too_many_images_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", len(NAMES))
    project = Project(photos)
    (tmp_path / "new.png").write_bytes(png("cat"))
    with pytest.raises(UserError, match="at most 5 images"):
        project.add_image(tmp_path / "new.png", "a.png")
    assert (tmp_path / "new.png").exists()
    monkeypatch.setattr(module, "MAX_IMAGES", 4)
    with pytest.raises(UserError, match=f"{photos.name}: holds 5 images"):
        Project(photos)


def test_too_many_classes_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLASSES", 2)
    project = Project(photos)
    with pytest.raises(UserError, match="at most 2 classes"):
        project.add_classes(["a", "b", "c"])
    with pytest.raises(UserError, match="100 characters"):
        project.label(["cat_1.png"], "x" * 101)
    assert project.classes == []


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({TABLE: "file_name,label,caption\ncat_1.png,cat,a cat\n"}, "caption"),
        ({TABLE: "file_name,label,split\ncat_1.png,cat,test\n"}, "'test'"),
        ({TABLE: "file_name,label\ncat_1.png,cat\ncat_1.png,dog\n"}, "two labels"),
        ({TABLE: "file_name,label\n../x.png,cat\n"}, r"\.\./x\.png"),
        (
            {"metadata.jsonl": '{"file_name": "cat_1.png", "label": "cat"}\n'},
            "already holds labels",
        ),
        ({FACTS: "{"}, FACTS),
        ({FACTS: '{"project": 2}'}, "not of this program"),
        ({FACTS: '{"project": 1, "classes": "cat", "skipped": []}'}, "damaged"),
        ({FACTS: '{"project": 1, "classes": ["a", "a"], "skipped": []}'}, "damaged"),
        ({FACTS: json.dumps({"project": 1, "classes": [""], "skipped": []})}, "empty prompt name"),
        ({TABLE: "file_name,label\ncat_1.png,Cat\ncat_2.png,cat\n"}, "both called"),
        (
            {FACTS: json.dumps({"project": 1, "classes": ["Cat", "cat"], "skipped": []})},
            "both called",
        ),
    ],
)
def test_other_labels_and_damaged_files_are_refused(
    photos: Path, files: dict[str, str], named: str
) -> None:
    for name, text in files.items():
        (photos / name).write_text(text)
    with pytest.raises(UserError, match=named):
        Project(photos)
    for name, text in files.items():
        assert (photos / name).read_text() == text


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "gone", "/proc", "a\0b"):
        with pytest.raises(UserError):
            Project(folder)
    assert Project(tmp_path).images == ()


def test_a_disk_that_refuses_keeps_the_upload(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(photos)
    (tmp_path / "new.png").write_bytes(png("cat"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.shutil, "move", fail)
    with pytest.raises(UserError, match="No space left"):
        project.add_image(tmp_path / "new.png", "a.png")
    assert project.images == NAMES


def test_many_images_of_one_name_are_added_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, looked = Project(photos), []

    def exists(path: Path) -> bool:
        looked.append(path)
        return path.exists()

    monkeypatch.setattr("rmadapter_studio.project.os.path.lexists", exists)
    for number in range(20):
        (tmp_path / "new.png").write_bytes(png("cat"))
        name = f"a-{number + 1}.png" if number else "a.png"
        assert project.add_image(tmp_path / "new.png", "a.png") == f"added/{name}"
    assert len(looked) < 3 * 20  # and not one more for each image before
