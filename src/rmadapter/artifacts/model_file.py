"""The typed description of a saved model: model.json, which says what the weights belong to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rmadapter.answers.rejection import RejectionScore
from rmadapter.answers.sets import Calibration
from rmadapter.answers.taxonomy import Taxonomy
from rmadapter.artifacts.record import MAX_RECORD_BYTES, BackboneName, MethodName
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.artifacts.value import LabelText, Text
from rmadapter.errors import UserError, first_fault
from rmadapter.support.files import read_bytes, read_json, sha256
from rmadapter.support.labels import MAX_LABELS
from rmadapter.task import check_templates

if TYPE_CHECKING:
    from torch import Tensor


class Transform(BaseModel):
    """How images are prepared for the backbone.

    Attributes:
        image_size: Side of the square image, in pixels.
        mean, std: Mean and standard deviation of RGB in 0..1.
        resize, interpolation, fill: Settings of open_clip; None where the file does not say.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str | None = None
    interpolation: str | None = None
    fill: int | None = None

    def allows(self, other: Transform) -> bool:
        """Return whether the other is the same, as far as this one says."""
        return all(
            value in (None, theirs) for (_, value), (_, theirs) in zip(self, other, strict=True)
        )


class Model(BaseModel):
    """The description of a saved model.

    Attributes:
        format: Version of the file's format.
        method: Method and its settings.
        backbone: Backbone and the digest of its weights.
        classes: Classes that the method was fitted to, as in prompts.
        names: Prompt names of the classes that it answers, if they are others.
        labels: The same classes, as the user writes them.
        templates: Prompt templates, one {} each.
        transform: How images are prepared.
        sha256: SHA-256 of the file of weights.
        tokenizer: Digest of the backbone's tokenizer; empty where the file does not say.
        temperature: Divisor of the logits.
        calibration: What its probabilities were worth on held-out images, if known.
        familiarity: What it finds on held-out images of its classes, if known.
        parents: Parent of each label, and of each parent that has one; none without a taxonomy.
        versions: Versions of Python and libraries.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[2] = 2
    method: MethodName
    backbone: BackboneName
    classes: Annotated[tuple[Text, ...], FailFast()] = Field(min_length=1, max_length=MAX_LABELS)
    names: Annotated[tuple[Text, ...], FailFast()] = Field((), max_length=MAX_LABELS)
    labels: Annotated[tuple[LabelText | int, ...], FailFast()] = Field(max_length=MAX_LABELS)
    templates: Annotated[tuple[Text, ...], FailFast()] = Field(min_length=1)
    transform: Transform
    sha256: str
    tokenizer: str = ""
    temperature: float = Field(1.0, gt=0, le=1e6)
    calibration: Calibration | None = None
    familiarity: RejectionScore | None = None
    parents: dict[LabelText, LabelText] = Field(default_factory=dict, max_length=MAX_LABELS)
    versions: dict[str, str]

    @field_validator("templates")
    @classmethod
    def _sound_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        return check_templates(templates)

    @model_validator(mode="after")
    def _a_label_for_each_name(self) -> Model:
        if len(self.labels) != len(self.names or self.classes):
            raise ValueError(
                f"{len(self.labels)} labels for {len(self.names or self.classes)} classes"
            )
        if self.calibration and self.calibration.known != len(self.classes):
            raise ValueError(f"a calibration of {self.calibration.known} classes")
        Taxonomy.of(self.parents, map(str, self.labels))  # raises for a cycle
        for names in (self.classes, self.names, self.labels):
            if len({*map(str, names)}) < len(names):
                raise ValueError("a class appears twice")
        return self


def read_model(file: Path) -> Model:
    """Read a model.json. Raises UserError if it is missing, damaged or no such file."""
    values = read_json(file, MAX_RECORD_BYTES)
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{file}: not a model of this version ({place}: {reason})") from None


def check_weights(run: RunFolder, model: Model) -> None:
    """Raise UserError if the weights are not those that the model was saved with."""
    _check_digest(run, model, sha256(run.weights))


def read_weights(run: RunFolder, model: Model) -> dict[str, Tensor]:
    """Read the tensors that a model was saved with, as stored. They are a copy of what was
    compared: the file may be overwritten at any time.

    Raises UserError as `check_weights`, and for a damaged file, 8-bit floats and infinite or
    undefined numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = run.weights
    content = read_bytes(file)
    _check_digest(run, model, hashlib.sha256(content).hexdigest())
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{file}: damaged or not a safetensors file ({error})") from None
    del content  # a second copy
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.element_size() < 2:
            raise UserError(
                f"{file}: {name[:100]!r} is in {tensor.dtype}, which training never uses; fit again"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{file}: {name[:100]!r} holds numbers that are not finite; fit again")
    return tensors


def _check_digest(run: RunFolder, model: Model, digest: str) -> None:
    if digest != model.sha256:
        raise UserError(f"{run.weights}: does not match {run.model.name}; the folder is damaged")
