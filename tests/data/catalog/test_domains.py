"""Data sets of special domains, on miniatures in the layout of the benchmarks that use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rmadapter.data.catalog.sets import CATALOG, check, describe, load_dataset
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from tests.helpers import archives

REMOTE_SENSING = {  # class folders of fewshot_RSVLMs and their names in its prompts
    "whurs19": {"airport": "airport", "footballfield": "football field"},
    "aid": {"bareland": "bare land", "storagetanks": "storage tanks"},
    "mlrsnet": {"harborandport": "harbor and port", "windturbine": "wind turbine"},
    "optimal31": {"circularfarmland": "circular farmland", "parkinglot": "parking lot"},
    "patternnet": {"christmastreefarm": "christmas tree farm", "oilgasfield": "oil gas field"},
    "resisc45": {"airplane": "airplane", "seaice": "sea ice"},
    "rsc11": {"denseforest": "dense forest", "highbuildings": "high buildings"},
    "rsicb128": {"dam": "dam", "sea": "sea or lake"},
    "rsicb256": {"dryfarm": "dry farm", "snowmountain": "snow mountain"},
}
MEDICINE = [key for key, dataset in CATALOG.items() if dataset.group == "medicine"]


def sizes(sets: Mapping[str, ImageSet]) -> dict[str, int]:
    return {split: len(images) for split, images in sets.items()}


def names(images: ImageSet) -> set[str]:
    return {images.name(i) for i in range(len(images))}


def written(root: Path, key: str) -> Path:
    return root / CATALOG[key].folder


def test_every_set_of_a_domain_is_tested_here() -> None:
    groups = {key: dataset.group for key, dataset in CATALOG.items()}
    assert [key for key, group in groups.items() if group == "remote sensing"] == [*REMOTE_SENSING]
    assert len(MEDICINE) == 11
    others = [key for key, group in groups.items() if group == "cross-domain few-shot"]
    assert others == ["cropdiseases", "isic2018", "chestx"]


@pytest.mark.parametrize("key", REMOTE_SENSING)
def test_remote_sensing_with_and_without_a_split_file(tmp_path: Path, key: str) -> None:
    home, classes = written(tmp_path, key), REMOTE_SENSING[key]
    archives.folders(home / "2750", classes, 10)
    sets = load_dataset(key, tmp_path)
    assert sets["train"].classes == tuple(classes.values())
    assert sizes(sets) == {"train": 10, "val": 4, "test": 6}  # as their loader divides
    rows = [
        [f"{folder}/image_{number:04d}.jpg", label, name]
        for label, (folder, name) in enumerate(classes.items())
        for number in range(1, 11)
    ]
    archives.write_json(home / "split.json", {"train": rows[::2], "val": [], "test": rows[1::2]})
    sets = load_dataset(key, tmp_path)
    assert sizes(sets) == {"train": 10, "test": 10}
    assert names(sets["train"]) == {path for path, _, _ in rows[::2]}
    assert CATALOG[key].templates == ("a satellite photo of {}.",)


@pytest.mark.parametrize("key", MEDICINE)
def test_medicine_reads_the_published_split(tmp_path: Path, key: str) -> None:
    home, dataset = written(tmp_path, key), CATALOG[key]
    labels = ["glioma_tumor", "normal_brain"]
    archives.folders(home / home.name, labels, 10, "{}.png")
    assert "split_" in check(dataset, tmp_path).missing[0]
    rows = [[f"{name}/{n}.png", i, name] for i, name in enumerate(labels) for n in range(1, 11)]
    archives.write_json(home / dataset.split, {"train": rows[:15], "val": [], "test": rows[15:]})
    sets = load_dataset(home.name, tmp_path)  # by the name of its folder, too
    assert sets["test"].classes == ("glioma tumor", "normal brain")
    assert sizes(sets) == {"train": 15, "test": 5}
    found = check(dataset, tmp_path)
    assert f"train: 15 of {dataset.counts['train']} images" in found.missing
    assert f"{dataset.folder}.zip" in describe(dataset, tmp_path)


def test_crop_diseases_are_those_of_the_train_folder(tmp_path: Path) -> None:
    data = written(tmp_path, "cropdiseases") / "dataset"
    folders = ["Apple___Apple_scab", "Corn_(maize)___healthy"]
    archives.folders(data / "train", folders, 10)
    archives.folders(data / "test", folders, 3)  # which the benchmark does not read
    sets = load_dataset("cropdiseases", tmp_path)
    assert sets["train"].classes == ("Apple Apple scab", "Corn (maize) healthy")
    assert sizes(sets) == {"train": 10, "val": 4, "test": 6}


CODES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def isic(home: Path, grouped: bool = True) -> dict[str, str]:
    """Three images of each of ten lesions of each class; return image -> lesion."""
    task = "ISIC2018_Task3_Training"
    lines, lesions = [",".join(("image", *CODES))], {}
    for place, code in enumerate(CODES):
        for number in range(30):
            image = f"ISIC_{place}{number:03d}"
            cells = ["1.0" if one == code else "0.0" for one in CODES]
            lines.append(",".join([image, *cells]))
            lesions[image] = f"HAM_{code}{number // 3}"
    archives.write_text(home / f"{task}_GroundTruth" / f"{task}_GroundTruth.csv", lines)
    if grouped:
        rows = [f"{image},{lesion},histopathology" for image, lesion in lesions.items()]
        header = "image,lesion_id,diagnosis_confirm_type"
        archives.write_text(home / f"{task}_LesionGroupings.csv", [header, *rows])
    archives.pictures(home / f"{task}_Input", [f"{image}.jpg" for image in lesions])
    return lesions


def test_images_of_a_lesion_stay_in_one_split(tmp_path: Path) -> None:
    lesions = isic(written(tmp_path, "isic2018"))
    sets = load_dataset("isic2018", tmp_path)
    assert sets["train"].classes[:2] == ("melanoma", "melanocytic nevus")
    assert len(sets["train"].classes) == 7
    assert sizes(sets) == {"train": 105, "val": 42, "test": 63}
    of_split = [{lesions[name[:-4]] for name in names(images)} for images in sets.values()]
    assert sum(map(len, of_split)) == len(set.union(*of_split)) == 70
    for images in sets.values():
        for row, label in enumerate(images.labels):
            assert images.name(row).startswith(f"ISIC_{label}")


def test_isic_without_its_groups_is_refused(tmp_path: Path) -> None:
    home = written(tmp_path, "isic2018")
    isic(home, grouped=False)
    with pytest.raises(UserError, match="LesionGroupings"):
        load_dataset("isic2018", tmp_path)
    archives.write_text(
        home / "ISIC2018_Task3_Training_LesionGroupings.csv", ["image,lesion_id", "ISIC_0000,a"]
    )
    with pytest.raises(UserError, match="no lesion_id of 'ISIC_0001'"):
        load_dataset("isic2018", tmp_path)


def chest(home: Path) -> None:
    """Ten patients with two images of each class, and images that do not count."""
    rows, train, test = [], [], []
    patient = 0
    for name in ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule",
                 "Pneumothorax", "No Finding", "Pneumonia", "Mass|Nodule"):  # fmt: skip
        for number in range(10):
            patient += 1
            images = [f"{patient:08d}_{n:03d}.png" for n in range(2)]
            rows += [f"{image},{name},0,{patient},58" for image in images]
            (test if number > 7 else train).extend(images)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age"
    archives.write_text(home / "Data_Entry_2017.csv", [header, *rows])
    archives.write_text(home / "train_val_list.txt", train)
    archives.write_text(home / "test_list.txt", test)
    archives.pictures(home / "images", [*train, *test])


def test_chest_images_with_one_finding_are_divided_by_patient(tmp_path: Path) -> None:
    home = written(tmp_path, "chestx")
    chest(home)
    sets = load_dataset("chestx", tmp_path)
    assert sets["train"].classes == (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule",
        "pneumothorax",
    )  # fmt: skip
    assert sizes(sets) == {"train": 7 * 12, "val": 7 * 4, "test": 7 * 4}
    assert names(sets["test"]) <= {*(home / "test_list.txt").read_text().split()}
    patients = [{name[:8] for name in names(images)} for images in sets.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 70


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Image Index,Labels\na.png,Mass\n", "no column 'Finding Labels'"),
        ("Image Index,Finding Labels,Patient ID\na.png,Mass\n", "has no Patient ID of 'a.png'"),
        ("Image Index,Finding Labels,Patient ID\n" + "x" * 200_000, "not a readable CSV file"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    home = written(tmp_path, "chestx")
    chest(home)
    (home / "Data_Entry_2017.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        load_dataset("chestx", tmp_path)
