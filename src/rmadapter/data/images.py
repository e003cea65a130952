"""A folder of class folders, a table or plain lists become one ImageSet; any image becomes RGB."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

from rmadapter.console import track
from rmadapter.data.ignored import ignored_note
from rmadapter.data.names import Label, classnames_json, places, prompt_name, prompt_names
from rmadapter.data.pixels import ImageSource, complaint, content, load_image
from rmadapter.data.scan import Rows, order
from rmadapter.data.sources import open_source
from rmadapter.errors import UserError

__all__ = ["ImageSet", "ImageSource", "load_image", "prompt_name", "read_images"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels.

    images: N paths, PIL images or arrays (uint8, or float in 0..1; [H, W], [H, W, 3] or [H, W, 4])
    labels: N indices into `classes`
    classes: prompt-ready names ("sea horse")
    root: the folder that names are relative to
    ignored: what is said of files that are not read, such as "5 files ignored: .heic 3, .txt 2"
    skipped: "path: reason" of every image that skip_bad left out
    written: the classes as the user writes them ("sea_horse", or a number); by default as in the prompt
    groups: N names of what images have in common, as a patient; those of one never judge each other. "" stands alone
    weights: N numbers, how much each image counts in training; empty where all count alike
    """

    images: tuple[ImageSource, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    root: Path | None = None
    skipped: tuple[str, ...] = ()
    written: tuple[Label, ...] = ()
    groups: tuple[str, ...] = ()
    ignored: str = ""
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", self.written or self.classes)
        object.__setattr__(self, "groups", self.groups or ("",) * len(self.images))
        if len(self.groups) != len(self.images):
            raise UserError(f"{len(self.images)} images and {len(self.groups)} groups: give one group for each image")
        if len(self.written) != len(self.classes):
            raise ValueError(f"{len(self.written)} labels as written for {len(self.classes)} classes")

    @classmethod
    def from_lists(
        cls, images: Iterable[ImageSource], labels: Iterable[str | int], classes: Sequence[str] | None = None,
        groups: Iterable[str] = (),
    ) -> ImageSet:  # fmt: skip
        """N images and N labels: class names (then `classes` may be left out), or indices into `classes`.

        Names become prompt names as `prompt_name` does it. Raises UserError for lists that do not fit together.
        """
        images, labels = tuple(images), tuple(labels)
        if not images or len(images) != len(labels):
            raise UserError(f"{len(images)} images and {len(labels)} labels: give one label for each image")
        text, numbers = (all(isinstance(label, kind) for label in labels) for kind in (str, Integral))
        if text and classes is None:
            classes = sorted({str(label) for label in labels}, key=order)
        if classes is None or not (text or numbers):
            raise UserError("labels are class names, or whole numbers together with classes=[name, ...]")
        names = tuple(prompt_names(classes).values())
        found = places(labels, classes if text else range(len(classes)), names)
        spelled = dict(zip(found, labels, strict=True)) if text else {}
        written = tuple(spelled.get(i, name if text else i) for i, name in enumerate(classes))
        return cls(images, tuple(found), names, written=written, groups=tuple(groups))

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """These images in this order, with the same classes."""
        chosen = list(indices)
        return replace(
            self,
            images=tuple(self.images[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            weights=tuple(self.weights[i] for i in chosen) if self.weights else (),
        )

    def akin(self, others: ImageSet) -> list[int]:
        """Indices of the images that share a group with one of the others."""
        theirs = {*others.groups} - {""}
        return [i for i, group in enumerate(self.groups) if group in theirs]

    def name(self, index: int) -> str:
        """Path relative to `root` with forward slashes, or "image 3" for an image that is no file."""
        image = self.images[index]
        if not isinstance(image, (str, Path)):
            return f"image {index}"
        return _relative(Path(image), self.root)

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """SHA-256 of each image."""
        return tuple(map(content, self.images))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of classes, labels, weights and the contents of all images in order, wherever they lie."""
        about = [self.classes, self.labels, *([self.weights] if self.weights else [])]
        return hashlib.sha256(json.dumps(about).encode() + b"".join(self.contents)).hexdigest()


# From disk


def read_images(
    data: Any, *, skip_bad: bool = False, outside: bool = False, progress: bool = True,
    names: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None, crops: bool = False,
) -> dict[str, ImageSet]:  # fmt: skip
    """Read a folder of class folders, train/val/test folders of such, a table `path,label[,split][,group]`, or any
    other format of docs/data.md.

    data: a path, or what `memory.open_object` knows. columns: of a table, "image", "label", "split" or "group" -> what
    it is called there, where that is none of the usual names. crops: the boxes of COCO, YOLO and Label Studio are the
    images.
    Returns split name ("train", "val", "test"; "all" where the data has no splits) -> ImageSet; all share the
    classes of train (of all splits where there is no train), sorted by folder name. A file classnames.json beside
    them (for one domain of several, beside the domains) may give other prompt names, and so does `names`: label ->
    prompt name, which comes first; "crane | tall bird" are two descriptions of one class. Every file is decoded once,
    so that what is found here can be used; bad ones raise UserError, or with `skip_bad` are left out and listed in
    `skipped`. Raises UserError too for whatever makes labels ambiguous, and for paths in a table that lead out of its
    folder, unless `outside` allows them.
    """
    if isinstance(data, (str, Path)):
        path, source = Path(data), open_source(data, outside, columns, crops)
    else:
        from rmadapter.data.memory import open_object

        opened = open_object(data, columns)
        if isinstance(opened, dict):
            return opened
        path, source = Path(type(data).__name__), opened
    root, found, ignored = source.root, source.splits, ignored_note(source.ignored)
    given = {**classnames_json(root, os.path.isdir(path) and "all" not in found), **(names or {})}
    written, called = _shared_names(found, given, path)

    bad = _complaints([row.image for rows in found.values() for row in rows], progress)
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        more += f" ({ignored})" if ignored and any(os.path.isdir(image) for image in bad) else ""
        raise UserError(f"{next(iter(bad.values()))}{more}; --skip-bad (skip_bad=True) goes on without such files")
    good = {split: [row for row in rows if row.image not in bad] for split, rows in found.items()}
    leading = [good["train"]] if "train" in good else good.values()
    left = {called[row.label] for rows in leading for row in rows}
    classes = [name for name in written if name in left]
    if not classes:
        raise UserError(f"{path}: not one readable image {'in train' if 'train' in good else 'in it'}")
    number = {name: i for i, name in enumerate(classes)}
    numbers = {raw: number[name] for raw, name in called.items() if name in left}
    sets = {}
    for split, rows in good.items():
        kept = [row for row in rows if row.label in numbers]
        skipped = [f"{_relative(p, root)}: {bad[p].removeprefix(f'{p}: ')}" for _, p, _ in found[split] if p in bad]
        skipped += [f"{_relative(p, root)}: no train image of its class" for raw, p, _ in rows if raw not in numbers]
        paths, labels = tuple(row.image for row in kept), tuple(numbers[row.label] for row in kept)
        labelled, groups = tuple(written[name] for name in classes), tuple(row.group for row in kept)
        sets[split] = ImageSet(paths, labels, tuple(classes), root, tuple(skipped), labelled, groups, ignored)
    return sets


def _relative(path: Path, root: Path | None) -> str:
    return (path.relative_to(root) if root and path.is_relative_to(root) else path).as_posix()


def _shared_names(
    found: dict[str, Rows], given: Mapping[str, str], path: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """The classes in order, each with its label, and for every class as written, in any split, its name among them."""
    own = {
        split: prompt_names(sorted({row.label for row in rows}, key=order), given, f"{path} ({split}): ")
        for split, rows in found.items()
    }
    leading = own["train"] if "train" in own else {raw: name for names in own.values() for raw, name in names.items()}
    shared: dict[str, str] = {}
    written: dict[str, str] = {}
    for raw in sorted(leading, key=order):
        written.setdefault(shared.setdefault(leading[raw].casefold(), leading[raw]), raw)
    for split, names in own.items():
        for raw, name in names.items():
            if name.casefold() not in shared:
                raise UserError(f"{path}: {split} has a class {raw!r} that train lacks: rename it or remove it there")
    return written, {raw: shared[name.casefold()] for own_ in own.values() for raw, name in own_.items()}


def _complaints(paths: Sequence[Path], progress: bool) -> dict[Path, str]:
    """Bad files and what is wrong with them."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong we say with a sentence
            told = track(pool.map(complaint, paths), len(paths), "checking images", progress)
            return {path: text for path, text in zip(paths, told, strict=True) if text}
    finally:
        pool.shutdown(cancel_futures=True)
