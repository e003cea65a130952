"""Train images without their labels, for methods with the trait `unlabelled`, such as PromptKD."""

from __future__ import annotations

from rmadapter.data.fewshot import FewShot, order_digest
from rmadapter.data.read import ImageSet
from rmadapter.training.contract import Method


def digests(method: Method, few: FewShot) -> list[str]:
    """SHA-256 digests, dependent on order, of the images in a draw that a training depends on."""
    return [order_digest(few), *([few.heldout.digest] if method.traits.unlabelled else [])]


def pool(few: FewShot, images: ImageSet, asked: bool) -> ImageSet:
    """The train images of all classes, except those that will be tested. Their labels mean nothing:
    they are dealt out evenly, so that a recipe's iterations count per image of a class.

    images: all that a training gets of its classes with labels: the draw, a half of it, or a fold
    of that. Other images of those classes in the draw may be the fold under test. asked: whether
    the images not drawn are tested too.
    """
    others = [
        i
        for i, label in enumerate(few.train.labels)
        if few.train.classes[label] not in images.classes
    ]
    parts = (images, few.train.subset(others), *(() if asked else (few.heldout,)))
    found = tuple(image for part in parts for image in part.images)
    groups = tuple(group for part in parts for group in part.groups)
    labels = tuple(i % len(few.train.classes) for i in range(len(found)))
    return ImageSet(found, labels, few.train.classes, written=few.train.written, groups=groups)


def seen(method: Method, few: FewShot, images: ImageSet, tested: object) -> ImageSet:
    """All images that a method learns from. tested: whether there is a test split, so undrawn
    images are not tested."""
    return pool(few, images, asked=not tested) if method.traits.unlabelled else images
