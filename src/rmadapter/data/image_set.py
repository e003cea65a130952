"""Labelled images from any source, each decoded once for everything that needs it: pixels,
near-duplicates, SHA-256."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import numpy as np

from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.data.decode import ImageSource, content, load_hashed, load_image
from rmadapter.data.duplicates import looks, thumbprint
from rmadapter.data.names import Label, class_indices, only_label, order, prompt_names
from rmadapter.errors import UserError, quoted
from rmadapter.support.machine import cores
from rmadapter.support.terminal import track

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


Transform: TypeAlias = "Callable[[Image.Image], Tensor]"
S = TypeVar("S")
T = TypeVar("T")
MAX_KEPT_BYTES = 1 << 29  # of pixels, for later


class ImageReader:
    """Reads image files, and remembers what else is needed of them, so that none is decoded again.

    `read` decodes images ahead of their use: the next `pixels` of each costs nothing, as long as
    they fit into `room` bytes. SHA-256 and thumbprints of files are remembered for good, the latter
    only after the first was requested, since most commands need none. Images in memory are not
    remembered. A copy, such as in a worker process, starts empty.
    """

    def __init__(self, room: int = MAX_KEPT_BYTES) -> None:
        self._room = room
        self._lock = Lock()
        self._contents: dict[str, bytes] = {}
        self._thumbprints: dict[str, bytes] = {}
        self._pixels: dict[str, tuple[Transform, Tensor]] = {}
        self._wants_thumbprints = False

    def __reduce__(self) -> tuple[type[ImageReader], tuple[()]]:
        return ImageReader, ()

    def image(self, source: ImageSource) -> Image.Image:
        """Decode an image. Raises as `load_image`."""
        image = load_image(source)
        if self._wants_thumbprints and isinstance(source, (str, Path)):
            self._thumbprints.setdefault(str(source), thumbprint(image))
        return image

    def pixels(self, source: ImageSource, transform: Transform) -> Tensor:
        """Return the transformed image, from memory if `read` kept it. Raises as `load_image`."""
        if isinstance(source, (str, Path)):
            with self._lock:
                if self._pixels.get(str(source), (None,))[0] is transform:
                    _, pixels = self._pixels.pop(str(source))
                    self._room += pixels.nbytes
                    return pixels
        return transform(self.image(source))

    def content(self, source: ImageSource) -> bytes:
        """Return the SHA-256 of a file's bytes, or of the pixels of an image in memory."""
        if not isinstance(source, (str, Path)):
            return content(source)
        key = str(source)
        if key not in self._contents:
            self._contents[key] = content(source)
        return self._contents[key]

    def thumbprints(self, sources: Sequence[ImageSource], progress: bool = False) -> list[bytes]:
        """Return what `duplicates.looks` needs of each image. Raises as `load_image`."""
        self._wants_thumbprints = True
        return in_threads(self._thumbprint, sources, "looking for duplicates", progress)

    def _thumbprint(self, source: ImageSource) -> bytes:
        if not isinstance(source, (str, Path)):
            return thumbprint(load_image(source))
        if str(source) not in self._thumbprints:
            self.image(source)
        return self._thumbprints[str(source)]

    def read(
        self, sources: Sequence[ImageSource], transform: Transform, progress: bool = False
    ) -> list[str]:
        """Read images ahead of their use: pixels, thumbprints and SHA-256. Return for each image
        why it cannot be read, or ""."""
        self._wants_thumbprints = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the returned texts say what is wrong
            return in_threads(
                lambda source: self._read(source, transform), sources, "reading images", progress
            )

    def _read(self, source: ImageSource, transform: Transform) -> str:
        try:
            if not isinstance(source, (str, Path)):
                load_image(source)
                return ""
            key = str(source)
            image, self._contents[key] = load_hashed(source)
            self._thumbprints[key] = thumbprint(image)
        except UserError as error:
            return str(error)
        if self._room > 0:
            pixels = transform(image)
            with self._lock:
                if key not in self._pixels and pixels.nbytes <= self._room:
                    self._pixels[key] = transform, pixels
                    self._room -= pixels.nbytes
        return ""


