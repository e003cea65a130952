"""Folders, tables and annotated images, good and bad, each written by the test; and data in
memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.data.read import (
    ImageSet,
    image_list,
    image_set,
    load_image,
    open_object,
    read_images,
)
from rmadapter.errors import UserError
from tests.helpers.formats import coco_file, yolo
from tests.helpers.shots import noisy_colors, write_tiny_images
from tests.helpers.small_images import picture, write_images
from tests.hostile import bombs


def names(images: ImageSet) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def refused(data: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_images(data)
    assert "\n" not in str(caught.value)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "sea_horse/b.png", "sea_horse/deep/er/a.jpg", "Cat/1.png")
    write_tiny_images(tmp_path, "bird--of_prey /x.PNG", "top.png", ".hidden/a.png")
    write_tiny_images(tmp_path, "Cat/.hidden.png", "Cat/.git/a.png", "__MACOSX/a.png")
    for name in ("notes.txt", "features.h5"):
        (tmp_path / "Cat" / name).write_bytes(b"")
    (images,) = read_images(tmp_path).values()
    assert images.classes == ("bird of prey", "Cat", "sea horse")
    expected = ["bird--of_prey /x.PNG", "Cat/1.png", "sea_horse/b.png", "sea_horse/deep/er/a.jpg"]
    assert names(images) == expected
    assert images.labels == (0, 1, 2, 2)
    assert list(read_images(str(tmp_path))) == ["all"]


def test_splits_share_the_classes_of_train(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "train/b_b/1.png", "train/a/1.png", "train/c/1.png")
    write_tiny_images(tmp_path, "Validation/a/1.png", "test/c/1.png")
    write_tiny_images(tmp_path, "test/b-b/1.png")  # another spelling of the same class
    sets = read_images(tmp_path)
    assert list(sets) == ["train", "val", "test"]
    assert {images.classes for images in sets.values()} == {("a", "b b", "c")}
    assert sets["test"].labels == (1, 2)
    assert names(sets["val"]) == ["Validation/a/1.png"]
    write_tiny_images(tmp_path, "test/zebra/1.png")
    refused(tmp_path, "test has a class 'zebra' that train lacks")


@pytest.mark.parametrize("write", [yolo, coco_file])
def test_crops_use_classnames_json(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    data = write(tmp_path / "set")
    (tmp_path / "set/classnames.json").write_text('{"cat": "house cat"}')
    (images,) = read_images(data, crops=True).values()
    assert images.classes == ("house cat", "dog")


def test_all_boxes_of_an_unreadable_photo_are_left_out(tmp_path: Path) -> None:
    table = coco_file(tmp_path)
    value = json.loads(table.read_text())
    for mark in value["annotations"][:]:
        value["annotations"].append({**mark, "category_id": 1, "bbox": [0, 0, 2, 2]})
    value["annotations"].append({**mark, "bbox": [1, 1, 2.0, 0.0]})  # as two of COCO's own
    table.write_text(json.dumps(value))
    found = read_images(table, crops=True)["all"]
    assert len(found) == 4
    assert found.ignored == "1 file ignored: boxes without width or height 1"
    (tmp_path / "cat_1.png").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"cat_1\.png: not an image in .*; --skip-bad"):
        read_images(table, crops=True)
    assert len(read_images(table, crops=True, skip_bad=True)["all"]) == 2


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ("big_cat big-cat", "'big-cat' and 'big_cat' are both called"),
        ("Crane crane", "'Crane' and 'crane' are both called"),  # CLIP reads lower case
        ("_", "'_' has an empty prompt name"),
    ],
)
def test_ambiguous_class_names_are_refused(tmp_path: Path, folders: str, words: str) -> None:
    refused(write_tiny_images(tmp_path, *(f"{name}/1.png" for name in folders.split())), words)


def test_bad_files_are_refused_or_skipped(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png")
    write_tiny_images(tmp_path, "test/a/1.png", "test/b/1.png", "test/c/1.png")
    (tmp_path / "train/a/2.png").write_bytes(b"")
    (tmp_path / "train/b/1.png").write_bytes(b"noise")
    (tmp_path / "train/c").mkdir()
    refused(
        tmp_path, r"a/2\.png: .*0 bytes.* \(the first of 3 bad files or empty folders\); --skip-bad"
    )
    sets = read_images(tmp_path, skip_bad=True)
    assert sets["train"].classes == sets["test"].classes == ("a",)
    assert names(sets["train"]) == ["train/a/1.png"]
    expected = ["train/a/2.png", "train/b/1.png", "train/c"]
    assert [text.split(":")[0] for text in sets["train"].skipped] == expected
    assert "0 bytes" in sets["train"].skipped[0]
    skipped = [f"test/{name}/1.png: no train images of its class" for name in "bc"]
    assert [*sets["test"].skipped] == skipped
    (tmp_path / "train/a/1.png").unlink()
    with pytest.raises(UserError, match="no readable images in train"):
        read_images(tmp_path, skip_bad=True)


def test_names_that_are_not_ascii(tmp_path: Path) -> None:
    apart, joined = unicodedata.normalize("NFD", "Käfer_grün"), "Käfer grün"
    write_tiny_images(tmp_path, f"{apart}/Ä ü.png", "象/写真.png")
    images = read_images(tmp_path)["all"]
    assert images.classes == (joined, "象")
    assert images.name(1) == "象/写真.png"


def test_symlink_loops_end_and_add_no_other_class(tmp_path: Path) -> None:
    root = write_tiny_images(tmp_path / "data", "cat/1.png", "dog/1.png")
    elsewhere = write_tiny_images(tmp_path / "elsewhere", "far/2.png")
    for link, target in {"up": root, "self": root / "cat", "loop": root / "cat/loop"}.items():
        (root / "cat" / link).symlink_to(target)
    (root / "dog/out").symlink_to(tmp_path)
    (root / "eel").symlink_to(elsewhere)  # a class folder that is a link is fine
    assert names(read_images(root)["all"]) == ["cat/1.png", "dog/1.png", "eel/far/2.png"]
    (root / "cat/ring.png").symlink_to(root / "cat/ring.png")
    refused(root, r"ring\.png: not a readable image")


def test_classnames_json(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "airplanes/1.png", "t_shirt/1.png", "zebra/1.png")
    file = tmp_path / "classnames.json"
    file.write_text(json.dumps({"airplanes": "airplane", "t_shirt": "T-shirt", "unused": "x"}))
    found = read_images(tmp_path)["all"]
    assert found.classes == ("airplane", "T-shirt", "zebra")
    assert found.written == found.subset([1]).written == ("airplanes", "t_shirt", "zebra")
    other = read_images(tmp_path, names={"t_shirt": "shirt"})["all"]
    assert (other.classes, other.written) == (("airplane", "shirt", "zebra"), found.written)
    with pytest.raises(ValueError, match="2 labels as written for 3 classes"):
        replace(found, written=found.written[:2])
    for text, words in (
        ('{"airplanes": " "}', "'airplanes' has an empty prompt name"),
        ('{"airplanes": "Zebra"}', "'airplanes' and 'zebra' are both called"),
        ("{", "classnames.json: "),
        ("[]", "classnames.json: "),
        ('{"airplanes": 1}', "classnames.json: "),
    ):
        file.write_text(text)
        refused(tmp_path, words)


def test_classnames_beside_the_domains_serve_a_domain_of_splits(tmp_path: Path) -> None:
    for domain in ("desk", "web"):
        write_tiny_images(tmp_path / domain, "train/bike/1.png", "test/bike/2.png")
    (tmp_path / "classnames.json").write_text('{"bike": "bicycle"}')
    assert read_images(tmp_path / "web")["test"].classes == ("bicycle",)
    (tmp_path / "web/classnames.json").write_text('{"bike": "two-wheeler"}')
    assert read_images(tmp_path / "web")["test"].classes == ("two-wheeler",)
    # class folders: "beside" is another place
    assert read_images(tmp_path / "desk/test")["all"].classes == ("bike",)


def test_a_table_keeps_its_order(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "pics/1.png", "pics/2.png", "pics/ü,3.png")
    text = "\ufeffpath,label,split\npics/2.png,sea_horse,train\n"
    text += '"pics/ü,3.png",Ant,train\npics/1.png,Ant,Valid\n'
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    sets = read_images(tmp_path / "table.csv")
    assert list(sets) == ["train", "val"]
    for images in sets.values():
        assert (images.classes, images.written) == (("Ant", "sea horse"), ("Ant", "sea_horse"))
    assert names(sets["train"]) == ["pics/2.png", "pics/ü,3.png"]
    assert sets["train"].labels == (1, 0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("path,label\na.png,big_cat\na.png,big-cat\n", "are both called"),
        ("path,label\na.png,cat\ngone.png,cat\n", r"gone\.png: .*No such file"),
        ("path,label,split\na.png,cat,train\nb.png,dog,test\n", "test has a class 'dog'"),
        ("path,label,split\na.png,cat,train\n./a.png,cat,val\n", r"a\.png .*train .*val"),
        ("path,label\na.png,cat\na.png,dog\n", r"a\.png.*'cat'.*'dog'"),
        ("path,label,group\na.png,cat,p\na.png,cat,q\n", r"a\.png is in the groups 'p' and 'q'"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    write_tiny_images(tmp_path, "a.png")
    (tmp_path / "table.csv").write_text(rows)
    refused(tmp_path / "table.csv", words)


@pytest.mark.skipif(os.name == "nt", reason="links take rights")
def test_one_file_under_several_paths_is_one_image(tmp_path: Path) -> None:
    """Whether a path leads through a link, leaves its folder again, or names the root; repeated
    rows count once and keep their group."""
    write_tiny_images(tmp_path, "in/a.png", "in/b.png", "c.png")
    (tmp_path / "link").symlink_to("in", target_is_directory=True)
    (tmp_path / "a.png").symlink_to("in/a.png")
    table = tmp_path / "t.csv"
    others = ("link/a.png", "a.png", "in/../link/../a.png", tmp_path / "in/a.png")
    for other in others:
        for label, split in (("cat", "test"), ("dog", "train")):
            lines = ["path,label,split", "in/a.png,cat,train", "c.png,dog,train"]
            table.write_text("\n".join([*lines, f"{other},{label},{split}"]))
            words = "is in train and in test" if split == "test" else "has the labels"
            with pytest.raises(UserError, match=words):
                read_images(table, outside=True)
    lines = [f"{other},cat,{'p' if number == 2 else ''}" for number, other in enumerate(others)]
    table.write_text("\n".join(["path,label,group", *lines, "in/b.png,dog,q"]))
    found = read_images(table, outside=True)["all"]
    assert (names(found), found.groups) == (["link/a.png", "in/b.png"], ("p", "q"))
    assert found.ignored == "3 files ignored: images listed again 3"


def test_named_columns_groups_and_images_elsewhere(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "1.png", "list/2.png", "list/3.png")
    table = tmp_path / "list/t.tsv"
    table.write_text("foto\tart\tpatient\n../1.png\tcat\tp1\n2.png\tdog\tp2\n3.png\tdog\t\n")
    columns = {"image": "foto", "label": "art", "group": "patient", "split": ""}
    found = read_images(table, columns=columns, outside=True)["all"]
    assert found.classes == ("cat", "dog")
    assert (found.labels, found.groups) == ((0, 1, 1), ("p1", "p2", ""))
    with pytest.raises(UserError, match="lies outside"):
        read_images(table, columns=columns)


@pytest.mark.skipif(os.name == "nt", reason="has no pipes with names")
def test_a_pipe_is_reported_as_a_bad_file(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "cat/1.png", "dog/1.png")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    refused(tmp_path, r"cat/2\.jpg: not a readable image \(a pipe or device, not a file\)")
    images = read_images(tmp_path, skip_bad=True)["all"]
    assert names(images) == ["cat/1.png", "dog/1.png"]
    assert images.skipped == ("cat/2.jpg: not a readable image (a pipe or device, not a file)",)


def test_a_damaged_file_that_looks_whole_is_found_by_decoding_it(tmp_path: Path) -> None:
    """A PNG whose checksums are right, with half of its pixels."""
    write_tiny_images(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "dog/2.png").write_bytes(bombs.png(8, 8, 8, 0, bits=4))
    assert len(read_images(tmp_path)["all"]) == 3
    with pytest.raises(UserError, match=r"dog/2\.png: .*truncated"):
        read_images(tmp_path, check=True)
    assert names(read_images(tmp_path, skip_bad=True)["all"]) == ["cat/1.png", "dog/1.png"]


@pytest.mark.ci
@pytest.mark.skipif(os.name == "nt", reason="has no such signals")
def test_ctrl_c_ends_the_check(tmp_path: Path) -> None:
    """Of a hundred images that each take a while."""
    (tmp_path / "a").mkdir()
    for number in range(100):
        (tmp_path / "a" / f"{number}.jpg").write_bytes(bombs.scans(2000, 100))
    # the process that starts the tests may ignore the signal
    code = "import signal; signal.signal(2, signal.default_int_handler); "
    code += "import rmadapter.data.read as i; print('go', flush=True); "
    code += f"i.read_images({str(tmp_path)!r}, check=True)"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        time.sleep(0.5)
        child.send_signal(2)
        child.communicate(timeout=60)
        assert child.returncode in (-2, 130)


# Data in memory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_images(tmp_path, "cat/cat_1.png", "cat/cat_2.png", "dog/dog_1.png")


@pytest.fixture
def paths(home: Path) -> list[str]:
    return sorted(map(str, home.rglob("*.png")))


def labels(images: ImageSet) -> list[str]:
    return [str(images.written[label]) for label in images.labels]


def same(one: ImageSet, other: ImageSet) -> bool:
    both = [(x.labels, x.classes, x.written, x.contents) for x in (one, other)]
    return both[0] == both[1]


def test_a_data_frame_of_paths(paths: list[str]) -> None:
    pd = pytest.importorskip("pandas")
    splits, groups = ["train", "TEST", "train"], ["a", None, "b"]
    table = {"file": paths, "species": ["Cat", "Cat", 7], "split": splits, "group": groups}
    sets = read_images(pd.DataFrame(table), columns={"label": "species"})
    expected = {"train": ["Cat", "7"], "test": ["Cat"]}
    assert {split: labels(images) for split, images in sets.items()} == expected
    assert (sets["train"].groups, sets["test"].groups) == (("a", "b"), ("",))
    assert sets["test"].images == (Path(paths[1]),)


def test_missing_cells_of_pandas_and_columns_without_names(paths: list[str]) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"file": paths, 7: ["a", "b", "a"], "group": ["p", pd.NA, "q"]})
    for kind in ("object", "string"):
        (images,) = read_images(table.astype({"group": kind}), columns={"label": "7"}).values()
        assert (labels(images), images.groups) == (["a", "b", "a"], ("p", "", "q"))
    with pytest.raises(UserError, match="row 1: the label is empty"):
        read_images(table.assign(label=pd.array([1, pd.NA, 2], "Int64")))
    with pytest.raises(UserError, match="row 2: the image is empty"):
        read_images(table.assign(file=[*paths[:2], None]), columns={"label": "7"})


def test_splits_of_a_data_frame_under_another_name_are_not_ignored(paths: list[str]) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"file": paths, "label": ["a", "b", "a"], 3: ["train", pd.NA, "test"]})
    for kind in ("object", "string", "category"):
        frame = table.astype({3: kind})
        for read in (read_images, image_set):
            with pytest.raises(UserError, match="'3' looks like splits"):
                read(frame)
        assert len(read_images(frame, columns={"split": "none"})["all"]) == 3
    assert len(read_images(table.assign(split="train"))["train"]) == 3
    assert len(image_set(table.replace("test", "train"))) == 3


def test_a_data_frame_of_images() -> None:
    pd = pytest.importorskip("pandas")
    images = [picture("cat"), np.zeros((4, 4, 3), np.uint8)]
    table = {"image": images, "label": ["b", "a"], "split": ["train", "test"]}
    sets = read_images(pd.DataFrame(table))
    assert {split: (images.classes, images.labels) for split, images in sets.items()} == {
        "train": (("a", "b"), (1,)), "test": (("a", "b"), (0,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"path": ["a"], "label": [None]}, "row 0: the label is empty"),
        ({"path": ["a"], "label": [float("nan")]}, "row 0: the label is empty"),
        ({"path": ["a"], "label": ["x"], "split": ["dev"]}, "split is 'dev'"),
        ({"path": ["a", "b"], "label": ["x", "y"], "split": ["test", None]}, "row 1: split is"),
        ({"path": ["https://x/a.png"], "label": ["x"]}, "is a web address"),
        ({"photo": ["a"], "label": ["x"]}, r"DataFrame: none of its columns \(photo, label\)"),
    ],
)
def test_invalid_data_frames_are_refused(columns: dict[str, Any], words: str) -> None:
    pd = pytest.importorskip("pandas")
    with pytest.raises(UserError, match=words):
        read_images(pd.DataFrame(columns))


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_cell_may_be_a_list_of_one_label(paths: list[str], column: str, in_memory: bool) -> None:
    pd = pytest.importorskip("pandas")
    images = [picture("cat"), picture("dog"), picture("cat", 1)] if in_memory else paths
    two: Any = "cat;dog" if column == "labels" else ("cat", "dog")
    cells = ["cat", "dog;dog", "cat"] if column == "labels" else [["cat"], np.array(["dog"]), "cat"]
    found = read_images(pd.DataFrame({"image": images, column: cells}), progress=False)["all"]
    assert (found.classes, found.labels) == (("cat", "dog"), (0, 1, 0))
    with pytest.raises(UserError, match=r"DataFrame, row 2: .*'cat'.*'dog'"):
        read_images(pd.DataFrame({"image": images, column: [*cells[:2], two]}), progress=False)


def test_torchvision_folders_are_read_as_files_whatever_their_transform(home: Path) -> None:
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(home), transform=lambda image: 1 / 0)
    (images,) = read_images(folder).values()
    assert labels(images) == ["cat", "cat", "dog"]
    assert images.images[2] == home / "dog/dog_1.png"
    (some,) = read_images(Subset(folder, [2, 0])).values()
    assert labels(some) == ["dog", "cat"]
    folder.classes = [("tabby", "tabby cat"), ("dog", "hound")]  # synonyms, as of ImageNet
    assert labels(read_images(folder)["all"]) == ["tabby", "tabby", "dog"]


class Pairs(list[Any]):
    classes = ("house cat", "dog")


class Wrapped:
    """Wraps a data set, without saying which of its items."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Any, str]:
        return self.dataset[i + 1][0], "ab"[i]


