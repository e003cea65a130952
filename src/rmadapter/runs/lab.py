"""What runs share: the data, backbone and caches of one process, and the processes of one
training."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from rmadapter.artifacts.value import Split
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.catalog.sets import load_dataset
from rmadapter.data.fewshot import FewShot, few_shot, half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support import distributed
from rmadapter.support.machine import find_device, make_deterministic
from rmadapter.task import Half, Question, Task
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Method
from rmadapter.training.shots import Callback

Splits: TypeAlias = Mapping[str, ImageSet]
Sets: TypeAlias = list[tuple[Question, ImageSet, Split]]
_Draw: TypeAlias = tuple[str, int, int, str]  # data, shots, seed, draw
NUMBER_FORMATS: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
END = -1  # sent instead of a training


@dataclass(eq=False)
class Lab:
    """What the runs of one process share: the backbone, the images read, and frozen activations.

    Args:
        machine: Device and number format.
        root: Folder of the data sets.
        folder: Folder for activations that do not fit into memory, and for answers on folds.
        keep: Whether to keep activations of test images for the next run; a single run uses each of
            them once.
        progress: Whether to show bars on stderr.
        outside: Whether tables may name images outside their folder.
        crops: Whether to use boxes of annotations as images.
        callbacks: Functions that are called at every step of a training.
        team: The processes that train with this one.
        keep_features: Whether to keep features on disk, as for `Cache`.

    Example:
        >>> from rmadapter import Lab, Task
        >>> lab = Lab(progress=False)
        >>> few = lab.draw(Task("colors", shots=2))
        >>> len(few.train)
        8
    """

    machine: Machine = field(default_factory=Machine)
    root: Path = Path()
    folder: Path | None = None
    keep: bool = False
    progress: bool = True
    outside: bool = False
    crops: bool = False
    callbacks: Sequence[Callback] = ()
    team: Team | None = None
    keep_features: bool = False

    def __post_init__(self) -> None:
        self._backbone: Backbone | None = None
        self._splits: dict[str, Splits] = {}
        self._leftover: set[str] = set()
        self._few: tuple[_Draw, FewShot] | None = None
        self._tests: dict[tuple[str, Half, _Draw | None], ImageSet] = {}
        self._train: tuple[tuple[str, int, int], Cache] | None = None
        self._test: Cache | None = None
        self._training = (1, 1)

    def expect_training(self, number: int, of: int) -> None:
        """Say which training of a run comes next, for what bars show.

        Args:
            number: Its number, from 1 on.
            of: How many trainings the run has.
        """
        self._training = (number, of)

    def next_training(self) -> tuple[int, int]:
        """Return what was said of the training that begins, (1, 1) if nothing was."""
        training, self._training = self._training, (1, 1)
        return training

    def add(self, name: str, splits: Splits, leftover: bool = False) -> None:
        """Add images in memory as a data set.

        Args:
            name: Name of the data set.
            splits: Split -> ImageSet, as `read_images` returns them.
            leftover: Whether its test images are only those that were not drawn, which may lack
                classes.
        """
        self._splits[name] = splits
        if leftover:
            self._leftover.add(name)

    def add_backbone(self, backbone: Backbone) -> None:
        """Add a backbone in memory, under its name, until another one replaces it.

        Args:
            backbone: Loaded backbone.
        """
        self._backbone, self._train, self._test = backbone, None, None

    def beside(self, backbone: Backbone) -> Lab:
        """Return a lab with the same data and another backbone.

        Args:
            backbone: Loaded backbone.
        """
        other = replace(self)
        other._splits, other._leftover, other._few = self._splits, self._leftover, self._few
        other.add_backbone(backbone)
        return other

    def work_in(self, folder: Path) -> None:
        """Use a folder for activations and for answers on folds.

        Args:
            folder: Folder to write to.
        """
        self.folder = folder

    def splits(self, data: str) -> Splits:
        """Return the splits of a data set, read once.

        Args:
            data: Name of a data set, folder or table.

        Raises:
            UserError: As for `read_images`.
        """
        if data not in self._splits:
            self._splits[data] = load_dataset(
                data, self.root, outside=self.outside, crops=self.crops
            )
        return self._splits[data]

    def backbone(self, name: str) -> Backbone:
        """Return a backbone, on the device; the last one is kept.

        Args:
            name: Name that `load_backbone` accepts.

        Raises:
            UserError: As for `load_backbone`.
        """
        if self._backbone is None or self._backbone.name != name:
            self.add_backbone(load_backbone(name))
        assert self._backbone is not None
        device = find_device(self.machine.device)
        if self.machine.repeatable:
            make_deterministic(device)
        return self._backbone.to(device)

    def draw(self, task: Task) -> FewShot:
        """Draw the shots of a task.

        The last draw is kept: for the same shots it is the same object, digest and all.

        Args:
            task: Task that names the data, the shots and the seed.

        Returns:
            `train`, `val` and the images that were not drawn.

        Raises:
            UserError: There is only one class.
        """
        key = (task.data, task.shots, task.seed, task.draw)
        if self._few is None or self._few[0] != key:
            self._few = key, few_shot(self.splits(task.data), task.shots, task.seed, task.draw)
        few = self._few[1]
        classes = half(few.train, task.classes).classes
        if len(classes) < 2:
            which = "" if task.classes == "all" else f"{task.classes} classes: "
            raise UserError(f"{which}{classes[0]!r} is the only class: give at least two")
        return few

    def train_cache(self, task: Task) -> Cache:
        """Return the cache of training images, which methods share.

        It is kept from run to run while tasks augment images alike.

        Args:
            task: Task that names the backbone and the augmentation.
        """
        backbone, made = self.backbone(task.backbone), (task.augmentation, task.views, task.seed)
        if self._train is None or self._train[0] != made:
            folder = self.folder and self.folder / "train"
            cache = Cache(
                backbone,
                self.machine,
                task.augmentation,
                task.views,
                task.seed,
                folder,
                progress=self.progress,
                keep_features=self.keep_features,
            )
            self._train = made, cache
        return self._train[1]

    def test_cache(self, task: Task, blocks: Collection[int] = ()) -> Cache:
        """Return the cache of images without augmentation.

        These are test images, and the shots of baselines.

        Args:
            task: Task that names the backbone.
            blocks: Blocks at which coming runs start, as for `Cache`; only the first call can set
                them.
        """
        backbone = self.backbone(task.backbone)
        if self._test is None:
            folder = self.folder and self.folder / "test"
            self._test = Cache(
                backbone,
                self.machine,
                folder=folder,
                hold=self.keep,
                progress=self.progress,
                blocks=blocks,
                keep_features=self.keep_features,
            )
        return self._test

    def tests(self, task: Task, few: FewShot | None = None) -> Sets:
        """Return each question, its images, and the split they are from; no sets without images.

        Args:
            task: Task with the questions.
            few: The shots; by default drawn here if they are needed.

        Raises:
            UserError: Another data set has no test split.
        """
        sets: Sets = []
        for question in task.questions:
            splits, target = self.splits(question.data or task.data), bool(question.data)
            tested = splits.get("test") or (splits.get("all") if target else None)
            if tested is None and target:
                raise UserError(f"{question.data}: has no test split, which a target needs")
            images = (few or self.draw(task)).unrelated if tested is None else tested
            draw = None if tested else (task.data, task.shots, task.seed, task.draw)
            key = (question.data or task.data, question.classes, draw)
            if key not in self._tests and len(images):
                self._tests[key] = half(images, question.classes)
            if len(self._tests.get(key, ())):
                leftover = tested is None or (question.data or task.data) in self._leftover
                sets.append((question, self._tests[key], "held out" if leftover else "test"))
        return sets

    def unlabelled(self, task: Task, few: FewShot, images: ImageSet) -> ImageSet:
        """Return the train images of all classes, except those that will be tested.

        Args:
            task: Task that names the data.
            few: The shots.
            images: Images that the training gets with their labels.
        """
        return without_labels(few, images, tested=not self.splits(task.data).get("test"))


def without_labels(few: FewShot, images: ImageSet, tested: bool) -> ImageSet:
    """Return the train images of all classes, except those that will be tested.

    Their labels mean nothing: they are dealt out evenly, so that a recipe's iterations count per
    image of a class.

    Args:
        few: The draw.
        images: All that a training gets of its classes with labels: the draw, a half of it, or a
            fold of that. Other images of those classes in the draw may be the fold under test.
        tested: Whether the images that were not drawn are tested, too.
    """
    train = few.train
    others = [i for i, n in enumerate(train.labels) if train.classes[n] not in images.classes]
    parts = (images, train.subset(others), *(() if tested else (few.heldout,)))
    pool = tuple(image for part in parts for image in part.images)
    groups = tuple(group for part in parts for group in part.groups)
    labels = tuple(i % len(train.classes) for i in range(len(pool)))
    return ImageSet(pool, labels, train.classes, written=train.written, groups=groups)


# One training in several processes


@dataclass(frozen=True, eq=False)
class Team:
    """The processes of one training, as `torchrun` starts them.

    The first process runs the command as if it were alone; it does folds, answers and files by
    itself. The others draw the same images, load the same backbone and join every training that it
    announces.

    Attributes:
        machine: Machine of this process.
        method: Method that they train together; None if there is one process.
    """

    machine: Machine
    method: Method | None = None

    @classmethod
    def of(cls, name: str, method: Method, machine: Machine) -> Team:
        """Train this method in all processes, each on its own GPU if there are any.

        Raises UserError if processes would have nothing to do or may not split a batch, for a
        device cuda:N, and for fewer GPUs than processes.
        """
        if not distributed.launched():
            return cls(machine)
        _check(name, method, int(os.environ["WORLD_SIZE"]))
        machine = replace(machine, device=_device(machine.device, int(os.environ["LOCAL_RANK"])))
        # `auto` may have chosen different formats in the processes
        [precision] = distributed.broadcast_numbers([NUMBER_FORMATS.index(machine.precision)])
        return cls(replace(machine, precision=NUMBER_FORMATS[precision]), method)

    def announce(self, method: Method, images: ImageSet, whole: ImageSet, key: str) -> None:
        """Have the others join a training on images, if its method is the team's.

        Args:
            method: Method to train.
            images: Images to train it on.
            whole: All images that the others have.
            key: Key of the saved progress; empty if none is.
        """
        if method is not self.method or distributed.is_helper():
            return
        pairs = zip(whole.images, whole.labels, strict=True)
        row = {(id(image), label): i for i, (image, label) in enumerate(pairs)}
        announced = zip(images.images, images.labels, strict=True)
        rows = [row[id(image), label] for image, label in announced]
        distributed.broadcast_numbers([_number(key), *rows])

    def trainings(self, key: str) -> Iterator[tuple[list[int], bool]]:
        """Yield the rows of the images of each announced training, and whether its progress is
        saved, until the first process needs no more help.

        Raises UserError if the first process has another key, for instance because it sees other
        images.
        """
        while (numbers := distributed.broadcast_numbers([]))[0] != END:
            if numbers[0] not in (_number(""), _number(key)):
                raise UserError(
                    "its images, weights or settings differ from those of the first process"
                )
            yield numbers[1:], numbers[0] > 0

    def leave(self) -> None:
        """Part from the other processes; the first tells them that it needs no more help."""
        if self.method is not None:
            if not distributed.is_helper():
                distributed.broadcast_numbers([END])
            distributed.leave()


def _check(name: str, method: Method, count: int) -> None:
    """Raise UserError for a method that several processes cannot train together."""
    if method.recipe is None:
        raise UserError(
            f"{name} is not trained step by step: {count} processes have nothing to share; start "
            "one, or name a --method that is"
        )
    if method.traits.whole_batches:
        raise UserError(
            f"{name} normalises over a batch, which {count} processes would split: start one"
        )
    if method.recipe.batch_size < count:
        raise UserError(
            f"{name} has batch_size={method.recipe.batch_size}, too small for {count} processes: "
            "start fewer"
        )


def _device(device: str, local: int) -> str:
    """Return the device of the process of this number on its machine."""
    if device.startswith("cuda:"):
        raise UserError(
            f"device={device}: each of several processes takes its own GPU; write device=cuda"
        )
    count = torch.cuda.device_count()
    if device == "cuda" or (device == "auto" and count):
        if local >= count:
            raise UserError(
                f"process {local} of this machine has no GPU; there are {count}: start fewer"
            )
        try:
            torch.cuda.set_device(local)  # else each process also opens a context on the first GPU
        except RuntimeError as error:  # full, or another program's alone
            reason = str(error).partition("\n")[0][:200]
            raise UserError(
                f"process {local} of this machine cannot use its GPU ({reason}): end what else "
                "uses it, or start fewer"
            ) from None
        return f"cuda:{local}"
    return "cpu" if device == "auto" else device  # gloo does not support Apple's GPU


def _number(key: str) -> int:
    """Return a number to send for a key in hexadecimal digits; 0 for none."""
    return int(key[:15] or "0", 16)
