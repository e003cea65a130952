"""What the parts of a record are made of: texts, numbers and frozen models that refuse all else."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rmadapter.answers.taxonomy import MAX_DEPTH
from rmadapter.errors import is_text
from rmadapter.metrics import balanced_accuracy
from rmadapter.settings import MAX_NUMBER, MAX_PARTS, MAX_WHOLE_NUMBER
from rmadapter.support.labels import MAX_LABEL_LENGTH


def _a_name(text: str) -> str:
    if not text.strip() or not is_text(text):
        raise ValueError("empty, or with characters that are not text")
    return text


Text = Annotated[str, AfterValidator(_a_name)]
LabelText = Annotated[Text, Field(max_length=MAX_LABEL_LENGTH)]
# What a record's open fields may hold: nothing nested deeper than a list, no number too large to
# compute with.
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Percent = Annotated[float, Field(ge=0, le=100)]
Split: TypeAlias = Literal["test", "held out", "cross-validated", "train", "val", "all"]
Plain: TypeAlias = (
    str | bool | Annotated[int, Field(ge=-MAX_WHOLE_NUMBER, le=MAX_WHOLE_NUMBER)] | Number | None
)
Setting: TypeAlias = Plain | Annotated[list[Plain], Field(max_length=MAX_PARTS)]


class Value(BaseModel):
    """A frozen part of a record; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Balanced(Value):
    """The mean recall of the classes that have images, in percent.

    Attributes:
        accuracy: The mean recall.
        low, high: Its 95 % interval, as `metrics.balanced_accuracy`.
        fewest, most: Smallest and largest number of images of these classes.
    """

    accuracy: Percent
    low: Percent
    high: Percent
    fewest: int = Field(ge=1, le=10**9)
    most: int = Field(ge=1, le=10**9)

    @classmethod
    def of(cls, answers: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None) -> Balanced:
        """Measure answers.

        Args:
            answers, labels, groups: As for `metrics.balanced_accuracy`.
        """
        rates = [round(rate, 4) for rate in balanced_accuracy(answers, labels, groups)]
        counts = np.unique(np.asarray(labels), return_counts=True)[1]
        return cls(
            accuracy=rates[0],
            low=rates[1],
            high=rates[2],
            fewest=int(counts.min()),
            most=int(counts.max()),
        )

    @property
    def differs(self) -> bool:
        """Whether the numbers of images differ; if not, this is the accuracy."""
        return self.most > self.fewest

    @property
    def text(self) -> str:
        """The mean recall and its interval."""
        return f"{self.accuracy:.1f} ({self.low:.1f} to {self.high:.1f})"


class Level(Value):
    """Accuracies at a level of a taxonomy, in percent.

    Attributes:
        level: Number of the level, 1 for parents, 2 for grandparents.
        groups: Number of its groups.
        accuracy: Share of images whose most probable group is the right one.
        zero_shot: The same of the untouched backbone, None without a text encoder.
    """

    level: int = Field(ge=1, le=MAX_DEPTH)
    groups: int = Field(ge=1, le=10**9)
    accuracy: Percent
    zero_shot: Percent | None = None


class Promise(Value):
    """What prediction sets kept of a promised error. Rates are in percent.

    Attributes:
        error: Share of images whose sets may miss the right class.
        calibrated: Number of images of the calibration, or of their groups; of the smallest, if
            there were several.
        most: In earlier records, when an error was promised on average over calibrations: share
            that 95 % of calibrations miss at most.
        by_class: Whether every class has a limit of its own.
        missed: Share of the judged images whose sets miss the right class.
        low, high: 95 % interval of that share, as `metrics.interval`.
        labels: Mean number of classes in a set.
        answered: Share of images with a single class in their set.
        right: Share of these for which it is right; None if there are none.
        misses: Share missed of each class's images, None for a class without any.
        levels: With a taxonomy, share of images whose set a label alone answers, a parent, and so
            on; the others have no answer.
        wrong: With a taxonomy, share of images whose answer, at its level, is wrong.
    """

    error: Percent
    calibrated: int = Field(ge=1, le=10**9)
    most: Percent | None = None
    by_class: bool
    missed: Percent
    low: Percent
    high: Percent
    labels: Number
    answered: Percent
    right: Percent | None
    misses: tuple[Percent | None, ...] = ()
    levels: tuple[Percent, ...] = Field(default=(), max_length=MAX_DEPTH + 1)
    wrong: Percent | None = None

    @property
    def is_broken(self) -> bool:
        """Whether even the lower end of the interval of what was missed is above the error."""
        return self.low > self.error


class BackboneRow(Value):
    """A backbone that could have been chosen.

    Attributes:
        name: Name that `load_backbone` accepts.
        accuracy: Accuracy of the linear probe on the images of the folds.
        images_per_second: Speed of its image encoder on this machine, in batches of 8.
        megabytes: Size of its weights in float32.
        licence: Licence of its weights, or what is known of it.
        seconds: Seconds of encoding and judging.
        reason: Why there is no accuracy.
    """

    name: str
    accuracy: Percent | None = None
    images_per_second: Number | None = None
    megabytes: Number | None = None
    licence: str = ""
    seconds: Number | None = None
    reason: str = ""


class BackboneChoice(Value):
    """The backbone that `fit` chose.

    Attributes:
        chosen: The one with the highest accuracy; of equals, the fastest.
        minutes: Minutes that judging may take.
        folds: Number of folds.
        images: Number of images in all folds together.
        rows: Backbones in the order in which they were named.
    """

    chosen: str
    minutes: Number
    folds: Annotated[int, Field(ge=0, le=10**9)] = 0
    images: Annotated[int, Field(ge=0, le=10**9)] = 0
    rows: Annotated[tuple[BackboneRow, ...], Field(max_length=1000)] = ()