def test_items_of_a_wrapper_come_from_the_wrapper(home: Path) -> None:
    folder = pytest.importorskip("torchvision").datasets.ImageFolder(str(home))
    found = read_images(Wrapped(folder))["all"]
    assert (found.classes, len(found)) == (("a", "b"), 2)
    pixels = [np.asarray(load_image(image)) for image in found.images]
    assert all(np.array_equal(own, np.asarray(folder[i][0])) for i, own in enumerate(pixels, 1))


def test_pairs_of_image_and_label() -> None:
    cat, dog = picture("cat"), picture("dog")
    for pairs, expected in (
        (Pairs([(cat, 0), (dog, np.int64(1))]), ["house cat", "dog"]),
        (Pairs([(cat, [0]), (dog, ["dog"])]), ["house cat", "dog"]),
        ([(cat, "cat"), (dog, "dog")], ["cat", "dog"]),
    ):
        (images,) = read_images(pairs).values()
        assert labels(images) == expected
        assert images.images[1] is dog
    with pytest.raises(UserError, match=r"image 0: .*'house cat'.*'dog'"):
        read_images(Pairs([(cat, [0, 1]), (dog, ["dog"])]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "int is not data"),
        ({"train": [1]}, "dict is not data"),
        ([1, 2], r"item 0 of the data is not an \(image, label\) pair"),
        (Pairs([(picture("cat"), 2)]), "label 2 is not one of the 2 classes"),
        (Pairs([(picture("cat"), -1)]), "label -1 is not one of the 2 classes"),
        ([(picture("cat"), 0)], "labels must be class names, or whole numbers with classes"),
        ([], "0 images and 0 labels"),
    ],
)
def test_other_objects_are_refused(data: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_object(data)


def test_image_sets_folders_and_datasets_are_accepted(colors: Path) -> None:
    splits = read_images(colors)
    train = splits["train"]
    assert read_images(train) == {"all": train}
    assert read_images(splits) == splits
    assert image_set(train) is image_set(splits) is train
    assert image_set({"all": splits["test"]}) is splits["test"]
    assert same(image_set(colors), train)
    assert same(image_set(str(colors)), train)
    with pytest.raises(UserError, match="the data has only test"):
        image_set({"test": splits["test"]})
    with pytest.raises(UserError, match=r"labels are missing: .* not list"):
        image_set([1, 2])
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    pets = {"image": [picture("cat"), picture("dog")], "label": ["cat", "dog"]}
    data = library.Dataset.from_dict(pets).cast_column("image", library.Image())
    assert labels(read_images(data)["all"]) == ["cat", "dog"]
    assert image_set(library.DatasetDict({"train": data})).classes == ("cat", "dog")


def test_a_data_frame_to_train_on(colors: Path) -> None:
    pandas = pytest.importorskip("pandas")
    train = read_images(colors)["train"]
    files = [str(image) for image in train.images]
    frame = pandas.DataFrame({"File": files, "class": labels(train)})
    assert same(image_set(frame), train)
    assert same(image_set(frame.File, frame["class"]), train)
    assert image_list(frame) == files
    assert image_list(frame[["File"]].rename(columns={"File": "whatever"})) == files
    numbers = image_set(frame.assign(**{"class": list(train.labels)}), classes=train.classes)
    assert numbers.written == (0, 1, 2, 3)
    split = frame.assign(split=["train"] * 20 + ["test"] * 4, group=[None] + ["a"] * 23)
    for some in (split, split.assign(group=split.group.astype("string"))):
        found = image_set(some)
        assert (len(found), found.groups[:2]) == (20, ("", "a"))
    assert len(image_set(split, split="test")) == 4
    for wrong, words in (
        (frame[["File"]], r"DataFrame: none of its columns \(File\) is called label"),
        (frame.assign(split="test"), "no row says train"),
        (frame.assign(split=["train"] * 23 + ["exam"]), "split is 'exam'"),
        (frame.assign(split=["train"] * 23 + [None]), "row 23: split is"),
    ):
        with pytest.raises(UserError, match=words):
            image_set(wrong)


def test_lists_arrays_and_columns_are_lists_of_images(paths: list[str]) -> None:
    array = np.array(paths)
    for images in (paths, (*paths,), array, array[:, None], array.astype(object)[:, None]):
        assert image_list(images) == paths
    opened = [Image.open(path) for path in paths]
    column = np.empty((len(opened), 1), object)
    column[:, 0] = opened
    assert image_list(column) == opened
    assert len(image_list(np.zeros((5, 4, 4, 3), np.uint8))) == 5


def test_numbers_stay_numbers_and_without_names_there_is_a_warning() -> None:
    images = list(noisy_colors(1).images)
    with pytest.warns(UserWarning, match="prompts call the classes -1, 3, 7; class_names="):
        found = image_set(images, np.array([7, -1, 3, 7]))
    expected = ((-1, 3, 7), (2, 0, 1, 2), ("-1", "3", "7"))
    assert (found.written, found.labels, found.classes) == expected
    assert [type(label) for label in found.written] == [int] * 3
    assert image_set(images, [1, 0, 1, 0], ["a", "b"]).written == (0, 1)
    assert image_set(images, np.array([[1], [0], [1], [0]]), ["a", "b"]).labels == (1, 0, 1, 0)
    with pytest.raises(UserError, match="4 images and 3 labels"):
        image_set(images, [1, 2, 3])
    with pytest.raises(UserError, match="labels must be class names, or whole numbers"):
        image_set(images, [0.5, 1.5, 0.5, 1.5])
