"""What `tune` may try: ranges of a method's settings, derived from types, limits and values, or
given by the user.

A positive float is tried from a tenth to ten times its value, an integer from a quarter to four
times, both uniformly in the logarithm and within the field's limits; choices and switches are tried
with all their values.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rmadapter.errors import UserError, nearest, quoted
from rmadapter.settings import configured, parse_overrides, settings_of

AROUND = {float: 10, int: 4}  # the value is divided and multiplied by this
# Numbers tried only on request: the start and end of a training recipe, rounding, and ends of other
# grids.
LEFT = (
    "momentum",
    "eps",
    "warmup_epochs",
    "warmup_rate",
    "final_rate",
    "largest_alpha",
    "largest_beta",
)


@dataclass(frozen=True)
class Trial:
    """One trial. number: from 0, which is the method as requested. right: a character per judged
    image, "1" if the answer is right, else "0"; empty if the trial failed, for the given reason."""

    number: int
    params: dict[str, Any]
    right: str = ""
    seconds: float = 0.0
    reason: str = ""

    @property
    def accuracy(self) -> float | None:
        return 100 * self.right.count("1") / len(self.right) if self.right else None


def optuna() -> Any:
    """Import Optuna. Raises UserError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "tune needs Optuna: run `pip install 'rmadapter[ray]'` or `pip install optuna`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def space(method: Any, name: str, asked: Iterable[str] = ()) -> dict[str, Any]:
    """Setting -> Optuna distribution. asked: "rank", "rank=8,16,32" or "alpha=0.01..1"; by default
    every positive float of the method except `LEFT`. name: of the method, for messages.

    Raises UserError for an unknown setting, invalid values, a setting whose range cannot be
    derived, and if there is nothing to try.
    """
    known, values = dict(_fields(method)), settings_of(method)
    wanted = list(asked) or [
        field
        for field, (kind, _) in known.items()
        if kind is float and (values[field] or 0) > 0 and field not in LEFT
    ]
    if not wanted:
        raise UserError(
            f"{name} has no settings to try by default: name some, such as --search rank=4,8,16"
        )
    found = {}
    for text in wanted:
        field, equals, given = text.partition("=")
        if field not in known:
            raise UserError(f"--search {quoted(text)}: unknown setting{nearest(field, known)}")
        found[field] = (
            _given(text, given, known[field][0])
            if equals
            else _derived(field, values[field], *known[field])
        )
        for end in _ends(found[field]):
            configured(method, {field: end}, name)
    return found


def _ends(found: Any) -> tuple[Any, ...]:
    return found.choices if hasattr(found, "choices") else (found.low, found.high)


def _fields(owner: Any) -> Iterator[tuple[str, tuple[Any, dict[str, float]]]]:
    """Each setting of `settings_of`, with its type and limits: ge, gt, le, lt."""
    hints = get_type_hints(type(owner), include_extras=True)
    documented = getattr(type(owner), "__pydantic_fields__", {})
    for f in fields(owner):
        if is_dataclass(value := getattr(owner, f.name)):
            yield from _fields(value)
        elif f.name in settings_of(owner):
            kind, limits = _typed(hints[f.name])
            limits |= _limits(getattr(documented.get(f.name), "metadata", ()))
            yield f.name, (kind, limits)


def _typed(hint: Any) -> tuple[Any, dict[str, float]]:
    """A type without Annotated, Union or None around it, and the limits from Annotated."""
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)
        inner, limits = _typed(kind)
        return inner, limits | _limits(
            part for one in more for part in getattr(one, "metadata", (one,))
        )
    if get_origin(hint) in (Union, types.UnionType):  # int or None
        return _typed(next(kind for kind in get_args(hint) if kind is not type(None)))
    return hint, {}


def _limits(metadata: Iterable[Any]) -> dict[str, float]:
    return {
        n: value
        for part in metadata
        for n in ("ge", "gt", "le", "lt")
        if (value := getattr(part, n, None)) is not None
    }


def _derived(field: str, value: Any, kind: Any, limits: Mapping[str, float]) -> Any:
    distributions = optuna().distributions
    if kind is bool:
        return distributions.CategoricalDistribution((False, True))
    if get_origin(kind) is Literal:
        return distributions.CategoricalDistribution(get_args(kind))
    if kind not in AROUND or not value:
        raise UserError(
            f"--search {field}: write what to try as {field}=LOW..HIGH or {field}=A,B,C"
        )
    low = max(kind(value / AROUND[kind]), limits.get("ge", 0), 1 if kind is int else 0)
    high = min(
        kind(value * AROUND[kind]), limits.get("le", float("inf")), limits.get("lt", float("inf"))
    )
    if kind is int:
        return distributions.IntDistribution(int(low), int(high), log=True)
    return distributions.FloatDistribution(low, min(high, _below(high, limits)), log=True)


def _below(high: float, limits: Mapping[str, float]) -> float:
    """Slightly less than `high` if it equals the exclusive limit."""
    return high * (1 - 1e-6) if high == limits.get("lt") else high


def _given(text: str, given: str, kind: Any) -> Any:
    distributions = optuna().distributions
    low, dots, high = given.partition("..")
    ends = [*parse_overrides([f"x={low}"]).values(), *parse_overrides([f"x={high}"]).values()]
    if not dots:
        choices = tuple(
            parse_overrides([f"x={part}"])["x"] for part in given.split(",") if part.strip()
        )
        if not choices or any(isinstance(choice, (list, dict)) for choice in choices):
            raise UserError(f"--search {quoted(text)}: write LOW..HIGH or A,B,C")
        return distributions.CategoricalDistribution(choices)
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not (numbers and all(map(math.isfinite, ends)) and ends[0] < ends[1]):
        raise UserError(
            f"--search {quoted(text)}: write two numbers, the smaller first, such as 0.01..1"
        )
    if kind is int and not all(isinstance(end, int) for end in ends):
        raise UserError(f"--search {quoted(text)}: write whole numbers, such as 4..32")
    make = distributions.IntDistribution if kind is int else distributions.FloatDistribution
    return make(*ends, log=ends[0] > 0)
