"""ImageSet: labelled images from any source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rmadapter.data.decode import ImageSource
from rmadapter.data.duplicates import looks
from rmadapter.data.formats.scan import only_label, order
from rmadapter.data.image_reader import ImageReader, Transform
from rmadapter.data.names import Label, places, prompt_names
from rmadapter.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels.

    - images: N paths, PIL images or arrays (uint8, or float in 0..1; [H, W], [H, W, 3] or
      [H, W, 4])
    - labels: N indices into `classes`
    - classes: prompt names ("sea horse")
    - root: the folder that image names are relative to
    - skipped: "path: reason" of every image that skip_bad left out
    - written: the classes as the user writes them ("sea_horse", or a number); by default `classes`
    - groups: N group names, such as patients; images of one group never judge each other. "": none
    - ignored: note on files that were not read, such as "5 files ignored: .heic 3, .txt 2"
    - weights: N weights of the images in training; empty if all are equal
    - reader: of the image files; shared by all subsets
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
    reader: ImageReader = field(default_factory=ImageReader, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", self.written or self.classes)
        object.__setattr__(self, "groups", self.groups or ("",) * len(self.images))
        if len(self.groups) != len(self.images):
            raise UserError(
                f"{len(self.images)} images and {len(self.groups)} groups: give one group for each image"
            )
        if len(self.written) != len(self.classes):
            raise ValueError(
                f"{len(self.written)} labels as written for {len(self.classes)} classes"
            )

    @classmethod
    def from_lists(
        cls, images: Iterable[ImageSource], labels: Iterable[Label | Sequence[Label]],
        classes: Sequence[str] | None = None, groups: Iterable[str] = (),
    ) -> ImageSet:  # fmt: skip
        """From N images and N labels: class names (then `classes` may be omitted), or indices into
        `classes`.

        A label may be a list of one. `prompt_names` turns the names into prompt names. Raises
        UserError for lists that do not fit together, and for an image with several labels.
        """
        images, given = tuple(images), tuple(labels)
        if not images or len(images) != len(given):
            raise UserError(
                f"{len(images)} images and {len(given)} labels: give one label for each image"
            )
        flat: list[Label] = []
        for number, label in enumerate(given):
            each = label if isinstance(label, (list, tuple)) else (label,)
            only = only_label(each, f"image {number}")
            if only is None:
                raise UserError(f"image {number} has an empty list of labels")
            flat.append(cast("Label", only))
        text, numbers = (all(isinstance(label, kind) for label in flat) for kind in (str, Integral))
        if text and classes is None:
            classes = sorted({str(label) for label in flat}, key=order)
        if classes is None or not (text or numbers):
            raise UserError("labels must be class names, or whole numbers with classes=[name, ...]")
        names = tuple(prompt_names(classes).values())
        found = places(flat, classes if text else range(len(classes)), names)
        spelled = dict(zip(found, flat, strict=True)) if text else {}
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
        """Path relative to `root` with forward slashes, or "image 3" for an image in memory."""
        image = self.images[index]
        if not isinstance(image, (str, Path)):
            return f"image {index}"
        return relative(Path(image), self.root)

    def read(self, transform: Transform, progress: bool = False) -> None:
        """Decode every image once, ahead of its use: `reader` keeps what is needed later.

        transform: of a backbone, from an RGB image to pixels. Raises UserError if an image cannot be
        read.
        """
        errors = [error for error in self.reader.read(self.images, transform, progress) if error]
        if errors:
            raise UserError(unreadable(errors))

    def looks(self, progress: bool = False) -> np.ndarray:
        """Return the features by which `duplicates` finds near-duplicates. Raises as `load_image`."""
        return looks(self.reader.thumbprints(self.images, progress))

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """The SHA-256 of each image."""
        return tuple(map(self.reader.content, self.images))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of classes, labels, weights and image contents in order; independent of paths."""
        about = [self.classes, self.labels, *([self.weights] if self.weights else [])]
        return hashlib.sha256(json.dumps(about).encode() + b"".join(self.contents)).hexdigest()


SKIP_BAD = "--skip-bad (skip_bad=True) leaves out such files"


def unreadable(errors: Sequence[str], note: str = "") -> str:
    """Return a message about images that cannot be read, which quotes the first of the errors."""
    more = f" (and {len(errors) - 1} more like it)" if len(errors) > 1 else ""
    return f"{errors[0]}{more}{note}; {SKIP_BAD}"


def relative(path: Path, root: Path | None) -> str:
    """The path relative to `root`, or unchanged if it is outside; with forward slashes."""
    return (path.relative_to(root) if root and path.is_relative_to(root) else path).as_posix()
