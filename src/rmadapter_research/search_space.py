"""What `tune` may try: ranges of a method's settings, derived from types, limits and values, or
written by the user.

A positive float is tried from a tenth to ten times its value, an integer from a quarter to four
times, both uniformly in the logarithm and within the field's limits; choices and switches are tried
with all their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.settings import configured, parse_overrides, settings_of

AROUND = {float: 10, int: 4}  # the value is divided and multiplied by this
# Numbers tried only on request: the start and end of a training recipe, rounding, and ends of other
# grids.
ON_REQUEST = (
    "momentum", "eps", "warmup_epochs", "warmup_rate", "final_rate", "largest_alpha",
    "largest_beta",
)  # fmt: skip
LIMITS = ("ge", "gt", "le", "lt")


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


def optuna() -> ModuleType:
    """Import Optuna. Raises UserError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "a search for settings needs Optuna: run `pip install 'rmadapter[tune]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    module: ModuleType = optuna
    return module


def make_space(method: object, name: str, wanted: Iterable[str] = ()) -> dict[str, Distribution]:
    """Return an Optuna distribution for each setting to try.

    name: of the method, for messages. wanted: "rank", "rank=8,16,32" or "alpha=0.01..1"; by default
    every positive float of the method except `ON_REQUEST`. Raises UserError for an unknown setting,
    invalid values, a setting whose range cannot be derived, and if there is nothing to try.
    """
    known = dict(_fields(method))
    values = settings_of(method)
    wanted = list(wanted) or [
        field
        for field, (kind, _) in known.items()
        if kind is float and (values[field] or 0) > 0 and field not in ON_REQUEST
    ]
    if not wanted:
        raise UserError(
            f"{name} has no settings to try by default: name some, such as --search rank=4,8,16"
        )
    space: dict[str, Distribution] = {}
    for text in wanted:
        field, equals, choices = text.partition("=")
        if field not in known:
            raise UserError(f"--search {quoted(text)}: unknown setting{did_you_mean(field, known)}")
        kind, limits = known[field]
        if equals:
            space[field] = _parse(text, choices, kind)
        else:
            space[field] = _derive(field, values[field], kind, limits)
        for value in _checked_values(space[field]):
            configured(method, {field: value}, name)
    return space


def _checked_values(distribution: Distribution) -> tuple[object, ...]:
    """Return all choices of a distribution, or both ends of its range."""
    if hasattr(distribution, "choices"):
        return distribution.choices
    return distribution.low, distribution.high


def _fields(owner: Any) -> Iterator[tuple[str, tuple[object, dict[str, float]]]]:
    """Yield each setting of `settings_of`, with its type and its limits by name."""
    hints = get_type_hints(type(owner), include_extras=True)
    documented = getattr(type(owner), "__pydantic_fields__", {})
    for field in fields(owner):
        value = getattr(owner, field.name)
        if is_dataclass(value):
            yield from _fields(value)
        elif field.name in settings_of(owner):
            kind, limits = _type_and_limits(hints[field.name])
            limits |= _limits(getattr(documented.get(field.name), "metadata", ()))
            yield field.name, (kind, limits)


def _type_and_limits(hint: object) -> tuple[object, dict[str, float]]:
    """Return a type without Annotated, Union or None around it, and the limits from Annotated."""
    if get_origin(hint) is Annotated:
        annotated, *metadata = get_args(hint)
        kind, limits = _type_and_limits(annotated)
        parts = (part for entry in metadata for part in getattr(entry, "metadata", (entry,)))
        return kind, limits | _limits(parts)
    if get_origin(hint) in (Union, UnionType):  # int or None
        return _type_and_limits(next(kind for kind in get_args(hint) if kind is not type(None)))
    return hint, {}


def _limits(metadata: Iterable[object]) -> dict[str, float]:
    limits = {}
    for part in metadata:
        for name in LIMITS:
            value = getattr(part, name, None)
            if value is not None:
                limits[name] = value
    return limits


def _derive(
    field: str, value: float | None, kind: object, limits: Mapping[str, float]
) -> Distribution:
    if kind is bool:
        return _choices((False, True))
    if get_origin(kind) is Literal:
        return _choices(get_args(kind))
    if kind not in AROUND or not value:
        raise UserError(
            f"--search {field}: write what to try as {field}=LOW..HIGH or {field}=A,B,C"
        )
    infinite = float("inf")
    number = int if kind is int else float
    around = AROUND[number]
    low = max(number(value / around), limits.get("ge", 0), 1 if kind is int else 0)
    high = min(number(value * around), limits.get("le", infinite), limits.get("lt", infinite))
    if kind is int:
        return _range(int, int(low), int(high))
    if high == limits.get("lt"):  # an exclusive limit
        high = high * (1 - 1e-6)
    return _range(float, low, high)


def _parse(text: str, choices: str, kind: object) -> Distribution:
    """Parse what follows `=` in `text`: LOW..HIGH or A,B,C."""
    low, dots, high = choices.partition("..")
    if not dots:
        values = tuple(_value(part) for part in choices.split(",") if part.strip())
        if not values or any(isinstance(value, (list, dict)) for value in values):
            raise UserError(f"--search {quoted(text)}: write LOW..HIGH or A,B,C")
        return _choices(values)
    ends = [_value(low), _value(high)]
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not (numbers and all(map(math.isfinite, ends)) and ends[0] < ends[1]):
        raise UserError(
            f"--search {quoted(text)}: write two numbers, the smaller first, such as 0.01..1"
        )
    if kind is int and not all(isinstance(end, int) for end in ends):
        raise UserError(f"--search {quoted(text)}: write whole numbers, such as 4..32")
    return _range(kind, *ends)


def _choices(values: tuple[object, ...]) -> Choices:
    distribution: Choices = optuna().distributions.CategoricalDistribution(values)
    return distribution


def _range(kind: object, low: float, high: float) -> Range:
    """Return a distribution of integers or floats, on a logarithmic scale if all are positive."""
    distributions = optuna().distributions
    make = distributions.IntDistribution if kind is int else distributions.FloatDistribution
    distribution: Range = make(low, high, log=low > 0)
    return distribution


def _value(text: str) -> Any:
    return parse_overrides([f"x={text}"])["x"]
