"""What a method says about itself beyond its settings: traits, and the recipe of its training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rmadapter.settings import STRICT, option

if TYPE_CHECKING:
    import torch
    from torch.optim.optimizer import ParamsT

Track = Literal["ranked", "extra data", "teacher", "test time"]
TRACKS: tuple[Track, ...] = get_args(Track)
UNKNOWN = "not stated"  # track of methods that do not say what they use: shown, not ranked
# What settings were chosen on, as `Uses.tuned` says it.
PUBLISHED = "as published"
HELD_OUT = "held-out shots, in every fit"

ALL_IMAGES = 1_000_000  # batch size that means all images
RESTART_SHARE = 0.6  # share of the epochs after which the schedule `twice` starts again, as in 2SFS
Rate = Annotated[float, Field(ge=0, lt=1)]


class Uses(BaseModel):
    """What a method uses beyond the shots, the class names and the run's templates. Empty: nothing.

    Attributes:
        track: Methods of different tracks are never ranked together.
        extra: Data or texts.
        files: Settings that name files with such data; if one is set, the track is "extra data".
        teacher: Another model that is fitted or queried.
        backbones: Settings that name a backbone.
        constants: What the authors set for each data set, where we have one setting for all.
        test_time: What is learned from test images, or from several of them together.
        tuned: What the settings were chosen on, and what `fit` chooses itself.
        on_test: Fixed settings that the authors chose on test images, and where that is said.

    Example:
        >>> from rmadapter import Uses
        >>> uses = Uses(tuned="validation images", teacher="ViT-L-14", track="teacher")
        >>> uses.words
        'teacher: ViT-L-14; tuned on: validation images'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    track: Track = "ranked"
    extra: str = ""
    files: tuple[str, ...] = ()
    teacher: str = ""
    backbones: tuple[str, ...] = ()
    constants: str = ""
    test_time: str = ""
    tuned: str
    on_test: str = ""

    @model_validator(mode="after")
    def _says_why(self) -> Uses:
        why = {
            "ranked": self.tuned,
            "extra data": self.extra,
            "teacher": self.teacher,
            "test time": self.test_time,
        }
        if not why[self.track]:
            raise ValueError(f"a method of the track {self.track!r} must say what it uses")
        return self

    def with_settings(self, settings: Mapping[str, object]) -> Uses:
        """Return a copy that reflects the settings.

        Args:
            settings: Settings of the method by name.
        """
        if any(settings.get(file) for file in self.files):
            return self.model_copy(update={"track": "extra data"})
        return self

    @property
    def words(self) -> str:
        """Return a summary in one line."""
        parts = {
            "extra": self.extra,
            "teacher": self.teacher,
            "test images together": self.test_time,
            "authors' constants for each set": self.constants,
            "tuned on": self.tuned,
            "chosen on test images": self.on_test,
        }
        return "; ".join(f"{name}: {text}" for name, text in parts.items() if text)


Cost = Literal["nothing", "features", "text", "blocks", "encoders"]
COSTS: Mapping[Cost, str] = {
    "nothing": "Trains nothing",
    "features": "Trains behind the encoders, on features computed once: usually seconds",
    "text": "Trains through the text encoder, with image features computed once",
    "blocks": "Trains through the upper blocks, with the lower ones computed once",
    "encoders": "Trains through whole encoders: the slowest",
}


@dataclass(frozen=True)
class About:
    """What a user must know to choose a method, in plain words.

    Args:
        cost: What a training step runs through.
        trains: What is trained, or what answers where nothing is.
        prefer: What to prefer it for; follows "For".
        new_classes: Whether a model can be asked about classes that it was not trained on.
    """

    cost: Cost
    trains: str
    prefer: str = ""
    new_classes: bool = True


Reads = Literal["features", "parts", "text", "tokens"]
READS: Mapping[Reads, str] = {
    "features": "Features of both encoders: works on every backbone",
    "parts": "Tokens of every block of the image encoder, in sums: works on every backbone",
    "text": "Features of images, and the blocks of a text encoder",
    "tokens": "Tokens inside the image encoder, and its blocks",
}


