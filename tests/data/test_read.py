"""Folders, CSV files and lists, good and bad, each written out by the test."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from tests.helpers.shots import write_tiny_images
from tests.hostile import bombs as hostile


def names(images: ImageSet) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def refused(data: Path, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        read_images(data)
    assert "\n" not in str(caught.value)


def test_flat_folder(tmp_path: Path) -> None:
    write_tiny_images(
        tmp_path,
        "sea_horse/b.png",
        "sea_horse/deep/er/a.jpg",
        "Cat/1.png",
        "bird--of_prey /x.PNG",
        "top.png",
    )
    write_tiny_images(
        tmp_path, ".hidden/a.png", "Cat/.hidden.png", "Cat/.git/a.png", "__MACOSX/a.png"
    )
    (tmp_path / "Cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "Cat" / "features.h5").write_bytes(b"")
    (images,) = read_images(tmp_path).values()
    assert images.classes == ("bird of prey", "Cat", "sea horse")
    expected = ["bird--of_prey /x.PNG", "Cat/1.png", "sea_horse/b.png", "sea_horse/deep/er/a.jpg"]
    assert names(images) == expected
    assert images.labels == (0, 1, 2, 2)
    assert list(read_images(str(tmp_path))) == ["all"]


def test_splits_share_the_classes_of_train(tmp_path: Path) -> None:
    write_tiny_images(
        tmp_path,
        "train/b_b/1.png",
        "train/a/1.png",
        "train/c/1.png",
        "Validation/a/1.png",
        "test/c/1.png",
    )
    write_tiny_images(tmp_path, "test/b-b/1.png")  # another spelling of the same class
    sets = read_images(tmp_path)
    assert list(sets) == ["train", "val", "test"]
    assert {images.classes for images in sets.values()} == {("a", "b b", "c")}
    assert sets["test"].labels == (1, 2)
    assert names(sets["val"]) == ["Validation/a/1.png"]
    write_tiny_images(tmp_path, "test/zebra/1.png")
    refused(tmp_path, "test has a class 'zebra' that train lacks")


def test_crops_use_classnames_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    home = write_tiny_images(tmp_path / "data", "images/a.png", "images/b.png")
    (home / "labels").mkdir()
    for number, name in enumerate("ab"):
        (home / f"labels/{name}.txt").write_text(f"{number} .5 .5 1 1\n")
    (home / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    (home / "classnames.json").write_text('{"cat": "house cat"}')
    assert read_images(home, crops=True)["train"].classes == ("house cat", "dog")
    kinds, marks = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], []
    for number in (0, 1):
        marks.append({"image_id": number, "category_id": number, "bbox": [0, 0, 2, 2]})
    files = [
        {"id": n, "file_name": f"images/{name}.png", "width": 4, "height": 4}
        for n, name in enumerate("ab")
    ]
    (home / "c.json").write_text(
        json.dumps({"images": files, "annotations": marks, "categories": kinds})
    )
    assert read_images(home / "c.json", crops=True)["all"].classes == ("house cat", "dog")


def test_an_unreadable_photo_with_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    write_tiny_images(tmp_path, "1.png", "2.png")
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    files = [{"id": n, "file_name": f"{n}.png", "width": 4, "height": 4} for n in (1, 2)]
    marks = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 2, c]} for i in (1, 2) for c in (1, 2)
    ]
    # as two of COCO's own
    marks.append({"image_id": 1, "category_id": 1, "bbox": [1, 1, 2.0, 0.0]})
    table = tmp_path / "coco.json"
    table.write_text(json.dumps({"images": files, "annotations": marks, "categories": kinds}))
    found = read_images(table, crops=True)["all"]
    assert len(found) == 4
    assert found.ignored == "1 file ignored: boxes without width or height 1"
    (tmp_path / "2.png").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"2\.png: not an image in .*; --skip-bad"):
        read_images(table, crops=True)
    assert len(read_images(table, crops=True, skip_bad=True)["all"]) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "train/1.png", "bus/1.png")
    assert read_images(tmp_path)["all"].classes == ("bus", "train")


@pytest.mark.parametrize(
    ("paths", "hint"),
    [
        (["big_cat/1.png", "big-cat/1.png"], "'big-cat' and 'big_cat' are both called"),
        (
            ["Crane/1.png", "crane/1.png"],
            "'Crane' and 'crane' are both called",
        ),  # CLIP reads lower case
        (["_/1.png"], "'_' has an empty prompt name"),
        (["1.png"], "no class folders"),
        (["train/a/1.png", "notes/1.png"], "'train' beside 'notes'"),
        (["val/a/1.png", "valid/a/1.png"], "'valid' is a second folder"),
        (["train/1.png", "test/1.png"], "test: holds no class folders"),
        (["photo/train/a/1.png", "photo/test/a/1.png"], "photo: holds splits"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, paths: list[str], hint: str) -> None:
    refused(write_tiny_images(tmp_path, *paths), hint)


def test_neither_folder_nor_csv(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "gone: no such file or folder")
    (tmp_path / "a.txt").write_text("path,label")
    refused(tmp_path / "a.txt", "a.txt: unknown format")


def test_bad_files_are_refused_or_skipped(tmp_path: Path) -> None:
    write_tiny_images(
        tmp_path,
        "train/a/1.png",
        "train/a/2.png",
        "train/b/1.png",
        "test/a/1.png",
        "test/b/1.png",
        "test/c/1.png",
    )
    (tmp_path / "train/a/2.png").write_bytes(b"")
    (tmp_path / "train/b/1.png").write_bytes(b"noise")
    (tmp_path / "train/c").mkdir()
    refused(tmp_path, r"a/2\.png: .*0 bytes.* \(and 2 more like it\); --skip-bad")
    sets = read_images(tmp_path, skip_bad=True)
    assert sets["train"].classes == sets["test"].classes == ("a",)
    assert names(sets["train"]) == ["train/a/1.png"]
    expected = ["train/a/2.png", "train/b/1.png", "train/c"]
    assert [text.split(":")[0] for text in sets["train"].skipped] == expected
    assert "0 bytes" in sets["train"].skipped[0]
    assert sets["test"].skipped == tuple(
        f"test/{c}/1.png: no train images of its class" for c in "bc"
    )
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
    root, elsewhere = (
        write_tiny_images(tmp_path / "data", "cat/1.png", "dog/1.png"),
        write_tiny_images(tmp_path / "elsewhere", "far/2.png"),
    )
    (root / "cat/up").symlink_to(root)
    (root / "cat/self").symlink_to(root / "cat")
    (root / "cat/dogs").symlink_to(root / "dog")
    (root / "cat/loop").symlink_to(root / "cat/loop")
    (root / "dog/out").symlink_to(tmp_path)
    (root / "eel").symlink_to(elsewhere)  # a class folder that is a link is fine
    images = read_images(root)["all"]
    assert names(images) == ["cat/1.png", "dog/1.png", "eel/far/2.png"]
    (root / "cat/ring.png").symlink_to(root / "cat/ring.png")
    refused(root, r"ring\.png: not a readable image")


def test_classnames_json(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "airplanes/1.png", "t_shirt/1.png", "zebra/1.png")
    given = tmp_path / "classnames.json"
    given.write_text(json.dumps({"airplanes": "airplane", "t_shirt": "T-shirt", "unused": "x"}))
    found = read_images(tmp_path)["all"]
    expected = (("airplane", "T-shirt", "zebra"), ("airplanes", "t_shirt", "zebra"))
    assert (found.classes, found.written) == expected
    other = read_images(tmp_path, names={"t_shirt": "shirt"})["all"]
    assert (other.classes, other.written) == (("airplane", "shirt", "zebra"), found.written)
    assert other.subset([1]).written == found.written
    with pytest.raises(ValueError, match="2 labels as written for 3 classes"):
        replace(found, written=found.written[:2])
    given.write_text(json.dumps({"airplanes": " "}))
    refused(tmp_path, "'airplanes' has an empty prompt name")
    given.write_text(json.dumps({"airplanes": "Zebra"}))
    refused(tmp_path, "'airplanes' and 'zebra' are both called")
    for text in ("{", "[]", '{"airplanes": 1}'):
        given.write_text(text)
        refused(tmp_path, "classnames.json: ")


def test_classnames_beside_the_domains_serve_a_domain_of_splits(tmp_path: Path) -> None:
    write_tiny_images(
        tmp_path,
        *(
            f"{domain}/{split}/bike/{domain}.png"
            for domain in ("desk", "web")
            for split in ("train", "test")
        ),
    )
    (tmp_path / "classnames.json").write_text(json.dumps({"bike": "bicycle"}))
    assert read_images(tmp_path / "web")["test"].classes == ("bicycle",)
    (tmp_path / "web/classnames.json").write_text(json.dumps({"bike": "two-wheeler"}))
    assert read_images(tmp_path / "web")["test"].classes == ("two-wheeler",)
    # class folders: "beside" is another place
    assert read_images(tmp_path / "desk/test")["all"].classes == ("bike",)


def test_csv_keeps_its_order(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "pics/1.png", "pics/2.png", "pics/ü,3.png")
    table = tmp_path / "table.csv"
    text = "\ufeffpath,label,split\npics/2.png,sea_horse,train\n"
    text += '"pics/ü,3.png",Ant,train\npics/1.png,Ant,Valid\n'
    table.write_text(text, encoding="utf-8")
    sets = read_images(table)
    assert list(sets) == ["train", "val"]
    assert sets["train"].classes == sets["val"].classes == ("Ant", "sea horse")
    assert sets["train"].written == sets["val"].written == ("Ant", "sea_horse")
    assert names(sets["train"]) == ["pics/2.png", "pics/ü,3.png"]
    assert sets["train"].labels == (1, 0)
    table.write_text("label,path\na,pics/1.png\n")
    assert names(read_images(table)["all"]) == ["pics/1.png"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (b"", "the first line is empty"),
        (b"path|label\na.png|cat\n", r"none of its columns \(path\|label\) is called path"),
        (b"path,label\n", "no rows"),
        (b"path,label\na.png,\n", "line 2: the label is empty"),
        (b"path,label,split\na.png,cat,all\n", "line 2: split is 'all'"),
        (b"path,label,split\na.png,cat\n", "line 2: split is ''"),
        (b"path,label\na.png,k\xe4fer\n", "not a readable CSV file in UTF-8"),
        (b'path,label\n"a.png,cat\n', "not a readable CSV file"),
        (b"path,label\na.png,big_cat\na.png,big-cat\n", "are both called"),
        (b"path,label\na.png,cat\ngone.png,cat\n", r"gone\.png: .*No such file"),
        (b"path,label,split\na.png,cat,train\nb.png,dog,test\n", "test has a class 'dog'"),
        (b"path,label,split\na.png,cat,train\n./a.png,cat,val\n", r"a\.png .*train .*val"),
        (b"path,label\na.png,cat\na.png,dog\n", r"a\.png.*'cat'.*'dog'"),
    ],
)
def test_bad_csv_files_are_refused(tmp_path: Path, text: bytes, hint: str) -> None:
    write_tiny_images(tmp_path, "a.png")
    (tmp_path / "table.csv").write_bytes(text)
    refused(tmp_path / "table.csv", hint)


def test_a_table_with_columns_of_any_name_and_groups(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "1.png", "2.png", "3.png")
    table = tmp_path / "t.tsv"
    table.write_text("foto\tart\tpatient\n1.png\tcat\tp1\n2.png\tdog\tp2\n3.png\tdog\t\n")
    found = read_images(
        table, columns={"image": "foto", "label": "art", "group": "patient", "split": ""}
    )["all"]
    expected = (("cat", "dog"), (0, 1, 1), ("p1", "p2", ""))
    assert (found.classes, found.labels, found.groups) == expected
    refused(table, r"none of its columns \(foto, art, patient\) is called path")
    with pytest.raises(UserError, match="unknown kind 'labels'"):
        read_images(table, columns={"labels": "art"})
    with pytest.raises(UserError, match="has no columns"):
        read_images(tmp_path, columns={"label": "art"})


def test_annotations_of_several_classes_are_refused(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "1.png", "2.png")
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    files = [{"id": n, "file_name": f"{n}.png", "width": 4, "height": 4} for n in (1, 2)]
    marks = [
        {"image_id": i, "category_id": c, "bbox": [0, 0, 2, 2]}
        for i, c in ((1, 2), (1, 1), (1, 2), (2, 1))
    ]
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": files, "annotations": marks, "categories": kinds})
    )
    refused(tmp_path / "coco.json", r"1\.png: .*'dog'.*'cat'.*--crops")
    (tmp_path / "studio.json").write_text(
        json.dumps(
            [
                {"image": "1.png", "choice": {"choices": ["dog", "cat"]}},
                {"image": "2.png", "choice": "cat"},
            ]
        )
    )
    refused(tmp_path / "studio.json", r"1\.png: .*'dog'.*'cat'.*--crops")


@pytest.mark.skipif(os.name == "nt", reason="has no pipes with names")
def test_a_pipe_is_reported_as_a_bad_file(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "cat/1.png", "dog/1.png")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    refused(tmp_path, r"cat/2\.jpg: not a readable image \(a pipe or device, not a file\)")
    images = read_images(tmp_path, skip_bad=True)["all"]
    assert names(images) == ["cat/1.png", "dog/1.png"]
    assert images.skipped == ("cat/2.jpg: not a readable image (a pipe or device, not a file)",)


def test_a_damaged_file_that_looks_whole_is_found_by_decoding_it(tmp_path: Path) -> None:
    """A PNG whose checksums are right, with half of its pixels: only decoding tells."""
    write_tiny_images(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "dog/2.png").write_bytes(hostile.png(8, 8, 8, 0, bits=4))
    assert len(read_images(tmp_path)["all"]) == 3
    with pytest.raises(UserError, match=r"dog/2\.png: .*truncated"):
        read_images(tmp_path, check=True)
    assert names(read_images(tmp_path, skip_bad=True)["all"]) == ["cat/1.png", "dog/1.png"]


def test_the_user_may_allow_images_outside_of_the_folder(tmp_path: Path) -> None:
    write_tiny_images(tmp_path, "elsewhere/1.png", "list/2.png")
    (tmp_path / "list/t.csv").write_text("path,label\n../elsewhere/1.png,cat\n2.png,dog\n")
    refused(
        tmp_path / "list/t.csv",
        r"t\.csv, line 2: '\.\./elsewhere/1\.png' lies outside.*--allow-outside",
    )
    assert len(read_images(tmp_path / "list/t.csv", outside=True)["all"]) == 2
