"""Write miniatures of the public archives in their original formats, with empty image files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

WNIDS = {"n01440764": "tench", "n01443537": "goldfish"}
WNIDS |= {"n02012849": "crane bird", "n03126707": "construction crane"}


def write_text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    write_text(path, [json.dumps(value)])


def pictures(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def folders(
    root: Path, classes: Iterable[str], count: int = 10, name: str = "image_{:04d}.jpg"
) -> None:
    for folder in classes:
        pictures(root / folder, [name.format(i) for i in range(1, count + 1)])


def caltech101(home: Path) -> None:
    classes = "BACKGROUND_Google Faces Faces_easy Leopards accordion airplanes car_side"
    folders(home / "101_ObjectCategories", classes.split())
    pictures(home / "101_ObjectCategories", ["Faces/.DS_Store", "Faces/Thumbs.db"])


def dtd(home: Path) -> None:
    folders(home / "images", ["zigzagged", "banded"], 12)
    # which CoOp does not read
    write_text(home / "labels" / "train1.txt", ["banded/image_0001.jpg"])


def eurosat(home: Path) -> None:
    classes = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop"
    folders(home / "2750", f"{classes} Residential River SeaLake".split(), 4)


def food101(home: Path) -> None:
    folders(home / "images", ["apple_pie", "beef_tartare"], 10)
    write_json(home / "meta" / "train.json", {"apple_pie": ["apple_pie/image_0001"]})  # nor this


PETS = [("Abyssinian", 1), ("american_bulldog", 2), ("Bengal", 3)]


def oxford_pets(home: Path) -> None:
    for split, counts in (("trainval", (7, 10, 3)), ("test", (2, 2, 2))):
        first = 1 if split == "trainval" else 101
        names: list[tuple[str, int]] = []
        for (name, label), count in zip(PETS, counts, strict=True):
            names += [(f"{name}_{first + i}", label) for i in range(count)]
        names = names[8:] + names[:8]  # labels do not appear in their order
        lines = [f"{name} {label} 1 {label}" for name, label in names]
        write_text(home / "annotations" / f"{split}.txt", lines)
        pictures(home / "images", [f"{name}.jpg" for name, _ in names])


def fgvc_aircraft(home: Path) -> None:
    write_text(home / "variants.txt", ["707-320", "Challenger 600", "A300B4", "F/A-18"])
    for split, rows in {
        "train": ["1025794 Challenger 600", "0900914 707-320", "1234567 F/A-18", "0000001 A300B4"],
        "val": ["0000002 F/A-18"],
        "test": ["0000003 A300B4", "0000004 707-320"],
        # torchvision's default, which CoOp does not read
        "trainval": ["1025794 Challenger 600", "0000002 F/A-18"],
    }.items():
        write_text(home / f"images_variant_{split}.txt", rows)
        pictures(home / "images", [f"{row.split()[0]}.jpg" for row in rows])


def sun397(home: Path) -> None:
    classes = ["/a/abbey", "/a/apse/indoor", "/g/gas_station"]
    write_text(home / "ClassName.txt", classes)
    write_text(home / "SUN397" / "ClassName.txt", classes)
    for file, numbers in {"Training_01.txt": range(5), "Testing_01.txt": range(5, 7)}.items():
        rows = []
        for name in reversed(classes):
            rows += [f"{name}/sun_{number}{name[-1]}.jpg" for number in numbers]
        write_text(home / file, rows)
        pictures(home / "SUN397", [row[1:] for row in rows])


def ucf101(home: Path) -> None:
    write_text(home / "ucfTrainTestlist" / "classInd.txt", ["1 ApplyEyeMakeup", "2 YoYo"])
    rows = {
        "train": [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{i:02d}_c01.avi 1" for i in range(8, 13)]
        + [f"YoYo/v_YoYo_g{i:02d}_c01.avi 2" for i in range(8, 18)],
        "test": ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi"],
    }
    for split, lines in rows.items():
        write_text(home / "ucfTrainTestlist" / f"{split}list01.txt", lines)
        text = "\n".join(line.split()[0] for line in lines).replace(".avi", ".jpg")
        text = text.replace("ApplyEyeMakeup/", "Apply_Eye_Makeup/").replace("YoYo/", "Yo_Yo/")
        pictures(home / "UCF-101-midframes", text.splitlines())


CARS = {"train": [2, 2, 1, 1, 1, 2, 2, 2, 1, 1, 2], "test": [1, 2]}


def stanford_cars(home: Path) -> None:
    from scipy.io import savemat

    (home / "devkit").mkdir(parents=True)
    names = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    meta = {"class_names": np.array([names], dtype=object)}
    savemat(home / "devkit" / "cars_meta.mat", meta)
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, labels in CARS.items():
        cells = [(39, label, f"{i:05d}.jpg") for i, label in enumerate(labels, 1)]
        kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
        savemat(home / files[split], {"annotations": np.array([cells], dtype=kinds)})
        pictures(home / f"cars_{split}", [f"{i:05d}.jpg" for i in range(1, len(labels) + 1)])


FLOWERS = [2] * 7 + [3] * 4 + [1] * 10 + [2] * 3


def oxford_flowers(home: Path) -> None:
    from scipy.io import savemat

    home.mkdir(parents=True, exist_ok=True)
    savemat(home / "imagelabels.mat", {"labels": np.array([FLOWERS], dtype=np.uint8)})
    ids = np.array([[1, 2]], dtype=np.uint16)
    savemat(home / "setid.mat", {"trnid": ids, "valid": ids, "tstid": ids})
    names = {"3": "canterbury bells", "1": "pink primrose", "2": "hard-leaved orchid"}
    write_json(home / "cat_to_name.json", names)
    pictures(home / "jpg", [f"image_{i:05d}.jpg" for i in range(1, len(FLOWERS) + 1)])


def imagenet(home: Path) -> None:
    write_text(home / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])
    folders(home / "images" / "train", WNIDS, 3, "n_{}.JPEG")
    folders(home / "images" / "val", WNIDS, 1, "ILSVRC2012_val_{:08d}.JPEG")


def imagenetv2(home: Path) -> None:
    write_text(home / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])
    places = map(str, range(len(WNIDS)))
    folders(home / "imagenetv2-matched-frequency-format-val", places, 2, "{}.jpeg")


def imagenet_a(home: Path) -> None:
    write_text(home / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])
    folders(home / "imagenet-a", [*WNIDS][1::2], 2)
    (home / "imagenet-a" / "README.txt").touch()


ALL: tuple[Callable[[Path], None], ...] = (
    caltech101, dtd, eurosat, food101, oxford_pets, fgvc_aircraft, sun397, ucf101, stanford_cars,
    oxford_flowers, imagenet, imagenetv2, imagenet_a,
)  # fmt: skip
WRITERS = {writer.__name__: writer for writer in ALL}
