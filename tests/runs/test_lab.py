"""Which images a method may see without their labels: never one that is tested on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot, half
from rmadapter.data.read import ImageSet
from rmadapter.methods import load_method
from rmadapter.runs.folds import Folds
from rmadapter.runs.lab import Lab, without_labels
from rmadapter.runs.run import image_digests, run_key, run_task
from rmadapter.settings import Machine, configured
from rmadapter.task import Task
from rmadapter.training.contract import Fitted, Shots
from rmadapter.training.traits import Recipe, Traits
from tests.helpers.external_methods import ExternalMethod

CPU = configured(Machine(), {"device": "cpu"})
WEIGHTS: Any = SimpleNamespace(
    name="pocket", digest="weights"
)  # all that a key reads of a published backbone
CLASSES = ("cat", "dog", "fox", "owl")


def grey(start: int, *labels: int) -> ImageSet:
    """Images that are told by their grey."""
    pixels = tuple(np.full((8, 8, 3), start + i, np.uint8) for i in range(len(labels)))
    return ImageSet(pixels, labels, CLASSES, written=("a", "b", "c", "d"))


def greys(images: ImageSet) -> set[int]:
    return {int(np.asarray(image)[0, 0, 0]) for image in images.images}


SPLITS = {
    "train": grey(0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
    "test": grey(100, 0, 1, 2, 3),
}


class Curious(ExternalMethod):
    """Looks at what it is given."""

    traits: ClassVar[Traits] = Traits(unlabelled=True)
    seen: ClassVar[list[Shots]] = []

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        self.seen.append(shots)
        return super().fit(backbone, shots)


@pytest.fixture(autouse=True)
def fresh() -> None:
    Curious.seen.clear()


def lab_of(backbone: Backbone, **splits: ImageSet) -> Lab:
    lab = Lab(CPU, progress=False)
    lab.add_backbone(backbone)
    lab.add("greys", splits)
    return lab


def task_of(backbone: Backbone, **words: Any) -> Task:
    return configured(Task(), {"data": "greys", "backbone": backbone.name, "shots": 2, **words})


@pytest.mark.parametrize("classes", ["all", "base"])
def test_all_train_images_of_all_classes_where_there_is_a_test_split(
    tiny_clip: Backbone, classes: str
) -> None:
    task = task_of(tiny_clip, classes=classes)
    run_task(task, Curious(), lab_of(tiny_clip, **SPLITS))
    [shots] = Curious.seen
    found = shots.unlabelled
    assert found is not None
    assert greys(found) == {*range(16)}
    assert len(found) == 16  # none of them twice
    assert found.images[: len(shots.images)] == shots.images.images
    assert (found.classes, found.written, found.labels, found.root) == (
        CLASSES,
        ("a", "b", "c", "d"),
        4 * (0, 1, 2, 3),
        None,
    )
    assert Recipe(iterations=6, batch_size=8).length(found.labels) == (
        12,
        2,
    )  # 6 for each of 4 images a class


@pytest.mark.parametrize("splits", [{"train": SPLITS["train"]}, {**SPLITS, "test": grey(0)}])
def test_none_that_is_asked_about_for_want_of_a_test_split(
    tiny_clip: Backbone, splits: dict[str, ImageSet]
) -> None:
    """Of the other half the draw alone, which nobody is asked about."""
    lab, task = lab_of(tiny_clip, **splits), task_of(tiny_clip, classes="base")
    run_task(task, Curious(), lab)
    asked = {value for _, images, _ in lab.tests(task) for value in greys(images)}
    found = Curious.seen[0].unlabelled
    assert found is not None
    assert greys(found) == greys(lab.draw(task).train) == {*range(16)} - asked
    assert len(asked) == 8


def test_none_of_the_fold_that_is_asked_about(tiny_clip: Backbone) -> None:
    lab, task = lab_of(tiny_clip, **SPLITS), task_of(tiny_clip, shots=4)
    folds = Folds.make(task, lab.draw(task), lab, 2)
    folds.temperature(Curious(), "curious")
    assert len(Curious.seen) == 2
    for shots in Curious.seen:
        assert shots.unlabelled is not None
        assert greys(shots.unlabelled) == greys(shots.images)
        assert len(shots.unlabelled) == 8


def test_other_methods_get_no_unlabelled_images(tiny_clip: Backbone) -> None:
    class Incurious(Curious):
        traits: ClassVar[Traits] = Traits()

    run_task(task_of(tiny_clip), Incurious(), lab_of(tiny_clip, **SPLITS))
    assert [shots.unlabelled for shots in Curious.seen] == [None]
    assert [
        name
        for name in ("prompt-kd", "promptsrc", "rmadapter")
        if load_method(name).traits.unlabelled
    ] == ["prompt-kd"]


def test_the_key_includes_unlabelled_images(tiny_clip: Backbone) -> None:
    """Of a method that sees them, and of no other."""
    few = few_shot(SPLITS, 2, 1)
    rest = few.heldout.subset(range(1, len(few.heldout)))
    other = type(few)(few.train, few.val, rest, few.shots, few.seed, few.short)
    task = task_of(tiny_clip)
    for method, same in ((Curious(), False), (load_method("rmadapter"), True)):
        keys = {run_key(task, method, "x", CPU, WEIGHTS, draw) for draw in (few, other)}
        assert (len(keys) == 1) == same
        assert (image_digests(method, few) == image_digests(method, other)) == same


def test_a_pool_of_a_half_by_hand() -> None:
    few = few_shot(SPLITS, 1, 3)
    base = half(few.train, "base")
    assert greys(without_labels(few, base, tested=False)) == {*range(16)}
    assert greys(without_labels(few, base, tested=True)) == greys(few.train)
    assert greys(without_labels(few, base.subset([1]), tested=True)) == greys(few.train) - greys(
        base.subset([0])
    )
