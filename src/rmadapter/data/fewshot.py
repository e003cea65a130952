"""Draw shots per class and halve classes into base and novel, exactly as CoOp does (Zhou et al.,
IJCV 2022); or draw as many images by the frequencies of the classes."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from rmadapter.data.image_set import Transform, with_weights
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError, first_fault
from rmadapter.settings import Draw
from rmadapter.support.files import read_json, write_json

VAL_SHOTS = 4  # CoOp never validates on more


@dataclass(frozen=True, eq=False)
class FewShot:
    """One draw.

    Args:
        train: The images to train on.
        val: Those to choose settings by, if the data has such a split.
        heldout: Train images that were not drawn, which are tested on if the data has no test
            split.
        shots: Images per class, 0 for all.
        seed: Seed of the draw.
        short: One sentence per class with fewer images than shots, or one on a natural draw.
        draw: How, as in `Task`.
    """

    train: ImageSet
    val: ImageSet | None
    heldout: ImageSet
    shots: int
    seed: int
    short: tuple[str, ...]
    draw: Draw = "balanced"

    @property
    def drawn(self) -> tuple[ImageSet, ...]:
        """The images for training and, if there are any, for validation."""
        return (self.train,) if self.val is None else (self.train, self.val)

    def read(self, transform: Transform, progress: bool = False) -> None:
        """Decode every drawn image once, ahead of its use; as `ImageSet.read`."""
        for part in self.drawn:
            part.read(transform, progress)

    def weighed(self, class_weight: object) -> FewShot:
        """Return the draw with class weights by the counts of its own images. Raises UserError as
        `with_weights`."""
        weights = self.train.weights or None
        return replace(self, train=with_weights(self.train, weights, class_weight, 0))

    @cached_property
    def unrelated(self) -> ImageSet:
        """The images of `heldout` that share no group with those drawn: these can judge."""
        related = {row for part in self.drawn for row in self.heldout.sharing_groups(part)}
        if not related:
            return self.heldout
        return self.heldout.subset(i for i in range(len(self.heldout)) if i not in related)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about the images that `unrelated` lacks, if any."""
        count = len(self.heldout) - len(self.unrelated)
        if not count:
            return ()
        return (f"ignored {count} undrawn images that share a group with a drawn one",)


def sample_shots(labels: Sequence[int], shots: int, rng: random.Random) -> list[int]:
    """Return the indices of `shots` items per label, label by label in order of first appearance; 0
    returns all, in their order.

    A label with fewer items yields all of them and uses no random number.
    """
    if shots < 1:
        return list(range(len(labels)))
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    chosen: list[int] = []
    for group in groups.values():
        chosen += rng.sample(group, shots) if len(group) >= shots else group
    return chosen


def sample_naturally(labels: Sequence[int], shots: int, rng: random.Random) -> list[int]:
    """Return the indices of `shots` items times the number of labels, drawn from all alike, so that
    labels are as frequent as in the data; 0 returns all, in their order.

    Each label is drawn at least once: for one that would be missing, the next item of it stands in
    for the last drawn item of a label that has several. With the same generator, fewer shots return
    a part of what more shots return.
    """
    if shots < 1:
        return list(range(len(labels)))
    order = rng.sample(range(len(labels)), len(labels))
    first: dict[int, int] = {}  # label -> its first item
    for index in order:
        first.setdefault(labels[index], index)
    needed = {*first.values()}
    others = [index for index in order if index not in needed]
    kept = needed | {*others[: (shots - 1) * len(first)]}
    return [index for index in order if index in kept]


def few_shot(
    splits: Mapping[str, ImageSet], shots: int, seed: int, draw: Draw = "balanced"
) -> FewShot:
    """Draw from "train" (or "all"), then min(shots, 4) per class from "val", with one generator
    seeded for this draw.

    Args:
        splits: Split -> images.
        shots: Images per class, 0 for all.
        seed: Seed of the generator.
        draw: "balanced", or "natural", which takes nothing from "val".

    Returns:
        The draw; classes with too few images are listed in `short`.

    Raises:
        UserError: There are no train images, or a class has none.
    """
    source = splits.get("train", splits.get("all"))
    if source is None:
        names = ", ".join(splits) or "nothing"
        raise UserError(f"no train images: the data has only {names}; add a train split")
    if shots < 0:
        raise UserError(f"shots={shots}: give the number of images per class, or 0 for all")
    counts = Counter(source.labels)
    for number, name in enumerate(source.classes):
        if not counts[number]:
            raise UserError(f"class {name!r} has no train images: add some or remove the class")
    rng = random.Random(seed)
    natural = draw == "natural"
    chosen = (sample_naturally if natural else sample_shots)(source.labels, shots, rng)
    val = None if natural else splits.get("val")
    if val is not None:
        val = val.subset(sample_shots(val.labels, min(shots, VAL_SHOTS), rng))
    drawn = set(chosen)
    short = (
        [_describe_natural([source.labels[i] for i in chosen], shots)]
        if natural
        else [
            f"class {name!r} has {counts[i]} image{'s' * (counts[i] > 1)}, fewer than {shots} shots"
            for i, name in enumerate(source.classes)
            if counts[i] < shots
        ]
    )
    return FewShot(
        train=source.subset(chosen),
        val=val,
        heldout=source.subset(i for i in range(len(source)) if i not in drawn),
        shots=shots,
        seed=seed,
        short=tuple(short),
        draw=draw,
    )


def _describe_natural(labels: Sequence[int], shots: int) -> str:
    """Say how many images a natural draw has.

    Args:
        labels: Labels of these.
        shots: Number of images per class that were asked for.
    """
    counts = Counter(labels).values()
    wanted = f" of {shots * len(counts):,}" if shots * len(counts) > len(labels) else ""
    return (
        f"natural draw: {len(labels):,}{wanted} images, {min(counts)} to {max(counts)} of a class"
    )


