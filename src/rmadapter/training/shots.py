"""What a method receives: the shots, the names of the classes, and functions that follow its
training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rmadapter.data.duplicates import groups
from rmadapter.data.read import ImageSet
from rmadapter.encoders import PARTS, States
from rmadapter.settings import Machine
from rmadapter.task import TEMPLATES
from rmadapter.training.cache import Cache, Live, Source

Figures: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Known:
    """The classes that a model is fitted to.

    Args:
        classes: Their names.
        templates: Prompt templates with one {} each.
        saved: Digest of the saved model that this is read from, whose class weights are kept for
            later; empty for others.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES
    saved: str = field(default="", compare=False)


def _nothing(figures: Figures) -> None:
    pass


@dataclass(frozen=True)
class Callback:
    """Functions that follow a training; an exception in either ends it.

    Both take the figures of a training: "step" and "epoch", counted from 1, every term of the loss,
    and "lr".

    Args:
        on_step: Function that is called after each step.
        on_epoch: The same after each epoch, with the mean of each term.

    Example:
        >>> from rmadapter import Callback, FewShotClassifier
        >>> steps = []
        >>> model = FewShotClassifier("tiny", method="clip-adapter", epochs=3, batch_size=32)
        >>> model = model.fit("colors", callbacks=[Callback(on_step=steps.append)])
        >>> [step["step"] for step in steps]  # 24 images in one batch
        [1, 2, 3]
    """

    on_step: Callable[[Figures], object] = _nothing
    on_epoch: Callable[[Figures], object] = _nothing


@dataclass
class Trained:
    """The progress of a training, finished or not.

    Args:
        step: Number of steps.
        seconds: Seconds that it took.
        history: Loss terms of each step.
        step_seconds: Median seconds of a step.
        weighed: Whether the shots' weights, if any, were used.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None
    weighed: bool = False


@dataclass(frozen=True)
class Unfinished:
    """The file that keeps a training while it runs.

    Args:
        path: File.
        key: Key of the training, so that another one is refused.
        before: Key of a training that precedes this one; its file may stay until this one saves.
    """

    path: Path
    key: str = ""
    before: str = ""


@dataclass(frozen=True, eq=False)
class Shots:
    """Everything that a method may see; no test image can be reached from it.

    Args:
        images: The shots.
        cache: Frozen activations of images, computed once.
        templates: Prompt templates, one {} each.
        seed: Seed of everything random.
        val: Images drawn from the val split.
        unfinished: File that keeps the training while it runs.
        progress: Whether to show bars on stderr.
        callbacks: Functions that are called after every step.
        unlabelled: Train images of all classes, including novel ones, for methods whose traits ask
            for them; their labels mean nothing.
        training: Which training of a run this is, and of how many: bars show the steps of all.

    Example:
        >>> from rmadapter import Lab, Shots, Task
        >>> task, lab = Task("colors", backbone="tiny", shots=2), Lab(progress=False)
        >>> shots = Shots(lab.draw(task).train, lab.train_cache(task))
        >>> shots.classes
        ('blue', 'green', 'night sky', 'red')
        >>> shots.labels
        tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> shots.plain_features().shape
        torch.Size([8, 40])
    """

    images: ImageSet
    cache: Cache
    templates: tuple[str, ...] = TEMPLATES
    seed: int = 1
    val: ImageSet | None = None
    unfinished: Unfinished | None = None
    progress: bool = True
    callbacks: Sequence[Callback] = ()
    unlabelled: ImageSet | None = None
    training: tuple[int, int] = (1, 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the prompt names of the classes."""
        return self.images.classes

    @property
    def known(self) -> Known:
        """Return the classes with the templates."""
        return Known(self.classes, self.templates)

    @property
    def labels(self) -> Tensor:
        """Return [N] indices into `classes`."""
        return torch.tensor(self.images.labels, device=self.device)

    @property
    def weights(self) -> Tensor | None:
        """Return the weights [N] of the shots, float64, CPU, 1 on average; None if alike."""
        weights = torch.tensor(self.images.weights, dtype=torch.float64)
        return weights / weights.mean() if len(weights) and weights.any() else None

    @property
    def device(self) -> torch.device:
        """Return the device to train on."""
        return self.cache.device

    @property
    def machine(self) -> Machine:
        """Return the settings of the machine."""
        return self.cache.machine

    def source(self, first: int | None = None) -> Source:
        """Return frozen activations of the shots in all views, in the number format of training.

        Args:
            first: Block whose input is wanted, None for features alone.
        """
        return self.cache.source(
            self.images, first, augmented=True, precision=self.machine.precision
        )

    def features(self) -> Tensor:
        """Return untouched features [V, N, e] of V views of the shots, not normalised."""
        return self.cache.features(self.images, augmented=True)

    def plain_features(self, images: ImageSet | None = None) -> Tensor:
        """Return untouched features [N, e] without augmentation, not normalised.

        Args:
            images: N images; by default the shots.
        """
        return self.cache.features(self.images if images is None else images)[0]

    def parts(self, of: Callable[[States], Tensor] = attrgetter("x")) -> Tensor:
        """Return the parts [N, P, d] of all blocks, in float16, without augmentation.

        Args:
            of: Function from states of images to what to return of them instead.
        """
        return self.cache.features(self.images, first=PARTS, of=of)[0]

    @cached_property
    def groups(self) -> np.ndarray:
        """Return group numbers [N]: near-duplicates, and images of one group, share one."""
        return groups(self.images.looks(self.progress), self.images.groups)

    def pixels(self, rows: Tensor, epoch: int, first: int | None) -> Tensor:
        """Return the pixels [B, 3, H, W] behind the states that `source(first)` gives.

        Args:
            rows: Indices of the shots, [B].
            epoch: Number of the epoch, from 0.
            first: Block of the image encoder, as for `source`.
        """
        augmented, views = self.cache.augmentation == "standard", self.source(first).views
        live = Live(self.cache, self.images, first, augmented, views)
        return next(live.pixels(epoch, [rows]))
