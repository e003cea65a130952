"""What the runs of one process share, and the images that a task draws from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from rmadapter.artifacts.record import Split
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.catalog.sets import load_dataset
from rmadapter.data.fewshot import FewShot, few_shot, half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.runs.team import Team
from rmadapter.settings import Machine
from rmadapter.support.machine import find_device
from rmadapter.task import Half, Question, Task
from rmadapter.training.cache import Cache
from rmadapter.training.callbacks import Callback

Splits: TypeAlias = Mapping[str, ImageSet]
Sets: TypeAlias = list[tuple[Question, ImageSet, Split]]
_Draw: TypeAlias = tuple[str, int, int]  # data, shots, seed


@dataclass(eq=False)
class Lab:
    """What the runs of one process share: the backbone, the images read, and frozen activations.

    root: folder of the data sets. outside, crops: as for `load_dataset`. folder: for activations
    that do not fit into memory, and for answers on folds. keep: whether to keep activations of test
    images for the next run; a single run uses each of them once. callbacks: called at every step of
    a training. blocks: at which coming runs start, as for `Cache`. team: the processes that train
    with this one.
    """

    machine: Machine = field(default_factory=Machine)
    root: Path = Path()
    folder: Path | None = None
    keep: bool = False
    progress: bool = True
    outside: bool = False
    crops: bool = False
    callbacks: Sequence[Callback] = ()
    blocks: Collection[int] = ()
    team: Team | None = None

    def __post_init__(self) -> None:
        self._backbone: Backbone | None = None
        self._splits: dict[str, Splits] = {}
        self._few: tuple[_Draw, FewShot] | None = None
        self._tests: dict[tuple[str, Half, _Draw | None], ImageSet] = {}
        self._train: tuple[tuple[str, int, int], Cache] | None = None
        self._test: Cache | None = None

    def add(self, name: str, splits: Splits) -> None:
        """Add images in memory as a data set of this name."""
        self._splits[name] = splits

    def add_backbone(self, backbone: Backbone) -> None:
        """Add a backbone in memory, under its name, until another one replaces it."""
        self._backbone, self._train, self._test = backbone, None, None

    def work_in(self, folder: Path) -> None:
        """Use a folder for activations and for answers on folds."""
        self.folder = folder

    def splits(self, data: str) -> Splits:
        """Return the splits of a data set, read once."""
        if data not in self._splits:
            self._splits[data] = load_dataset(
                data, self.root, outside=self.outside, crops=self.crops
            )
        return self._splits[data]

    def backbone(self, name: str) -> Backbone:
        """Return the backbone of this name, on the device; the last one is kept."""
        if self._backbone is None or self._backbone.name != name:
            self.add_backbone(load_backbone(name))
        assert self._backbone is not None
        return self._backbone.to(find_device(self.machine.device))

    def draw(self, task: Task) -> FewShot:
        """Draw the shots of a task. The last draw is kept: for the same shots it is the same
        object, digest and all. Raises UserError if there is only one class."""
        key = (task.data, task.shots, task.seed)
        if self._few is None or self._few[0] != key:
            self._few = key, few_shot(self.splits(task.data), task.shots, task.seed)
        few = self._few[1]
        classes = half(few.train, task.classes).classes
        if len(classes) < 2:
            which = "" if task.classes == "all" else f"{task.classes} classes: "
            raise UserError(f"{which}{classes[0]!r} is the only class: give at least two")
        return few

    def train_cache(self, task: Task) -> Cache:
        """Return the cache of training images, kept from run to run while tasks augment images
        alike, so that methods share activations."""
        backbone, made = self.backbone(task.backbone), (task.augmentation, task.views, task.seed)
        if self._train is None or self._train[0] != made:
            folder = self.folder and self.folder / "train"
            cache = Cache(
                backbone, self.machine, task.augmentation, task.views, task.seed, folder,
                progress=self.progress,
            )  # fmt: skip
            self._train = made, cache
        return self._train[1]

    def test_cache(self, task: Task) -> Cache:
        """Return the cache of images without augmentation: of test images, and of the shots in
        `fit_baseline`."""
        backbone = self.backbone(task.backbone)
        if self._test is None:
            folder = self.folder and self.folder / "test"
            self._test = Cache(
                backbone, self.machine, folder=folder, hold=self.keep, progress=self.progress
            )
        self._test.blocks = self.blocks if self.keep else ()
        return self._test

    def tests(self, task: Task, few: FewShot | None = None) -> Sets:
        """Return each question, its images, and the split they are from; sets without images are
        left out. few: the shots, drawn here if they are needed and not given."""
        sets: Sets = []
        for question in task.questions:
            splits, target = self.splits(question.data or task.data), bool(question.data)
            tested = splits.get("test") or (splits.get("all") if target else None)
            if tested is None and target:
                raise UserError(f"{question.data}: has no test split, which a target needs")
            images = (few or self.draw(task)).unrelated if tested is None else tested
            draw = None if tested else (task.data, task.shots, task.seed)
            key = (question.data or task.data, question.classes, draw)
            if key not in self._tests and len(images):
                self._tests[key] = half(images, question.classes)
            if len(self._tests.get(key, ())):
                sets.append((question, self._tests[key], "held out" if tested is None else "test"))
        return sets

    def unlabelled(self, task: Task, few: FewShot, images: ImageSet) -> ImageSet:
        """Return the train images of all classes, except those that will be tested. images: as for
        `without_labels`."""
        return without_labels(few, images, tested=not self.splits(task.data).get("test"))


def without_labels(few: FewShot, images: ImageSet, tested: bool) -> ImageSet:
    """Return the train images of all classes, except those that will be tested. Their labels mean
    nothing: they are dealt out evenly, so that a recipe's iterations count per image of a class.

    images: all that a training gets of its classes with labels: the draw, a half of it, or a fold
    of that. Other images of those classes in the draw may be the fold under test. tested: whether
    the images that were not drawn are tested, too.
    """
    train = few.train
    others = [i for i, n in enumerate(train.labels) if train.classes[n] not in images.classes]
    parts = (images, train.subset(others), *(() if tested else (few.heldout,)))
    pool = tuple(image for part in parts for image in part.images)
    groups = tuple(group for part in parts for group in part.groups)
    labels = tuple(i % len(train.classes) for i in range(len(pool)))
    return ImageSet(pool, labels, train.classes, written=train.written, groups=groups)
