"""Write one small data set in every supported format."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

from tests.helpers.small_images import png, write_images, write_json


def write_shard(path: Path, **members: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def sample(number: int, label: str, text: str) -> dict[str, bytes]:
    return {f"{number:06d}__png": png(label, number), f"{number:06d}__cls": text.encode()}


NAMES = ("cat_1.png", "dog_1.png")


def class_folders(home: Path) -> Path:
    return write_images(home, "cat/cat_1.png", "dog/dog_1.png")


def yolo_classification(home: Path) -> Path:
    return write_images(home, "train/cat/cat_1.png", "train/dog/dog_1.png", "val/cat/cat_2.png")


def csv_file(home: Path) -> Path:
    lines = "file_name;class\ncat_1.png;cat\ndog_1.png;dog\n"
    (write_images(home, *NAMES) / "list.csv").write_text(lines, encoding="utf-8", newline="\n")
    return home / "list.csv"


def json_lines(home: Path) -> Path:
    rows = [json.dumps({"file_name": name, "label": name[:3]}) for name in NAMES]
    (write_images(home, *NAMES) / "list.jsonl").write_text(
        "\n\n".join(rows) + "\n", encoding="utf-8", newline="\n"
    )
    return home / "list.jsonl"


def imagefolder(home: Path) -> Path:
    lines = "file_name,label\ncat_1.png,cat\ndog_1.png,dog\n"
    (write_images(home, *NAMES) / "metadata.csv").write_text(lines, encoding="utf-8", newline="\n")
    return home


def coco_file(home: Path) -> Path:
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(NAMES)]
    marks = [{"id": i, "image_id": i, "category_id": i, "bbox": [0, 0, 4, 2]} for i in (0, 1)]
    kinds = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "annotations": marks, "categories": kinds}
    return write_json(write_images(home, *NAMES) / "coco.json", content)


def coco_folder(home: Path) -> Path:
    file = coco_file(home)
    (home / "annotations").mkdir()
    file.rename(home / "annotations" / "instances_train2017.json")
    return home


def roboflow(home: Path) -> Path:
    for split in ("train", "valid"):
        file = coco_file(home / split)
        file.rename(file.with_name("_annotations.coco.json"))
    return home


def yolo(home: Path) -> Path:
    write_images(home, "images/train/cat_1.png", "images/train/dog_1.png")
    (home / "labels" / "train").mkdir(parents=True)
    for number, name in enumerate(("cat_1", "dog_1")):
        (home / "labels" / "train" / f"{name}.txt").write_text(
            f"{number} 0.5 0.5 0.5 0.25\n", encoding="utf-8", newline="\n"
        )
    (home / "data.yaml").write_text(
        "train: images/train\nnames: [cat, dog]\n", encoding="utf-8", newline="\n"
    )
    return home


def yolo_file(home: Path) -> Path:
    return yolo(home) / "data.yaml"


def label_studio(home: Path) -> Path:
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [
            {"result": [{"type": "choices", "value": {"choices": [name[:3]]}}]}
        ]} for i, name in enumerate(NAMES)
    ]  # fmt: skip
    return write_json(write_images(home, *NAMES) / "export.json", tasks)


def fiftyone(home: Path) -> Path:
    write_images(home, "data/cat_1.png", "data/dog_1.png")
    labels = {"classes": ["cat", "dog"], "labels": {"cat_1": 0, "dog_1": 1}}
    write_json(home / "labels.json", labels)
    return home


def fiftyone_samples(home: Path) -> Path:
    samples = [
        {"filepath": f"data/{name}", "tags": ["train"], "ground_truth": {
            "_cls": "Detections", "detections": [
                {"_cls": "Detection", "label": name[:3], "bounding_box": [0, 0, 0.5, 0.25]}
            ]}} for name in NAMES
    ]  # fmt: skip
    write_images(home, *(f"data/{name}" for name in NAMES))
    write_json(home / "samples.json", {"samples": samples})
    write_json(home / "metadata.json", {"name": "pets"})
    return home


def fiftyone_files(home: Path) -> Path:
    """Write one file per sample, as `use_dirs=True` exports them."""
    whole = fiftyone_samples(home) / "samples.json"
    for i, sample in enumerate(json.loads(whole.read_text())["samples"]):
        write_json(home / f"samples/{i:06d}-65f0c{9 - i}.json", sample)
    whole.unlink()
    return home


def zip_file(home: Path) -> Path:
    home.mkdir(parents=True)
    with zipfile.ZipFile(home / "pets.zip", "w") as file:
        for label in ("cat", "dog"):
            file.writestr(f"pets/{label}/{label}_1.png", png(label))
        file.writestr("__MACOSX/pets/._x", b"")
    return home / "pets.zip"


def zip_of_coco(home: Path) -> Path:
    coco_folder(home / "in")
    with zipfile.ZipFile(home / "coco.zip", "w") as file:
        for path in (home / "in").rglob("*"):
            file.write(path, path.relative_to(home / "in"))
    return home / "coco.zip"


def tar_file(home: Path) -> Path:
    with tarfile.open(class_folders(home / "in") / "pets.tar.gz", "w:gz") as file:
        for label in ("cat", "dog"):
            file.add(home / "in" / label, label)
    return home / "in" / "pets.tar.gz"


def shard(home: Path) -> Path:
    write_images(home / "in", *NAMES)
    for name in NAMES:
        (home / "in" / name).with_suffix(".cls").write_text(
            name[:3], encoding="utf-8", newline="\n"
        )
    (home / "shards").mkdir()
    with tarfile.open(home / "shards" / "pets-000000.tar", "w") as file:
        for path in sorted((home / "in").iterdir()):
            file.add(path, path.name)
    return home / "shards" / "pets-000000.tar"


def shard_folder(home: Path) -> Path:
    return shard(home).parent


FORMATS = (
    class_folders, yolo_classification, csv_file, json_lines, imagefolder, coco_file, coco_folder,
    roboflow, yolo, yolo_file, label_studio, fiftyone, fiftyone_samples, fiftyone_files, zip_file,
    zip_of_coco, tar_file, shard, shard_folder,
)  # fmt: skip


BOXED = (
    coco_file, coco_folder, roboflow, yolo, yolo_file, fiftyone_samples, fiftyone_files,
    zip_of_coco,
)  # fmt: skip
