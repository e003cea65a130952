"""The record of a run: run.json, typed, one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
from pydantic import (
    FailFast,
    Field,
    ValidationError,
    model_validator,
)

from rmadapter.answers.held_out import one_of_each_group, sure_from
from rmadapter.answers.taxonomy import MAX_DEPTH
from rmadapter.artifacts.value import (
    BackboneChoice,
    Balanced,
    Level,
    Number,
    Percent,
    Plain,
    Promise,
    Setting,
    Split,
    Text,
    Value,
)
from rmadapter.errors import UserError, first_fault
from rmadapter.methods import changed_settings, name_with_settings
from rmadapter.metrics import harmonic_mean
from rmadapter.support.files import read_text, write_text
from rmadapter.task import Question, Task, without_balanced
from rmadapter.training.traits import Uses

if TYPE_CHECKING:
    from rmadapter.data.read import ImageSet

FORMAT: Literal[2] = 2
ANSWERED = ("finished", "not-applicable")
MAX_HELD_OUT = 1000  # answers kept to choose a threshold by
BALANCED = "balanced "  # begins the name of a figure, before that of a set
LEVEL = 0.05  # significance level of the test whether another method is better
MAX_RECORD_BYTES = 2**24  # bytes of a record; one with thousands of notes has a hundredth of that


class BackboneName(Value):
    """A backbone by name.

    Attributes:
        name: Name that `load_backbone` accepts.
        digest: Digest of the weights.
        revision: Commit of the repository on the hub that they are from; empty elsewhere, and where
            the record does not say.
    """

    name: str
    digest: str
    revision: Annotated[str, Field(pattern=r"^([0-9a-f]{40})?$")] = ""


class MethodName(Value):
    """A method by name, with its settings.

    Attributes:
        name: Name that `load_method` accepts.
        title: Name in tables.
        source: Paper, and where the settings are from.
        settings: Settings by flat name.
        uses: What an external method says that it uses.
        sums: Checksums of its code and of files that it reads; empty where the record does not say.
        published: Settings of an external method before any was changed, since its code may not be
            run when the record is read.
    """

    name: str
    title: str = ""
    source: str = ""
    settings: dict[Text, Setting] = Field(default_factory=dict, max_length=1000)
    uses: Uses | None = None
    sums: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    published: dict[Text, Setting] = Field(default_factory=dict, max_length=1000)

    @property
    def changed(self) -> dict[str, object]:
        """The settings that are not the method's own."""
        return changed_settings(self.name, self.settings, self.published)

    @property
    def label(self) -> str:
        """The title with the changed settings, such as "RMAdapter (epochs=3)"."""
        return name_with_settings(self.title or self.name, self.changed)


class Score(Value):
    """Accuracies on one set, in percent.

    Attributes:
        name: Name of the set.
        images: Number of images.
        classes: Number of classes.
        digest: Digest of the images, as `ImageSet.digest`; empty where the record does not say.
        split: Split that the images are from.
        data: Data set, if it is not the task's own.
        accuracy: Accuracy of the method; None if it has no answer.
        zero_shot: Accuracy of the untouched backbone.
        reason: Why the method has no answer.
        order: Seed of the order of images, if answers depend on it.
        open_world: Figures of answers among trained and other classes in one list, as
            `metrics.open_world` returns them.
        balanced: Balanced accuracy of the method; None where the record does not say.
        levels: Accuracies at the levels above the labels, if the data has a taxonomy.
    """

    name: str
    images: int = Field(ge=0, le=10**9)
    classes: int = Field(ge=1, le=10**9)
    digest: str = ""
    split: Split = "test"
    data: str = ""
    accuracy: Percent | None = None
    zero_shot: Percent | None = None
    reason: str = ""
    order: int | None = None
    open_world: dict[Text, Percent] = Field(default_factory=dict, max_length=10)
    balanced: Balanced | None = None
    levels: tuple[Level, ...] = Field(default=(), max_length=MAX_DEPTH)

    @property
    def chance(self) -> float:
        return 100 / self.classes

    @property
    def uneven(self) -> bool:
        """Whether its classes are known to have unequal numbers of images."""
        return self.balanced is not None and self.balanced.differs

    @property
    def title(self) -> str:
        return self.name if self.data else f"{self.split}, {self.name} classes"


