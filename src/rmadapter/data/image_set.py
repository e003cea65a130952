"""ImageSet: labelled images from any source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from rmadapter.data.decode import ImageSource, content
from rmadapter.data.formats.scan import order
from rmadapter.data.names import Label, places, prompt_names
from rmadapter.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels.

    images: N paths, PIL images or arrays (uint8, or float in 0..1; [H, W], [H, W, 3] or [H, W, 4])
    labels: N indices into `classes`; the first label of an image that has several classes: prompt
    names ("sea horse") root: the folder that image names are relative to ignored: note on files
    that were not read, such as "5 files ignored: .heic 3, .txt 2" skipped: "path: reason" of every
    image that skip_bad left out written: the classes as the user writes them ("sea_horse", or a
    number); by default `classes` groups: N group names, such as patients; images of one group never
    judge each other. "": no group weights: N weights of the images in training; empty if all are
    equal several: N tuples of all labels of an image; empty if each image has one label
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
    several: tuple[tuple[int, ...], ...] = ()

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

        An image that may have several labels has a list of them. `prompt_names` turns the names
        into prompt names. Raises UserError for lists that do not fit together.
        """
        images, given = tuple(images), tuple(labels)
        if not images or len(images) != len(given):
            raise UserError(
                f"{len(images)} images and {len(given)} labels: give one label for each image"
            )
        each = [tuple(label) if isinstance(label, (list, tuple)) else (label,) for label in given]
        if () in each:
            raise UserError(f"image {each.index(())} has an empty list of labels")
        flat = [label for own in each for label in own]
        text, numbers = (all(isinstance(label, kind) for label in flat) for kind in (str, Integral))
        if text and classes is None:
            classes = sorted({str(label) for label in flat}, key=order)
        if classes is None or not (text or numbers):
            raise UserError("labels must be class names, or whole numbers with classes=[name, ...]")
        names = tuple(prompt_names(classes).values())
        found = places(flat, classes if text else range(len(classes)), names)
        spelled = dict(zip(found, flat, strict=True)) if text else {}
        written = tuple(spelled.get(i, name if text else i) for i, name in enumerate(classes))
        turn = iter(found)
        rows = tuple(tuple(dict.fromkeys(islice(turn, len(own)))) for own in each)
        first, several = tuple(own[0] for own in rows), rows if max(map(len, rows)) > 1 else ()
        return cls(images, first, names, written=written, groups=tuple(groups), several=several)

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
            several=tuple(self.several[i] for i in chosen) if self.several else (),
        )

    @property
    def all_labels(self) -> tuple[tuple[int, ...], ...]:
        """N tuples of one or more labels."""
        return self.several or tuple((label,) for label in self.labels)

    def targets(self) -> np.ndarray:
        """Bool [N, C]: whether an image has a label."""
        import numpy as np

        found = np.zeros((len(self), len(self.classes)), dtype=bool)
        for row, labels in enumerate(self.all_labels):
            found[row, list(labels)] = True
        return found

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

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """SHA-256 of each image."""
        return tuple(map(content, self.images))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of classes, labels, weights and image contents in order; independent of paths."""
        about = [
            self.classes,
            self.labels,
            *(more for more in (self.weights, self.several) if more),
        ]
        return hashlib.sha256(json.dumps(about).encode() + b"".join(self.contents)).hexdigest()


CROPS = "; for annotations, --crops (crops=True) cuts out the boxes"  # which have one label each


def one_label(several: object, what: str, advice: str = "") -> None:
    """Raise UserError if images have several labels but `what` takes only one. advice: appended to
    the message."""
    if several:
        raise UserError(
            f"{what}: needs one label per image, but images here have several "
            f"(docs/data.md says what takes several){advice}"
        )


def relative(path: Path, root: Path | None) -> str:
    """The path relative to `root`, or unchanged if it is outside; with forward slashes."""
    return (path.relative_to(root) if root and path.is_relative_to(root) else path).as_posix()
