"""model.json, which describes the weights beside it: method, backbone, classes, transform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rmadapter.artifacts.record import LONGEST, BackboneName, MethodName
from rmadapter.errors import UserError, first_fault, is_text
from rmadapter.support.files import read_json


def _a_name(text: str) -> str:
    if not text.strip() or not is_text(text):
        raise ValueError("empty, or with characters that are not text")
    return text


Text = Annotated[str, AfterValidator(_a_name)]


class Transform(BaseModel):
    """How images are prepared for the backbone: side in pixels; mean and standard deviation of RGB
    in 0..1; the rest as in open_clip, None where the file does not say."""

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
    """sha256: of the weights' file. classes: those that the method was fitted to. names: of the
    classes it answers, if they are others; labels: the same as the user writes them. temperature:
    divisor of the logits. tokenizer: digest of the backbone's; empty where the file does not
    say."""

    model_config = ConfigDict(frozen=True)

    format: Literal[2] = 2
    method: MethodName
    backbone: BackboneName
    classes: tuple[Text, ...] = Field(min_length=1)
    names: tuple[Text, ...] = ()
    labels: tuple[Text | int, ...]
    templates: tuple[Text, ...] = Field(min_length=1)
    transform: Transform
    sha256: str
    tokenizer: str = ""
    temperature: float = Field(1.0, gt=0, le=1e6)
    versions: dict[str, str]

    @model_validator(mode="after")
    def _a_label_for_each_name(self) -> Model:
        if len(self.labels) != len(self.names or self.classes):
            raise ValueError(
                f"{len(self.labels)} labels for {len(self.names or self.classes)} classes"
            )
        for names in (self.classes, self.names, self.labels):
            if len({*map(str, names)}) < len(names):
                raise ValueError("a class appears twice")
        return self


def read_model(file: Path) -> Model:
    """Read a model.json. Raises UserError if it is missing, damaged or no such file, and for a
    model of several labels per image, as earlier versions could fit."""
    values = read_json(file, LONGEST)
    if isinstance(values, dict) and values.get("several"):
        raise UserError(
            f"{file}: fitted to several labels per image, which is no longer supported: fit again "
            "with one each"
        )
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        place, reason = first_fault(error)
        raise UserError(f"{file}: not a model of this version ({place}: {reason})") from None