@dataclass(frozen=True)
class Traits:
    """Facts about a method, whatever its settings.

    Args:
        uses: What it uses beyond the shots; None if a method from outside does not say.
        unlabelled: Whether it learns from `Shots.unlabelled`.
        whole_batches: Whether its loss depends on a whole batch, which several processes must not
            split.
        in_epochs: Fields outside `recipe` that count epochs, which `--effort` scales.
        about: Description for `rmadapter methods`.
        reads: What it reads of a backbone: features, parts of all blocks of the image encoder, also
            blocks of the text encoder, or tokens inside the image encoder.
        without_text: Whether it works on a backbone without a text encoder.
        leaves_out: Whether a fit knows what it answers about each shot without it, as
            `Fitted.left_out`, so that no folds are needed.
        own_reading: What it was written from, where that is not the authors' code.
        left_out: Parts of the authors' code that it leaves out.

    Example:
        >>> from rmadapter import load_method
        >>> load_method("prompt-kd").traits.unlabelled
        True
    """

    uses: Uses | None = None
    unlabelled: bool = False
    whole_batches: bool = False
    in_epochs: tuple[str, ...] = ()
    about: About | None = None
    reads: Reads = "tokens"
    without_text: bool = False
    leaves_out: bool = False
    own_reading: str = ""
    left_out: str = ""

    @property
    def cost(self) -> Cost:
        """Return what a training step runs through; the most, if the method does not say."""
        return self.about.cost if self.about else "encoders"


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Recipe:
    """How a method is optimised; by default as in Dassl, which most of the field's code builds on.

    Example:
        >>> from rmadapter import Recipe
        >>> recipe = Recipe(epochs=10, batch_size=16, schedule="step", warmup_epochs=0)
        >>> recipe.length([0] * 20 + [1] * 20)  # 40 images
        (10, 3)
        >>> recipe.rate(step=0, per_epoch=3, epochs=10)
        0.002
    """

    optimizer: Literal["sgd", "adamw", "adam"] = option("sgd", "optimiser")
    learning_rate: float = option(0.002, "peak learning rate", gt=0)
    weight_decay: float = option(5e-4, "weight decay", ge=0)
    momentum: float = option(0.9, "momentum of SGD", ge=0, lt=1)
    betas: tuple[Rate, Rate] = option((0.9, 0.999), "decay rates of Adam's averages")
    eps: float = option(1e-8, "term in Adam's denominator", gt=0)
    epochs: int = option(50, "passes over the training images", ge=1, le=1_000_000)
    iterations: int = option(
        0,
        "steps per shot of a class, rounded up to whole epochs; replaces `epochs`",
        ge=0,
        le=10**6,
    )
    batch_size: int = option(32, "images per step", ge=1, le=ALL_IMAGES)
    schedule: Literal["epoch", "step", "twice"] = option(
        "epoch",
        "cosine updated every epoch, as in Dassl, or every step; twice: two cosines by step, as in "
        "2SFS",
    )
    warmup_epochs: float = option(
        1.0, "warm-up before the cosine: constant if by epoch, linear if by step", ge=0
    )
    warmup_rate: float = option(1e-5, "learning rate of the constant warm-up", gt=0)
    final_rate: float = option(0.0, "learning rate at the end of a cosine by step", ge=0)
    clip_gradient: float = option(0.0, "largest gradient norm; 0 turns clipping off", ge=0)

    def rate(self, step: int, per_epoch: int, epochs: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: Number of the step, from 0.
            per_epoch: Number of steps in an epoch.
            epochs: Number of epochs.
        """
        peak = self.learning_rate
        warmup = self.warmup_epochs * per_epoch
        if self.schedule == "epoch":
            if step < warmup:
                return self.warmup_rate
            # Dassl's cosine begins after the warm-up, and so stops short of zero.
            done = step // per_epoch - self.warmup_epochs
            return peak * 0.5 * (1 + math.cos(math.pi * done / epochs))
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        start, end = warmup, epochs * per_epoch
        if self.schedule == "twice":
            restart = self.restart(epochs) * per_epoch
            start, end = (restart, end) if step >= restart else (start, restart)
        share = (step - start) / max(1, end - start)
        return self.final_rate + (peak - self.final_rate) * 0.5 * (1 + math.cos(math.pi * share))

    def restart(self, epochs: int) -> int:
        """Return the epochs of the first of two cosines.

        The second starts at the peak again, without warm-up.

        Args:
            epochs: Number of epochs of the training.
        """
        return round(RESTART_SHARE * epochs)

    def length(self, labels: Sequence[int]) -> tuple[int, int]:
        """Return the number of epochs, and of steps in each.

        Args:
            labels: Labels of the N images.
        """
        per_epoch = math.ceil(len(labels) / self.batch_size)
        if not self.iterations:
            return self.epochs, per_epoch
        return math.ceil(self.iterations * max(Counter(labels).values()) / per_epoch), per_epoch

    def make(self, parameters: ParamsT, fused: bool = False) -> torch.optim.Optimizer:
        """Return the optimiser.

        Args:
            parameters: Single ones, or groups as in torch.
            fused: Whether torch updates all parameters in one call on the device; the same update
                up to rounding.
        """
        import torch

        rate, decay = self.learning_rate, self.weight_decay
        one = fused or None  # with None torch chooses; with False it would update one by one
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, rate, momentum=self.momentum, weight_decay=decay, fused=one
            )
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, rate, self.betas, self.eps, decay, fused=one)
