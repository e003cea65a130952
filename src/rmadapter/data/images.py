"""A folder of class folders, a CSV file or plain lists become one ImageSet; any image becomes RGB."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path

from rmadapter.console import track
from rmadapter.data.pixels import ImageSource, complaint, content, load_image
from rmadapter.data.scan import Rows, order, scan_csv, scan_folder
from rmadapter.errors import UserError, nearest
from rmadapter.files import read_json, user_path

__all__ = ["ImageSet", "ImageSource", "load_image", "prompt_name", "read_images"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels.

    images: N paths, PIL images or arrays (uint8, or float in 0..1; [H, W], [H, W, 3] or [H, W, 4])
    labels: N indices into `classes`
    classes: prompt-ready names ("sea horse")
    root: the folder that names are relative to
    skipped: "path: reason" of every image that skip_bad left out
    """

    images: tuple[ImageSource, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    root: Path | None = None
    skipped: tuple[str, ...] = ()

    @classmethod
    def from_lists(
        cls, images: Iterable[ImageSource], labels: Iterable[str | int], classes: Sequence[str] | None = None
    ) -> ImageSet:
        """N images and N labels: class names (then `classes` may be left out), or indices into `classes`.

        Names become prompt names as `prompt_name` does it. Raises UserError for lists that do not fit together.
        """
        images, labels = tuple(images), tuple(labels)
        if not images or len(images) != len(labels):
            raise UserError(f"{len(images)} images and {len(labels)} labels: give one label for each image")
        if all(isinstance(label, str) for label in labels):
            written = sorted({str(label) for label in labels}, key=order) if classes is None else classes
        elif all(isinstance(label, Integral) for label in labels) and classes is not None:
            written = classes
        else:
            raise UserError("labels are class names, or whole numbers together with classes=[name, ...]")
        names = _prompt_names(written)
        numbers = {name.casefold(): i for i, name in enumerate(names.values())}
        found = []
        for label in labels:
            number = numbers.get(prompt_name(label).casefold(), -1) if isinstance(label, str) else int(label)
            if not 0 <= number < len(names):
                raise UserError(f"label {label!r} is not one of the classes{nearest(str(label), names.values())}")
            found.append(number)
        return cls(images, tuple(found), tuple(names.values()))

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """These images in this order, with the same classes."""
        chosen = list(indices)
        return replace(self, images=tuple(self.images[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen))

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
        """SHA-256 of classes, labels and the contents of all images in order; where they lie does not count."""
        return hashlib.sha256(json.dumps([self.classes, self.labels]).encode() + b"".join(self.contents)).hexdigest()


# Class names


def prompt_name(written: str) -> str:
    """ "sea_horse" or "sea-horse" -> "sea horse"; NFC, so that a name is the same on every file system."""
    return " ".join(unicodedata.normalize("NFC", written).replace("_", " ").replace("-", " ").split())


def _prompt_names(written: Sequence[str], given: Mapping[str, str] | None = None, where: str = "") -> dict[str, str]:
    """Names as written -> prompt names. Two that differ in case alone count as one: CLIP reads lower case."""
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for raw in written:
        name = " ".join(given[raw].split()) if given and raw in given else prompt_name(raw)
        if not name:
            raise UserError(f"{where}class {raw!r} leaves an empty name: give it a word")
        if (twin := first.setdefault(name.casefold(), raw)) != raw or raw in names:
            raise UserError(f"{where}classes {twin!r} and {raw!r} are both called {name!r}: rename one or merge them")
        names[raw] = name
    return names


def _given_names(root: Path, split: bool) -> dict[str, str]:
    """The optional classnames.json: {"folder name": "prompt name"}; for a folder of splits, which may be one domain
    of several, also that beside it."""
    path = root / "classnames.json"
    if split and not path.exists():
        path = root.parent / path.name
    given = read_json(path) if path.exists() else {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        raise UserError(f'{path}: write it as {{"folder name": "prompt name", ...}}')
    return {raw: unicodedata.normalize("NFC", name) for raw, name in given.items()}


# From disk


def read_images(
    data: str | Path, *, skip_bad: bool = False, outside: bool = False, progress: bool = True
) -> dict[str, ImageSet]:
    """Read a folder of class folders, train/val/test folders of such, or a CSV file `path,label[,split]`.

    Returns split name ("train", "val", "test"; "all" where the data has no splits) -> ImageSet; all share the
    classes of train (of all splits where there is no train), sorted by folder name. A file classnames.json beside
    them (for one domain of several, beside the domains) may give other prompt names. Every file is decoded once, so
    that what is found here can be used; bad ones raise UserError, or with `skip_bad` are left out and listed in
    `skipped`. Raises UserError too for whatever makes labels ambiguous, and for
    paths in a CSV file that lead out of its folder, unless `outside` allows them.
    """
    path = user_path(data)
    if os.path.isdir(path):  # which never raises, however long the name
        root, found = path, scan_folder(path)
    elif os.path.isfile(path) and path.suffix.lower() == ".csv":
        root, found = path.parent, scan_csv(path, outside)
    else:
        raise UserError(f"{path}: neither a folder of class folders nor a CSV file of path,label[,split]")
    classes, names = _shared_names(found, _given_names(root, path == root and "all" not in found), path)

    bad = _complaints([image for rows in found.values() for _, image in rows], progress)
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise UserError(f"{next(iter(bad.values()))}{more}; --skip-bad (skip_bad=True) goes on without such files")
    good = {split: [row for row in rows if row[1] not in bad] for split, rows in found.items()}
    leading = [good["train"]] if "train" in good else good.values()
    left = {names[raw] for rows in leading for raw, _ in rows}
    classes = [name for name in classes if name in left]
    if not classes:
        raise UserError(f"{path}: not one readable image {'in train' if 'train' in good else 'in it'}")
    places = {name: place for place, name in enumerate(classes)}
    numbers = {raw: places[name] for raw, name in names.items() if name in left}
    sets = {}
    for split, rows in good.items():
        kept = [(image, numbers[raw]) for raw, image in rows if raw in numbers]
        skipped = [f"{_relative(p, root)}: {bad[p].removeprefix(f'{p}: ')}" for _, p in found[split] if p in bad]
        skipped += [f"{_relative(p, root)}: no train image of its class" for raw, p in rows if raw not in numbers]
        paths, labels = tuple(p for p, _ in kept), tuple(n for _, n in kept)
        sets[split] = ImageSet(paths, labels, tuple(classes), root, tuple(skipped))
    return sets


def _relative(path: Path, root: Path | None) -> str:
    return (path.relative_to(root) if root and path.is_relative_to(root) else path).as_posix()


def _shared_names(found: dict[str, Rows], given: Mapping[str, str], path: Path) -> tuple[list[str], dict[str, str]]:
    """The classes in order, and for every class as written, in any split, its name among them."""
    own = {
        split: _prompt_names(sorted({raw for raw, _ in rows}, key=order), given, f"{path} ({split}): ")
        for split, rows in found.items()
    }
    leading = own["train"] if "train" in own else {raw: name for names in own.values() for raw, name in names.items()}
    shared: dict[str, str] = {}
    for raw in sorted(leading, key=order):
        shared.setdefault(leading[raw].casefold(), leading[raw])
    for split, names in own.items():
        for raw, name in names.items():
            if name.casefold() not in shared:
                raise UserError(f"{path}: {split} has a class {raw!r} that train lacks: rename it or remove it there")
    return list(shared.values()), {raw: shared[name.casefold()] for own_ in own.values() for raw, name in own_.items()}


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