Verdict: TypeAlias = Literal["better", "worse", "tied"]  # of one method beside another


class Rates(Value):
    """Results of a method on N images, in percent.

    Attributes:
        name: Name of the method.
        accuracy: Share of right answers.
        low, high: 95 % interval of the accuracy, as `metrics.interval`.
        macro_f1: Mean F1 of the classes.
        calibration_error: Expected calibration error.
        recalls: Recall of each class, None for one without images.
        p: P-value of McNemar's exact two-sided test against the method that was fitted; None for
            that one.
        balanced: Balanced accuracy; None where the record does not say.
    """

    name: str
    accuracy: Percent
    low: Percent
    high: Percent
    macro_f1: Percent
    calibration_error: Percent
    recalls: list[Percent | None]
    p: float | None = None
    balanced: Balanced | None = None


class Judgement(Value):
    """An estimate of how good a run on all classes is.

    Attributes:
        how: How its images were chosen.
        images: Number of images.
        groups: Number of groups that they are of, which intervals allow for; 0 where each image
            stands alone.
        classes: Classes, as labelled.
        majority: Accuracy of always answering with the most frequent class.
        rows: Rates of the untouched backbone, a linear probe and the method.
        doubts: Reasons to doubt it, one sentence each.
        promises: What prediction sets kept of promised errors.
    """

    how: str
    images: int = Field(ge=1, le=10**9)
    classes: tuple[str, ...]
    majority: Percent
    rows: tuple[Rates, ...]
    doubts: tuple[str, ...] = ()
    promises: tuple[Promise, ...] = ()
    groups: int = Field(default=0, ge=0, le=10**9)

    @model_validator(mode="after")
    def _one_fitted_row(self) -> Judgement:
        if [row.p for row in self.rows].count(None) != 1:
            raise ValueError("not exactly one row for the method that was fitted")
        if {len(row.recalls) for row in self.rows} != {len(self.classes)}:
            raise ValueError("recalls for other classes than it lists")
        return self

    @property
    def fitted(self) -> Rates:
        """The row of the method that was fitted."""
        return next(row for row in self.rows if row.p is None)

    @property
    def uneven(self) -> bool:
        """Whether its classes are known to have unequal numbers of images."""
        return any(row.balanced is not None and row.balanced.differs for row in self.rows)

    def verdict(self, other: Rates) -> Verdict:
        """Compare the fitted method with another by McNemar's test at `LEVEL`."""
        if other.p is None or other.p >= LEVEL:
            return "tied"
        return "better" if self.fitted.accuracy > other.accuracy else "worse"


