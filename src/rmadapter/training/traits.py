"""What the package must know about a method beyond its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator

Track = Literal["ranked", "extra data", "teacher", "test time"]
TRACKS: tuple[Track, ...] = get_args(Track)


class Uses(BaseModel):
    """What a method uses beyond the shots, the class names and the run's templates. Empty: nothing.

    track: methods of different tracks are never ranked together. extra: data or texts. files:
    settings that name files with these; if one is set, the track is "extra data". teacher: another
    model that is fitted or queried. backbones: settings that name one. constants: what the authors
    set for each data set, where we have one setting for all. test_time: what is learned from test
    images, or from several of them together. tuned: what the settings were chosen on, and what
    `fit` chooses itself.
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

    def given(self, settings: Mapping[str, object]) -> Uses:
        """Return a copy that reflects the settings."""
        if any(settings.get(file) for file in self.files):
            return self.model_copy(update={"track": "extra data"})
        return self

    @property
    def words(self) -> str:
        """Summarise in one line."""
        parts = {
            "extra": self.extra,
            "teacher": self.teacher,
            "test images together": self.test_time,
            "authors' constants for each set": self.constants,
            "tuned on": self.tuned,
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

    cost: what a training step runs through. trains: what is trained, or what answers where nothing
    is. prefer: for what, after "For". new_classes: whether a model can be asked about classes that
    it was not trained on.
    """

    cost: Cost
    trains: str
    prefer: str = ""
    new_classes: bool = True


@dataclass(frozen=True)
class Traits:
    """Facts about a method's class, whatever its settings.

    uses: what it uses beyond the shots; None if a method from outside does not say. unlabelled:
    whether it learns from `Shots.unlabelled`. whole_batches: whether its loss depends on a whole
    batch, which several processes must not split. in_epochs: fields outside `recipe` that count
    epochs, which `--effort` scales. about: of a method from outside, for `rmadapter methods`.
    """

    uses: Uses | None = None
    unlabelled: bool = False
    whole_batches: bool = False
    in_epochs: tuple[str, ...] = ()
    about: About | None = None
