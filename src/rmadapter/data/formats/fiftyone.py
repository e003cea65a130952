"""FiftyOne's exports. FiftyOneImageClassificationDataset: labels.json of {"classes": [...],
"labels": {stem: class, or list of classes}} beside data/. FiftyOneDataset: samples.json of
{"samples": [{"filepath": ..., "tags": [...], FIELD: label}]}, or a folder samples/ with one file
per sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rmadapter.data.formats.base import (
    Mark,
    Marks,
    check_inside,
    image_files,
    listed_image,
    parsing,
)
from rmadapter.data.names import only_split
from rmadapter.errors import UserError, quoted
from rmadapter.support.files import JsonObject

LABELS = "labels.json"
SAMPLES = "samples.json"
TRUTH_FIELD = "ground_truth"  # the field to read if several hold labels
LABEL_TYPES = {
    "Classification",
    "Classifications",
    "Detection",
    "Detections",
}  # the last two have boxes


def is_classification(folder: Path) -> bool:
    """Return whether a folder is laid out like a FiftyOneImageClassificationDataset."""
    return (folder / LABELS).is_file() and (folder / "data").is_dir()


def sample_files(folder: Path) -> list[Path]:
    """Return the files of a FiftyOneDataset with one file per sample."""
    return sorted(folder.glob("samples/*.json"))


def is_export(folder: Path) -> bool:
    """Return whether a folder is one of FiftyOne's exports."""
    samples = (folder / SAMPLES).is_file() or bool(sample_files(folder))
    return is_classification(folder) or ((folder / "metadata.json").is_file() and samples)


def is_fiftyone(value: object) -> bool:
    """Return whether a parsed file is a labels.json."""
    return isinstance(value, dict) and isinstance(value.get("labels"), dict)


def read_fiftyone(path: Path, value: JsonObject) -> Marks:
    """Return the images in the order of the labels.

    Raises:
        UserError: A malformed file, an unlisted class, or two images with the same name.
    """
    data = path.parent / "data"
    files: dict[str, Path] = {}
    for image in image_files(data):
        stem = image.relative_to(data).with_suffix("").as_posix()
        other = files.setdefault(stem, image)
        if other is not image:
            raise UserError(
                f"{data}: {other.name} and {image.name} share one name in {path.name}: rename one"
            )
    marks: Marks = {}
    with parsing(path, "a FiftyOne list of labels"):
        classes = value.get("classes")
        for stem, target in value["labels"].items():
            where = f"{path}: {quoted(stem)}"
            check_inside(stem, where)
            targets = target if isinstance(target, list) else [target]
            names = [_name(one, classes, where) for one in targets]
            labels = [Mark(name, where) for name in names if name is not None]
            marks[files.get(stem, data / stem)] = labels
    return marks


def _name(target: object, classes: Sequence[object] | None, where: str) -> str | None:
    label = target["label"] if isinstance(target, dict) else target
    if not isinstance(label, int):
        return None if label is None else str(label)
    if not classes or not 0 <= label < len(classes):
        raise UserError(f"{where} has class {label}, which the file does not list")
    return str(classes[label])


def is_samples(value: object) -> bool:
    """Return whether a parsed file is a samples.json."""
    return isinstance(value, dict) and isinstance(value.get("samples"), list)


def read_samples(path: Path, value: JsonObject, outside: bool = False) -> dict[str, Marks]:
    """Return split -> images in the order of the file; the tags train, val and test give the split.

    Raises:
        UserError: A malformed file, labels in several fields but none in `TRUTH_FIELD`, a sample
            with tags of several splits, split tags on only some samples, or paths that leave the
            folder unless `outside` is set.
    """
    splits: dict[str, Marks] = {}
    with parsing(path, "a FiftyOne data set"):
        field = _label_field(path, value["samples"])
        for sample in value["samples"]:
            name = str(sample["filepath"])
            where = f"{path}: sample {quoted(name)}"
            image = listed_image(path.parent, where, name, outside)
            split = only_split(map(str, sample.get("tags") or ()), where, "keep one of its tags")
            marks = splits.setdefault(split, {})
            marks.setdefault(image, []).extend(_marks(where, sample.get(field)))
    if len(splits) > 1 and any(splits.get("all", {}).values()):
        raise UserError(
            f"{path}: some samples are tagged train, val or test and others are not: tag all or "
            "none"
        )
    return splits


def _label_field(path: Path, samples: Sequence[JsonObject]) -> str:
    """Return the name of the field that holds the labels."""
    fields: dict[str, None] = {}
    for sample in samples:
        for name, value in sample.items():
            if isinstance(value, dict) and value.get("_cls") in LABEL_TYPES:
                fields[name] = None
    if not fields:
        raise UserError(
            f"{path}: no sample has a label of the types {', '.join(sorted(LABEL_TYPES))}"
        )
    if TRUTH_FIELD in fields:
        return TRUTH_FIELD
    if len(fields) > 1:
        names = ", ".join(map(quoted, [*fields][:5]))
        raise UserError(
            f"{path}: has labels in the fields {names}: export only one of them, or call one "
            f"{TRUTH_FIELD}"
        )
    return next(iter(fields))


def _marks(where: str, value: JsonObject | None) -> Iterator[Mark]:
    """Yield the labels of a field; boxes are left, top, width and height as fractions of the
    image."""
    kind = value["_cls"] if value else ""
    labels = [value] if value else []
    if value and kind in ("Classifications", "Detections"):
        labels = value[kind.lower()]
    for label in labels:
        if label.get("label") is not None:
            yield Mark(str(label["label"]), where, label.get("bounding_box") or ())
