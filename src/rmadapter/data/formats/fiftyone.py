"""FiftyOne's exports. FiftyOneImageClassificationDataset: labels.json of {"classes": [...],
"labels": {stem: class, or list of classes}} beside data/. FiftyOneDataset: samples.json of
{"samples": [{"filepath": ..., "tags": [...], FIELD: label}]}, or a folder samples/ with one file
per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmadapter.data.decode_limits import check_inside, listed_image
from rmadapter.data.formats.annotations import Mark, Marks, shaped
from rmadapter.data.formats.scan import SPLITS, image_files
from rmadapter.errors import UserError, quoted

KIND = "a FiftyOne list of labels"
SAMPLES = "samples.json"
TRUTH = "ground_truth"  # the field to read if several hold labels
LABELS = {"Classification", "Classifications", "Detection", "Detections"}  # the last two have boxes


def is_fiftyone(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("labels"), dict)


def read_fiftyone(path: Path, value: Mapping[str, Any]) -> Marks:
    """The images in the order of the labels. Raises UserError for a malformed file, an unlisted
    class, and two images with the same name."""
    data = path.parent / "data"
    files: dict[str, Path] = {}
    for image in image_files(data, set()):
        stem = image.relative_to(data).with_suffix("").as_posix()
        if (other := files.setdefault(stem, image)) is not image:
            raise UserError(
                f"{data}: {other.name} and {image.name} share one name in {path.name}: rename one"
            )
    with shaped(path, KIND):
        classes, marks = value.get("classes"), {}
        for stem, target in value["labels"].items():
            where = f"{path}: {quoted(stem)}"
            check_inside(stem, where)
            several = target if isinstance(target, list) else [target]
            names = [_name(one, classes, where) for one in several]
            marks[files.get(stem, data / stem)] = [
                Mark(name, where) for name in names if name is not None
            ]
    return marks


def _name(target: Any, classes: Any, where: str) -> str | None:
    target = target["label"] if isinstance(target, dict) else target
    if isinstance(target, int) and not (classes and 0 <= target < len(classes)):
        raise UserError(f"{where} has class {target}, which the file does not list")
    return None if target is None else str(classes[target] if isinstance(target, int) else target)


def is_samples(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("samples"), list)


def read_samples(path: Path, value: Mapping[str, Any], outside: bool = False) -> dict[str, Marks]:
    """Split -> images in the order of the file; the tags train, val and test give the split.

    Raises UserError for a malformed file, labels in several fields but none in TRUTH, a sample with
    tags of several splits, split tags on only some samples, and paths that leave the folder unless
    `outside` is set.
    """
    splits: dict[str, Marks] = {}
    with shaped(path, "a FiftyOne data set"):
        field = _field(path, value["samples"])
        for sample in value["samples"]:
            name = str(sample["filepath"])
            where = f"{path}: sample {quoted(name)}"
            image = listed_image(path, where, name, outside)
            marks = splits.setdefault(_split(where, sample.get("tags") or ()), {})
            marks.setdefault(image, []).extend(_marks(where, sample.get(field)))
    if len(splits) > 1 and any(splits.get("all", {}).values()):
        raise UserError(
            f"{path}: some samples are tagged train, val or test and others are not: tag all or none"
        )
    return splits


def _field(path: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    """Name of the field that holds the labels."""
    found = {
        name: None
        for sample in samples
        for name, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") in LABELS
    }
    if not found:
        raise UserError(f"{path}: no sample has a label of the types {', '.join(sorted(LABELS))}")
    if TRUTH not in found and len(found) > 1:
        names = ", ".join(map(quoted, [*found][:5]))
        raise UserError(
            f"{path}: has labels in the fields {names}: export only one of them, or call one {TRUTH}"
        )
    return TRUTH if TRUTH in found else next(iter(found))


def _split(where: str, tags: Sequence[Any]) -> str:
    found = {SPLITS[tag.casefold()] for tag in map(str, tags) if tag.casefold() in SPLITS}
    if len(found) > 1:
        raise UserError(
            f"{where} is tagged with the splits {' and '.join(sorted(found))}: keep one"
        )
    return found.pop() if found else "all"


def _marks(where: str, value: Any) -> Iterator[Mark]:
    """The labels of a field; boxes are left, top, width and height as fractions of the image."""
    kind = value["_cls"] if value else ""
    for label in (
        value[kind.lower()]
        if kind in ("Classifications", "Detections")
        else [value]
        if value
        else ()
    ):
        if label.get("label") is not None:
            yield Mark(str(label["label"]), where, label.get("bounding_box") or ())
