"""What `tune` may try: ranges of a method's settings, derived from types, limits and values, or
written by the user.

A positive float is tried from a tenth to ten times its value, an integer from a quarter to four
times, both uniformly in the logarithm and within the field's limits; choices and switches are tried
with all their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from pydantic import TypeAdapter

from rmadapter import UserError
from rmadapter.cli import did_you_mean
from rmadapter.runs import configured, parse_overrides, settings_of

FACTORS = {"number": 10, "integer": 4}  # the value is divided and multiplied by this
# Numbers tried only on request: the start and end of a training recipe, rounding, and ends of other
# grids.
ON_REQUEST = (
    "momentum",
    "eps",
    "warmup_epochs",
    "warmup_rate",
    "final_rate",
    "largest_alpha",
    "largest_beta",
)


class Choices(Protocol):
    """A categorical distribution of Optuna, which is optional."""

    choices: tuple[object, ...]


class Range(Protocol):
    """A distribution of numbers of Optuna."""

    low: float
    high: float
    log: bool


Distribution: TypeAlias = "Choices | Range"
Space: TypeAlias = "Mapping[str, Distribution]"  # by setting
Schema: TypeAlias = "Mapping[str, Any]"  # JSON schema of a setting


def optuna() -> ModuleType:
    """Import Optuna. Raises UserError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "a search for settings needs Optuna: run `pip install 'rmadapter[tune]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    module: ModuleType = optuna
    return module


def make_space(method: object, name: str, wanted: Iterable[str] = ()) -> dict[str, Distribution]:
    """Return an Optuna distribution for each setting to try.

    Args:
        method: The method.
        name: Name of the method, for messages.
        wanted: "rank", "rank=8,16,32" or "alpha=0.01..1"; by default every positive float of the
            method except `ON_REQUEST`.

    Raises:
        UserError: A setting is unknown, its values are invalid, its range cannot be derived, or
            there is nothing to try.
    """
    known, values = _schemas(method), settings_of(method)
    wanted = list(wanted) or [
        field
        for field, schema in known.items()
        if schema.get("type") == "number" and (values[field] or 0) > 0 and field not in ON_REQUEST
    ]
    if not wanted:
        raise UserError(
            f"{name} has no settings to try by default: name some, such as --search rank=4,8,16"
        )
    space: dict[str, Distribution] = {}
    for text in wanted:
        field, equals, choices = text.partition("=")
        if field not in known:
            hint = did_you_mean(field, known)
            raise UserError(f"--search {text[:100]!r}: unknown setting{hint}")
        if equals:
            space[field] = _parse(text, choices, known[field].get("type"))
        else:
            space[field] = _derive(field, values[field], known[field])
        for value in _checked_values(space[field]):
            configured(method, {field: value}, name)
    return space


def _checked_values(distribution: Distribution) -> tuple[object, ...]:
    """Return all choices of a distribution, or both ends of its range."""
    if hasattr(distribution, "choices"):
        return distribution.choices
    return distribution.low, distribution.high


def _schemas(method: object) -> dict[str, Schema]:
    """Return the JSON schema of each setting, in the order of `settings_of`; of one that may be
    null, the other schema."""
    whole = TypeAdapter(type(method)).json_schema()
    schemas: dict[str, Schema] = {}
    for group in (whole, *whole.get("$defs", {}).values()):
        for field, schema in group.get("properties", {}).items():
            kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
            schemas[field] = kinds[0]
    return {field: schemas[field] for field in settings_of(method) if field in schemas}


def _derive(field: str, value: float | None, schema: Schema) -> Distribution:
    kind = schema.get("type")
    if kind == "boolean":
        return _choices((False, True))
    if "enum" in schema:
        return _choices(tuple(schema["enum"]))
    if kind not in FACTORS or not value:
        raise UserError(
            f"--search {field}: write what to try as {field}=LOW..HIGH or {field}=A,B,C"
        )
    number, limit = int if kind == "integer" else float, schema.get("exclusiveMaximum", math.inf)
    low = max(number(value / FACTORS[kind]), schema.get("minimum", 0), kind == "integer")
    high = min(number(value * FACTORS[kind]), schema.get("maximum", math.inf), limit)
    if high == limit and kind == "number":
        high *= 1 - 1e-6
    return _range(kind, number(low), number(high))


def _parse(text: str, choices: str, kind: object) -> Distribution:
    """Parse what follows `=` in `text`: LOW..HIGH or A,B,C."""
    low, dots, high = choices.partition("..")
    if not dots:
        values = tuple(_value(part) for part in choices.split(",") if part.strip())
        if not values or any(isinstance(value, (list, dict)) for value in values):
            raise UserError(f"--search {text[:100]!r}: write LOW..HIGH or A,B,C")
        return _choices(values)
    ends = [_value(low), _value(high)]
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not (numbers and all(map(math.isfinite, ends)) and ends[0] < ends[1]):
        raise UserError(
            f"--search {text[:100]!r}: write two numbers, the smaller first, such as 0.01..1"
        )
    if kind == "integer" and not all(isinstance(end, int) for end in ends):
        raise UserError(f"--search {text[:100]!r}: write whole numbers, such as 4..32")
    return _range(kind, *ends)


def _choices(values: tuple[object, ...]) -> Choices:
    distribution: Choices = optuna().distributions.CategoricalDistribution(values)
    return distribution


def _range(kind: object, low: float, high: float) -> Range:
    """Return a distribution of integers or floats, on a logarithmic scale if all are positive."""
    distributions = optuna().distributions
    make = distributions.IntDistribution if kind == "integer" else distributions.FloatDistribution
    distribution: Range = make(low, high, log=low > 0)
    return distribution


def _value(text: str) -> Any:
    return parse_overrides([f"x={text}"])["x"]