class HeldOut(Value):
    """Answers on training images by models that had not seen them, the surest first.

    Attributes:
        probabilities: Calibrated probabilities of the answers.
        right: "1" for each answer that is right, "0" for the others.
    """

    probabilities: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], FailFast()]
    right: Annotated[str, Field(pattern="^[01]*$")]

    @model_validator(mode="after")
    def _as_many(self) -> HeldOut:
        if not 0 < len(self.probabilities) == len(self.right) <= MAX_HELD_OUT:
            raise ValueError("no answers, too many, or not as many as it calls right or wrong")
        return self

    @classmethod
    def of(
        cls,
        probabilities: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        groups: np.ndarray | None = None,
    ) -> HeldOut:
        """Keep the answers of a table on N images, at most `MAX_HELD_OUT` of them, and of one image
        of each group.

        Args:
            probabilities: The table [N, C].
            labels: [N] int.
            groups: As for `one_of_each_group`.
        """
        rows = np.sort(one_of_each_group(len(labels), groups, seed=0)[0])
        best, sure = probabilities.argmax(1), probabilities.max(1)
        order = rows[np.argsort(-sure[rows], kind="stable")]
        order = order[:: -(-len(order) // MAX_HELD_OUT)]
        right = "".join("1" if best[row] == labels[row] else "0" for row in order)
        # rounded down, as a higher threshold would not keep the answer itself
        rounded = np.floor(sure[order].astype(np.float64) * 1e4) / 1e4
        return cls(probabilities=tuple(rounded.tolist()), right=right)

    def sure_from(self, wrong: float) -> float:
        """Return the probability from which on at most a share of answers is wrong, as
        `answers.held_out.sure_from` does."""
        return sure_from(self.probabilities, [mark == "1" for mark in self.right], wrong)

    @property
    def least_wrong(self) -> int | None:
        """Return the smallest share of wrong answers, in whole percent, for which `sure_from` finds
        sure answers; None if there is none."""
        return next((share for share in range(1, 100) if self.sure_from(share / 100) <= 1), None)

    def reached(self, threshold: float) -> tuple[int, int]:
        """Return how many answers have a probability of `threshold` or more, and how many of these
        are right."""
        pairs = zip(self.probabilities, self.right, strict=True)
        marks = [mark for probability, mark in pairs if probability >= threshold]
        return len(marks), marks.count("1")


class Record(Value):
    """The record of a run. Rates are in percent, times in seconds, memory in MB of 1e6 bytes.

    Attributes:
        format: Version of the record's format.
        task: The training and its tests.
        method: Method and its settings.
        backbone: Backbone and the digest of its weights.
        precision: Number format of the training.
        key: Hash of all that the figures depend on.
        status: Whether the run finished.
        reason: Why it did not finish, or why a set has no answers.
        protocol: Protocol of the bench, or "fit".
        variant: Row of an ablation.
        axis, value: Name and value of the setting that varies.
        scores: Accuracies on each set.
        choice: How the method was chosen, in runs that chose one; no run does so any more.
        backbones: Choice of the backbone, if there was one.
        judgement: Estimate of how good the run is.
        temperature: Divisor of the logits, chosen without the test split; None if nothing was.
        held_out: Answers about shots, of models that did not see them.
        parameters: Number of trained parameters.
        seconds: Seconds of frozen activations, train, evaluate, search and total, and of each
            baseline by its name.
        step_seconds: Median seconds of a training step.
        peak_mb, peak_gpu_mb: Largest use of memory.
        split_digest: Digest of the images that were drawn.
        versions: Versions of Python and libraries.
        machine: Processor, cores, threads and device.
        finished: Date and time in UTC.
        copied_from: Path of the record that this one repeats.
        notes: What a reader must know about the images.
        command: Command, as it was typed.
        columns: Columns of the table that listed the images, as for `read_images`.
        crops: Whether the images are boxes cut from images, as for `read_images`.

    Example:
        >>> from pathlib import Path
        >>> from rmadapter import Record
        >>> record = Record.model_validate_json(Path("run/run.json").read_text())
        >>> record.method.name, record.scores[0].images
        ('rmadapter', 16)
    """

    format: Literal[2]
    task: Task
    method: MethodName
    backbone: BackboneName
    precision: str = "fp32"
    key: str = ""
    status: Literal["finished", "failed", "not-applicable"] = "finished"
    reason: str = ""
    protocol: str = "fit"
    variant: str = ""
    axis: str = ""
    value: Setting = None
    scores: Annotated[tuple[Score, ...], FailFast()] = ()
    choice: dict[str, object] | None = None
    backbones: BackboneChoice | None = None
    judgement: Judgement | None = None
    temperature: Annotated[float, Field(gt=0, le=1e6)] | None = None
    held_out: HeldOut | None = None
    parameters: int | None = Field(None, ge=0, le=10**15)
    seconds: dict[Text, Number] = Field(default_factory=dict, max_length=1000)
    step_seconds: Number | None = None
    peak_mb: Number | None = None
    peak_gpu_mb: Number | None = None
    split_digest: str = ""
    versions: dict[Text, str] = Field(default_factory=dict, max_length=1000)
    machine: dict[Text, Plain] = Field(default_factory=dict, max_length=1000)
    finished: str = ""
    copied_from: str = ""
    notes: Annotated[tuple[str, ...], FailFast()] = ()
    command: str = ""
    columns: Annotated[dict[Text, str], Field(max_length=10)] = Field(default_factory=dict)
    crops: bool = False

    def score(self, name: str) -> Score | None:
        """Return the score on a set, None if there is none.

        Args:
            name: Name of the set.
        """
        return next((score for score in self.scores if score.name == name), None)

    def metric(self, name: str, zero_shot: bool = False) -> float | None:
        """Return a figure in percent; None if the run has none.

        Args:
            name: Name of a set, for the accuracy on it; "hm", for the harmonic mean of base and
                novel; "average", over other data sets; one of these after "balanced ", for the
                balanced accuracy; or one of `open_world` of a score.
            zero_shot: Whether it is the untouched backbone's.
        """
        kind = BALANCED if name.startswith(BALANCED) else ""
        if name == f"{kind}hm":
            halves = [self.metric(kind + half, zero_shot) for half in ("base", "novel")]
            return None if None in halves else harmonic_mean(*halves)  # type: ignore[arg-type]
        if name == f"{kind}average":
            figures = [self.metric(kind + target, zero_shot) for target in self.targets]
            values = [value for value in figures if value is not None]
            return fmean(values) if figures and len(values) == len(figures) else None
        score = self.score(name.removeprefix(kind))
        if kind:
            known = not zero_shot and score and score.balanced
            return known.accuracy if known else None
        if score is None:
            joint = self.score("all")
            return None if joint is None or zero_shot else joint.open_world.get(name)
        value = score.zero_shot if zero_shot else score.accuracy
        if value is None or not score.images:
            return value
        # records have four decimals
        counted = 100 * round(value * score.images / 100) / score.images
        return counted if abs(counted - value) < 1e-4 else value

    def other_images(self, sets: Iterable[tuple[Question, ImageSet, Split]]) -> list[str]:
        """Name the sets whose images differ from those that were evaluated.

        Args:
            sets: Sets that `Lab.tests` returns.

        Returns:
            The names.
        """
        digests = {test.name: images.digest for test, images, _ in sets}
        scores = [score for score in self.scores if score.split != "cross-validated"]
        saved = {score.name: score.digest for score in scores}
        names = {**saved, **digests}
        return [name for name in names if saved.get(name) not in ("", digests.get(name))]

    @property
    def targets(self) -> list[str]:
        """Return the names of the sets from other data than the task's."""
        return [score.name for score in self.scores if score.data]

    @property
    def tested(self) -> dict[str, int]:
        """Return the number of images in each test set on which the method has an accuracy."""
        return {score.name: score.images for score in self.scores if score.accuracy is not None}

    @property
    def metrics(self) -> dict[str, float]:
        """Return every figure of the run, by name."""
        names = [*(score.name for score in self.scores), "hm"]
        names += [BALANCED + score.name for score in self.scores if score.uneven]
        if len(self.targets) > 1:
            names.append("average")
        figures = {name: self.metric(name) for name in names}
        return {name: value for name, value in figures.items() if value is not None}

    def line(self) -> str:
        """Return the record as one line of JSON: every setting, and all else that is not empty."""
        full = self.model_dump(mode="json")
        short = self.model_dump(mode="json", exclude_defaults=True)
        # the defaults of settings may change later
        settings = {"task": without_balanced(full["task"]), "precision": full["precision"]}
        return json.dumps({"format": FORMAT, **short, **settings}, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the record atomically.

        Args:
            path: File to write.
        """
        write_text(path, self.line())


def read_record(path: Path) -> Record:
    """Read the record from a file of one line. Raises UserError if it is missing, damaged or no
    record."""
    return parse_record(read_text(path, "readable", MAX_RECORD_BYTES), str(path))


def parse_record(line: str, where: str) -> Record:
    """Parse a record. Raises UserError, naming `where`, if the line is none."""
    try:
        return Record.model_validate(json.loads(line))
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{where}: not a run record (field {place or 'line'}: {reason})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable JSON ({type(error).__name__})") from None
