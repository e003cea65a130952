"""FiftyOneImageClassificationDataset: labels.json of {"classes": [...], "labels": {stem: class}} beside data/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmadapter.data.guard import check_inside
from rmadapter.data.marks import Mark, Marks, shaped
from rmadapter.data.scan import image_files
from rmadapter.errors import UserError, quoted

KIND = "a FiftyOne list of labels"


def is_fiftyone(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("labels"), dict)


def read_fiftyone(path: Path, value: Mapping[str, Any]) -> Marks:
    """The images in the order of the labels. Raises UserError for a file of another shape, a class that it does not
    list, and two images of one name."""
    data = path.parent / "data"
    files: dict[str, Path] = {}
    for image in image_files(data, set()):
        stem = image.relative_to(data).with_suffix("").as_posix()
        if (other := files.setdefault(stem, image)) is not image:
            raise UserError(f"{data}: {other.name} and {image.name} have one name in {path.name}: rename one")
    with shaped(path, KIND):
        classes, marks = value.get("classes"), {}
        for stem, target in value["labels"].items():
            where = f"{path}: {quoted(stem)}"
            check_inside(stem, where)
            target = target["label"] if isinstance(target, dict) else target
            if isinstance(target, int) and not (classes and 0 <= target < len(classes)):
                raise UserError(f"{where} is of class {target}, which the file does not list")
            name = str(classes[target]) if isinstance(target, int) and classes else target
            marks[files.get(stem, data / stem)] = [] if name is None else [Mark(str(name), where)]
    return marks
