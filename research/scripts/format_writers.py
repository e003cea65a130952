"""Write images with one label each in every supported format: by hand if the format is plain
text."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from rmadapter.data.read import ImageSet, load_image


class Shot(NamedTuple):
    """An image and its label. name: a file name, unique among all images."""

    file: Path
    name: str
    label: str
    split: str


Shots = Sequence[Shot]


def shots_of(sets: Mapping[str, ImageSet]) -> list[Shot]:
    """Return the images of all splits; without splits, all are train."""
    rows = [
        (Path(str(image)), str(part.written[label]), "train" if split == "all" else split)
        for split, part in sets.items()
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    return [
        Shot(file, f"{i:06}{file.suffix}", label, split)
        for i, (file, label, split) in enumerate(rows)
    ]


def copied(shots: Shots, place: Callable[[Shot], Path]) -> None:
    for shot in shots:
        path = place(shot)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shot.file, path)


def labels_of(shots: Shots) -> list[str]:
    return sorted({shot.label for shot in shots})


def by_split(shots: Shots) -> dict[str, list[Shot]]:
    return {
        split: [shot for shot in shots if shot.split == split]
        for split in dict.fromkeys(s.split for s in shots)
    }


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8", newline="\n")
    return path


# Each function writes below an empty folder, and returns the argument for `read_images`.


def class_folders(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / shot.split / shot.label / shot.name)
    return home


def table(shots: Shots, home: Path, delimiter: str = ",", suffix: str = ".csv") -> Path:
    copied(shots, lambda shot: home / shot.name)
    path = home / f"images{suffix}"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["file_name", "class", "split"])
        rows.writerows([shot.name, shot.label, shot.split] for shot in shots)
    return path


def frame(shots: Shots, home: Path) -> Any:
    import pandas

    rows = [(str(shot.file.absolute()), shot.label, shot.split) for shot in shots]
    return pandas.DataFrame(rows, columns=["path", "label", "split"])


def parquet(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / shot.name)
    frame(shots, home).assign(path=[shot.name for shot in shots]).to_parquet(
        home / "images.parquet"
    )
    return home / "images.parquet"


def json_lines(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / shot.name)
    lines = [
        json.dumps({"path": shot.name, "label": shot.label, "split": shot.split}) for shot in shots
    ]
    (home / "images.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return home / "images.jsonl"


def imagefolder(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / shot.split / shot.name)
    for split, some in by_split(shots).items():
        lines = [json.dumps({"file_name": shot.name, "label": shot.label}) for shot in some]
        (home / split / "metadata.jsonl").write_text(
            "\n".join(lines), encoding="utf-8", newline="\n"
        )
    return home


def dataset(shots: Shots, home: Path) -> Any:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars

    disable_progress_bars()
    features = Features({"image": Image(), "label": ClassLabel(names=labels_of(shots))})
    parts = {}
    for split, some in by_split(shots).items():
        packed = [{"bytes": shot.file.read_bytes(), "path": shot.name} for shot in some]
        parts[split] = Dataset.from_dict(
            {"image": packed, "label": [shot.label for shot in some]}, features=features
        )
    return DatasetDict(parts)


def saved(shots: Shots, home: Path) -> Path:
    dataset(shots, home).save_to_disk(home / "saved")
    return home / "saved"


def hub_parquet(shots: Shots, home: Path) -> Path:
    for split, part in dataset(shots, home).items():
        part.to_parquet(home / f"{split}-00000-of-00001.parquet")
    return home


def coco(shots: Shots, home: Path) -> Path:
    """Write COCO, with a box around the whole of each image."""
    copied(shots, lambda shot: home / "images" / shot.name)
    names = labels_of(shots)
    images = []
    boxes = []
    for i, shot in enumerate(shots):
        with Image.open(shot.file) as opened:
            width, height = opened.size
        images.append({"id": i, "file_name": shot.name, "width": width, "height": height})
        category = names.index(shot.label) + 1
        boxes.append(
            {
                "id": i,
                "image_id": i,
                "category_id": category,
                "bbox": [0, 0, width, height],
                "iscrowd": 0,
            }
        )
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return written(
        home / "coco.json", {"images": images, "annotations": boxes, "categories": categories}
    )


def yolo(shots: Shots, home: Path) -> Path:
    names = labels_of(shots)
    copied(shots, lambda shot: home / "images" / shot.split / shot.name)
    for shot in shots:
        file = home / "labels" / shot.split / f"{Path(shot.name).stem}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{names.index(shot.label)} 0.5 0.5 1 1\n", encoding="utf-8", newline="\n")
    splits = {split: f"images/{split}" for split in by_split(shots)}
    return written(home / "data.yaml", {**splits, "names": names})  # JSON is YAML


def label_studio(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / shot.name)
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/{shot.name}"},
         "annotations": [{"result": [{"type": "choices", "value": {"choices": [shot.label]}}]}]}
        for i, shot in enumerate(shots)
    ]  # fmt: skip
    return written(home / "export.json", tasks)


def label_studio_min(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / shot.name)
    return written(
        home / "export.json",
        [{"image": f"/data/upload/1/{s.name}", "choice": s.label} for s in shots],
    )


def fiftyone_classes(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / "data" / shot.name)
    names = labels_of(shots)
    labels = {Path(shot.name).stem: names.index(shot.label) for shot in shots}
    return written(home / "labels.json", {"classes": names, "labels": labels}).parent


def fiftyone(shots: Shots, home: Path) -> Path:
    copied(shots, lambda shot: home / "data" / shot.name)
    samples = [
        {"filepath": f"data/{shot.name}", "tags": [shot.split],
         "ground_truth": {"_cls": "Classification", "label": shot.label}}
        for shot in shots
    ]  # fmt: skip
    written(home / "metadata.json", {"name": "images"})
    return written(home / "samples.json", {"samples": samples}).parent


def webdataset(shots: Shots, home: Path) -> Path:
    for split, some in by_split(shots).items():
        with tarfile.open(home / f"{split}-0000.tar", "w") as tar:
            for shot in some:
                tar.add(shot.file, shot.name)
                name = home / "one.cls"
                name.write_text(shot.label, encoding="utf-8", newline="\n")
                tar.add(name, f"{Path(shot.name).stem}.cls")
    (home / "one.cls").unlink()
    return home


def packed(shots: Shots, home: Path, suffix: str = ".zip") -> Path:
    path = home.with_suffix(suffix)
    files = [(shot.file, f"images/{shot.split}/{shot.label}/{shot.name}") for shot in shots]
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file, name in files:
                archive.write(file, name)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for file, name in files:
                tar.add(file, name)
    return path


def image_folder(shots: Shots, home: Path) -> Any:
    from torchvision.datasets import ImageFolder

    copied(shots, lambda shot: home / shot.label / shot.name)
    return ImageFolder(str(home))


def pictures(shots: Shots, home: Path) -> Any:
    return [(load_image(shot.file), shot.label) for shot in shots]


def arrays(shots: Shots, home: Path) -> Any:
    import numpy as np

    return ImageSet.from_lists(
        [np.asarray(load_image(shot.file)) for shot in shots], [shot.label for shot in shots]
    )


class Format(NamedTuple):
    """write: see above. needs: the module required to read it. words: keyword arguments of
    `read_images`."""

    write: Callable[[Shots, Path], Any]
    needs: str = ""
    words: Mapping[str, Any] = {}


FORMATS: dict[str, Format] = {
    "class folders": Format(class_folders),
    "CSV": Format(table),
    "TSV": Format(lambda shots, home: table(shots, home, "\t", ".tsv")),
    "CSV with semicolons": Format(lambda shots, home: table(shots, home, ";")),
    "JSON lines": Format(json_lines),
    "parquet of paths": Format(parquet, "pyarrow"),
    "ImageFolder, metadata.jsonl": Format(imagefolder),
    "save_to_disk": Format(saved, "datasets"),
    "parquet of the hub": Format(hub_parquet, "datasets"),
    "COCO": Format(coco),
    "COCO, --crops": Format(coco, words={"crops": True}),
    "YOLO": Format(yolo),
    "Label Studio, JSON": Format(label_studio),
    "Label Studio, JSON-MIN": Format(label_studio_min),
    "FiftyOneImageClassificationDataset": Format(fiftyone_classes),
    "FiftyOneDataset": Format(fiftyone),
    "webdataset": Format(webdataset),
    "zip": Format(packed),
    "tar.gz": Format(lambda shots, home: packed(shots, home, ".tar.gz")),
    "DataFrame": Format(frame, "pandas"),
    "DatasetDict": Format(dataset, "datasets"),
    "torchvision's ImageFolder": Format(image_folder, "torchvision"),
    "PIL images in pairs": Format(pictures),
    "arrays": Format(arrays),
}