def half(images: ImageSet, which: Literal["all", "base", "novel"]) -> ImageSet:
    """Return all classes, the first ceil(n/2), or the rest; labels count from 0 in each half. CoOp
    halves after drawing."""
    if which == "all":
        return images
    if which not in ("base", "novel"):
        raise UserError(f"classes={which!r}: write all, base or novel")
    count = len(images.classes)
    if count < 2:
        raise UserError(f"{count} class cannot be halved into base and novel: give at least two")
    middle = (count + 1) // 2
    kept = slice(0, middle) if which == "base" else slice(middle, count)
    rows = [i for i, label in enumerate(images.labels) if kept.start <= label < kept.stop]
    part = images.subset(rows)
    labels = tuple(label - kept.start for label in part.labels)
    return replace(part, labels=labels, classes=images.classes[kept], written=images.written[kept])


# Digests and files


def split_digest(few: FewShot) -> str:
    """Return the SHA-256 of the drawn images with their labels, of the classes, and of the draw
    unless it is balanced; ignores image order, file names and seed."""
    parts: list[object] = []
    for part in (few.train, few.val):
        if part is None:
            parts.append(None)
        else:
            rows = zip(part.labels, map(bytes.hex, part.contents), strict=True)
            parts.append((part.classes, sorted(rows)))
    if few.draw != "balanced":
        parts.append(few.draw)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def order_digest(few: FewShot) -> str:
    """Return a digest like `split_digest`, but dependent on the order of the images, which affects
    training too."""
    parts = [few.train.digest, "" if few.val is None else few.val.digest]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def save_split(few: FewShot, path: Path, others: Collection[bytes] = ()) -> None:
    """Write the draw as JSON, atomically; rows are [path, label, class name], as in CoOp's own
    split files, and `sha256` is of each row's image, those of train first.

    Args:
        few: The draw.
        path: The file.
        others: As in `Split`.
    """

    def rows(images: ImageSet) -> list[list[str | int]]:
        return [[images.name(i), n, images.classes[n]] for i, n in enumerate(images.labels)]

    record = {
        "digest": split_digest(few),
        "seed": few.seed,
        "shots": few.shots,
        **({} if few.draw == "balanced" else {"draw": few.draw}),
        "classes": few.train.classes,
        "labels": few.train.written,
        "train": rows(few.train),
        "val": None if few.val is None else rows(few.val),
        "sha256": [content.hex() for part in few.drawn for content in part.contents],
        **({"others": sorted(map(bytes.hex, others))} if others else {}),
    }
    write_json(path, record)


class Split(BaseModel):
    """A file written by `save_split`; labels may be empty, and so is sha256 in older files. Others
    are the SHA-256 of images that were not drawn, but calibrated the model or trained it without
    labels."""

    digest: str
    draw: Draw = "balanced"
    classes: tuple[str, ...]
    labels: tuple[str | int, ...] = ()
    train: list[tuple[str, int, str]]
    val: list[tuple[str, int, str]] | None = None
    sha256: list[str] = []
    others: list[str] = []

    @property
    def written(self) -> tuple[str | int, ...]:
        return self.labels or self.classes

    def counts(self, which: Literal["all", "base", "novel"]) -> tuple[int, ...]:
        """Return how many training images each class of a half has."""
        every = Counter(label for _, label, _ in self.train)
        return tuple(every[number] for number in self.labels_of(which))

    def contents(self, which: Literal["all", "base", "novel"], root: Path) -> set[str]:
        """Return the SHA-256 in hex of the drawn images of a half.

        Args:
            which: The half.
            root: Where the images are, which only older files need.

        Raises:
            UserError: As for `images`.
        """
        hashes = self.sha256 or [
            content.hex() for part in self.images(root).drawn for content in part.contents
        ]
        labels = {*self.labels_of(which)}
        rows = zip((*self.train, *(self.val or ())), hashes, strict=False)
        return {content for (_, label, _), content in rows if label in labels}

    def labels_of(self, which: Literal["all", "base", "novel"]) -> list[int]:
        """Return the numbers of the classes of a half."""
        known = ImageSet((), (), self.classes, written=tuple(range(len(self.classes))))
        return [int(number) for number in half(known, which).written]

    def images(self, root: Path) -> FewShot:
        """Return the draw, read below `root`.

        Raises:
            UserError: Images are missing or have changed.
        """
        train = self._part(self.train, root)
        val = None if self.val is None else self._part(self.val, root)
        few = FewShot(train, val, train.subset([]), 0, 0, (), self.draw)
        try:
            same = split_digest(few) == self.digest
        except UserError as error:
            raise UserError(
                f"an image the model was trained on can no longer be read ({error})"
            ) from None
        if not same:
            raise UserError(f"images below {root} are no longer those the model was trained on")
        return few

    def _part(self, rows: Sequence[tuple[str, int, str]], root: Path) -> ImageSet:
        paths = tuple(root / name for name, _, _ in rows)
        labels = tuple(label for _, label, _ in rows)
        return ImageSet(paths, labels, self.classes, root, written=self.written)


def read_split(path: Path) -> Split:
    """Read a split file. Raises UserError if it is not one."""
    try:
        split = Split.model_validate(read_json(path))
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{path}: not a split file of this version ({place}: {reason})") from None
    rows = (*split.train, *(split.val or ()))
    if any(not 0 <= label < len(split.written) for _, label, _ in rows):
        raise UserError(f"{path}: names a class that it does not list")
    return split
