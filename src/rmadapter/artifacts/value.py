"""What the parts of a record are made of: texts, numbers and frozen models that refuse all else."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rmadapter.errors import is_text
from rmadapter.settings import MOST_NUMBER, MOST_PARTS, MOST_WHOLE


def _a_name(text: str) -> str:
    if not text.strip() or not is_text(text):
        raise ValueError("empty, or with characters that are not text")
    return text


Text = Annotated[str, AfterValidator(_a_name)]
# What a record's open fields may hold: nothing nested deeper than a list, no number too large to
# compute with.
Number = Annotated[float, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]
Percent = Annotated[float, Field(ge=0, le=100)]
Split: TypeAlias = Literal["test", "held out", "cross-validated", "train", "val", "all"]
Plain: TypeAlias = str | bool | Annotated[int, Field(ge=-MOST_WHOLE, le=MOST_WHOLE)] | Number | None
Setting: TypeAlias = Plain | Annotated[list[Plain], Field(max_length=MOST_PARTS)]


class Value(BaseModel):
    """A frozen part of a record; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