def in_threads(
    function: Callable[[S], T], items: Sequence[S], text: str, progress: bool
) -> list[T]:
    """Return the results of a function for all items, in order, computed by several threads."""
    pool = ThreadPoolExecutor(cores())
    try:
        return list(track(pool.map(function, items), len(items), text, progress))
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """N images with their labels.

    Args:
        images: N paths, PIL images or arrays (uint8, or float in 0..1) of [H, W], [H, W, 3] or [H,
            W, 4].
        labels: N indices into `classes`.
        classes: Prompt names ("sea horse").
        root: The folder that image names are relative to.
        skipped: "path: reason" of every image that `skip_bad` left out.
        written: The classes as the user writes them ("sea_horse", or a number); by default
            `classes`.
        groups: N group names, such as patients; images of one group never judge each other. "":
            none.
        ignored: Note on files that were not read, such as "5 files ignored: .heic 3, .txt 2".
        weights: N weights of the images in training; empty if all are equal.
        parents: Label as written, or parent -> its parent, where the data has a taxonomy.
        reader: Reader of the image files; shared by all subsets.

    Example:
        >>> import numpy as np
        >>> from rmadapter import ImageSet
        >>> black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
        >>> images = ImageSet.from_lists([black, white, white], ["night", "day", "day"])
        >>> images.classes, images.labels
        (('day', 'night'), (1, 0, 0))
        >>> len(images.subset([0]))
        1
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
    parents: Mapping[str, str] = field(default_factory=dict)
    reader: ImageReader = field(default_factory=ImageReader)

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", self.written or self.classes)
        object.__setattr__(self, "groups", self.groups or ("",) * len(self.images))
        if len(self.groups) != len(self.images):
            raise UserError(
                f"{len(self.images)} images and {len(self.groups)} groups: give one group for each "
                "image"
            )
        if len(self.written) != len(self.classes):
            counts = f"{len(self.written)} labels as written for {len(self.classes)} classes"
            raise ValueError(counts)

    @classmethod
    def from_lists(
        cls,
        images: Iterable[ImageSource],
        labels: Iterable[Label | Sequence[Label]],
        classes: Sequence[str] | None = None,
        groups: Iterable[str] = (),
    ) -> ImageSet:
        """Make a set of N images and N labels.

        Args:
            images: Paths, PIL images or arrays, as in `ImageSet`.
            labels: Class names, or indices into `classes`; a label may be a list of one.
            classes: Names, of which `prompt_names` makes prompt names; may be omitted if labels are
                names.
            groups: N group names.

        Returns:
            The set; its classes are sorted if they were omitted.

        Raises:
            UserError: Lists do not fit together, or an image has several labels.
        """
        images, labels = tuple(images), tuple(labels)
        if not images or len(images) != len(labels):
            raise UserError(
                f"{len(images)} images and {len(labels)} labels: give one label for each image"
            )
        single = [single_label(label, number) for number, label in enumerate(labels)]
        text = all(isinstance(label, str) for label in single)
        if text and classes is None:
            classes = sorted({str(label) for label in single}, key=order)
        if classes is None or not (text or all(isinstance(x, Integral) for x in single)):
            odd = next((i for i, x in enumerate(single) if type(x) is not type(single[0])), 0)
            raise UserError(
                f"label {odd} is {quoted(single[odd])}: labels must be class names, or whole "
                "numbers with classes=[name, ...]"
            )
        names = tuple(prompt_names(classes).values())
        indices = class_indices(single, classes if text else range(len(classes)), names)
        spelled = dict(zip(indices, single, strict=True)) if text else {}
        written = tuple(spelled.get(i, name if text else i) for i, name in enumerate(classes))
        return cls(images, tuple(indices), names, written=written, groups=tuple(groups))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """Return how many images there are, and the first classes."""
        shown = [*self.classes[:3], *["..."] * (len(self.classes) > 3)]
        counts = f"{len(self):,} images, {len(self.classes):,} classes"
        return f"ImageSet({counts}: {', '.join(shown)})"

    @property
    def taxonomy(self) -> Taxonomy | None:
        """Return the tree of the labels; None without parents.

        Raises:
            UserError: As `Taxonomy.of`.
        """
        return Taxonomy.of(self.parents, map(str, self.written)) if self.parents else None

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Return some images in this order, with the same classes.

        Args:
            indices: Indices of the images.
        """
        chosen = list(indices)
        return replace(
            self,
            images=tuple(self.images[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            weights=tuple(self.weights[i] for i in chosen) if self.weights else (),
        )

    @property
    def group_numbers(self) -> np.ndarray:
        """Return the number [N] of each image's group, from 0 in order of appearance.

        An image without a group is one by itself.
        """
        first: dict[str, int] = {}
        same = [first.setdefault(name, i) if name else i for i, name in enumerate(self.groups)]
        return np.unique(np.array(same, int), return_inverse=True)[1]

    def sharing_groups(self, others: ImageSet) -> list[int]:
        """Return the indices of the images that share a group with one of the others.

        Args:
            others: The other images.
        """
        theirs = {*others.groups} - {""}
        return [i for i, group in enumerate(self.groups) if group in theirs]

    def name(self, index: int) -> str:
        """Return the path of an image relative to `root`, with forward slashes.

        Args:
            index: Index of the image.

        Returns:
            The path; "image 3" for an image in memory.
        """
        image = self.images[index]
        if not isinstance(image, (str, Path)):
            return f"image {index}"
        return relative(Path(image), self.root)

    def read(self, transform: Transform, progress: bool = False) -> None:
        """Decode every image once, ahead of its use: `reader` keeps what is needed later.

        Args:
            transform: Transform of a backbone, from an RGB image to pixels.
            progress: Whether to show a bar on stderr.

        Raises:
            UserError: An image is unreadable.
        """
        errors = [error for error in self.reader.read(self.images, transform, progress) if error]
        if errors:
            raise UserError(unreadable(errors))

    def looks(self, progress: bool = False) -> np.ndarray:
        """Return the features that near-duplicates share.

        Args:
            progress: Whether to show a bar on stderr.

        Raises:
            UserError: An image is unreadable.
        """
        return looks(self.reader.thumbprints(self.images, progress))

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """Return the SHA-256 of each image."""
        return tuple(map(self.reader.content, self.images))

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of classes, labels, weights and image contents in order."""
        about = [self.classes, self.labels, *([self.weights] if self.weights else [])]
        return hashlib.sha256(json.dumps(about).encode() + b"".join(self.contents)).hexdigest()


def without_classes(images: Sequence[ImageSource], reader: ImageReader | None = None) -> ImageSet:
    """Return images that have no classes as a set, all of one class.

    Args:
        images: The images.
        reader: Reader that has read them.
    """
    labels = (0,) * len(images)
    return ImageSet(tuple(images), labels, ("image",), reader=reader or ImageReader())


SKIP_BAD = "--skip-bad, or skip_bad=True in Python, leaves them out"


def unreadable(errors: Sequence[str], note: str = "") -> str:
    """Return a message about images that cannot be read, which quotes the first of the errors."""
    more = f" (the first of {len(errors)} bad files or empty folders)" if len(errors) > 1 else ""
    return f"{errors[0]}{more}{note}; {SKIP_BAD}"


def relative(path: Path, root: Path | None) -> str:
    """Return the path relative to `root`, or unchanged if it is outside; with forward slashes."""
    inside = root and path.is_relative_to(root)
    return (path.relative_to(root) if root and inside else path).as_posix()


def single_label(label: Label | Sequence[Label], number: int) -> Label:
    """Return the label of an image, which may be a list of one.

    Args:
        label: The label.
        number: Number of the image, for messages.

    Raises:
        UserError: It is empty, several labels, or neither a class name nor a whole number.
    """
    single = only_label(label, f"image {number}") if isinstance(label, (list, tuple)) else label
    if not (isinstance(single, Integral) or (isinstance(single, str) and single.strip())):
        raise UserError(
            f"label {number} is {quoted(single)}: labels must be class names, or whole numbers"
        )
    return cast("Label", single)


# Weights


def with_weights(
    images: ImageSet, sample_weight: object, class_weight: object, shots: int
) -> ImageSet:
    """Return the set with a weight for each image: sample_weight [N] times class_weight.

    Images of weight 0 are left out, unless their class has no others.

    Args:
        images: The images.
        sample_weight: N numbers; None for equal ones.
        class_weight: Label -> weight (1 for missing labels), or "balanced": all classes count the
            same once `shots` of each are drawn.
        shots: Images per class, 0 for all.

    Raises:
        UserError: Invalid weights.
    """
    count = len(images)
    labels = np.array(images.labels)
    weights = np.ones(count) if sample_weight is None else _numbers(sample_weight)
    if weights.shape != (count,) or not _are_weights(weights) or not weights.any():
        raise UserError(
            f"sample_weight: give one number of at least 0 for each of the {count} images, not all "
            "zero"
        )
    present = labels[weights > 0]
    weights = weights * _class_weights(images, class_weight, present, shots)[labels]
    kept = np.flatnonzero((weights > 0) | ~np.isin(labels, labels[weights > 0]))
    weights = weights[kept]
    images = images if len(kept) == count else images.subset(kept.tolist())
    return replace(images, weights=tuple(weights.tolist()) if np.ptp(weights) else ())


def _class_weights(
    images: ImageSet, class_weight: object, labels: np.ndarray, shots: int
) -> np.ndarray:
    """Return class weights [C].

    Args:
        images: Images of the classes.
        class_weight, shots: As for `with_weights`.
        labels: Labels of the images whose sample weight is not 0.
    """
    factors = np.ones(len(images.classes))
    if class_weight is None:
        return factors
    if isinstance(class_weight, str) and class_weight == "balanced":
        drawn = np.minimum(np.bincount(labels, minlength=len(factors)), shots or len(labels))
        return np.asarray(drawn.sum() / np.maximum(drawn, 1) / max(1, np.count_nonzero(drawn)))
    if not isinstance(class_weight, Mapping):
        raise UserError(
            f"class_weight={quoted(class_weight)}: write 'balanced', or a dictionary of label -> "
            "weight"
        )
    values = _numbers(list(class_weight.values()))
    zero = len(values) == len(factors) and not values.any()
    if zero or not _are_weights(values):
        raise UserError("class_weight: weights must be numbers of at least 0, not all zero")
    factors[class_indices(plain_labels(list(class_weight)), images.written, images.classes)] = (
        values
    )
    return factors


def _are_weights(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _numbers(values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def plain_labels(values: object) -> list[Label]:
    """Return labels, which may be NumPy's or torch's, as Python's own numbers and texts."""
    items = values if isinstance(values, Iterable) else np.asarray(values)
    if isinstance(items, np.ndarray) and items.ndim == 2 and items.shape[1] == 1:
        items = items[:, 0]
    # scalars of NumPy and of torch have no dimensions, those of Python no such attribute
    return [value.item() if getattr(value, "ndim", None) == 0 else value for value in items]
