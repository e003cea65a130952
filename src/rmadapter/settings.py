"""Settings: small typed groups with a documented line per field, set by flat names (--set, YAML).

A method is a frozen dataclass whose fields are its settings. The fields of a nested group count as
the method's: `learning_rate` reaches `recipe.learning_rate`. `Task` and `Machine` hold the settings
common to all methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import Field as Member, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rmadapter.errors import UserError, did_you_mean, is_text, quoted
from rmadapter.support.files import JsonObject, read_text

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
NOT_SETTINGS = ("title", "source", "traits")  # what a method says about itself
Size = Annotated[int, Field(ge=1, le=4096)]  # a width, a rank, a depth, a number of tokens
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Draw = Literal["balanced", "natural"]  # of shots, as in `Task`
Compile = Literal["none", "default", "reduce-overhead"]  # as torch calls its modes
MAX_NUMBER, MAX_WHOLE_NUMBER, MAX_PARTS = 1e12, 2**63, 10_000  # of any setting, also in a record
MAX_CHARACTERS, MAX_NESTING = 2**16, 8  # characters of a config or value, and levels of nesting


def option(default: object, text: str, **limits: Any) -> Any:
    """Return a documented field of a group. limits: as for pydantic's Field."""
    return Field(default, description=text, **limits)


@dataclass(frozen=True, config=STRICT)
class AdapterSettings:
    """The adapters beside the blocks (Eq. 8-10, 14, 15).

    Raises:
        ValueError: A value is not allowed, or the last adapted block is below the first.

    Example:
        >>> from rmadapter import AdapterSettings, RMAdapter
        >>> RMAdapter(adapter=AdapterSettings(rank=16, alpha=0.5)).adapter.rank
        16
    """

    rank: Size = option(32, "width r of the bottleneck")
    first_block: Size = option(5, "first adapted block, counted from 1 in the deeper encoder")
    last_block: Size | None = option(None, "last adapted block; empty means the top one")
    alpha: float = option(
        0.1, "weight of the adapter's output (Eq. 14, 15); 0 is the untouched backbone", ge=0
    )
    norm: Literal["none", "block"] = option(
        "none", "adapter input: raw tokens, or the block's first LayerNorm of them"
    )
    cross_modal: bool = option(False, "r x r projection shared by the two encoders, as in MMA")
    activation: Literal["gelu", "relu", "quick_gelu", "silu"] = option(
        "gelu", "non-linearity inside the adapter"
    )
    share: Literal["down", "up", "none"] = option(
        "down", "projection that the two branches share (Table 5)"
    )
    reconstruction_layers: Literal[1, 2, 3] = option(
        2, "linear layers of the reconstruction branch (Table 6)"
    )
    objective: Literal["l2", "l1", "cosine"] = option(
        "l2", "distance that reconstruction minimises"
    )
    target: Literal["input", "output", "adapted", "frozen", "below"] = option(
        "input",
        "what to reconstruct: adapter's input, block's output (two gradients), or another input",
    )
    target_norm: bool = option(False, "apply a LayerNorm without weights to the target")
    local: bool = option(True, "keep reconstruction gradients inside their adapter, as published")
    init: Literal["zero", "small", "kaiming"] = option(
        "zero", "initialisation of the up-projection"
    )
    decouple_scale: bool = option(False, "adapter weights get gradients as if alpha were 1 (MMA)")

    def __post_init__(self) -> None:
        if self.last_block is not None and self.last_block < self.first_block:
            raise UserError(f"last_block={self.last_block} is below first_block={self.first_block}")


@dataclass(frozen=True, config=STRICT)
class LossSettings:
    """The loss (Eq. 11-13, 16-18); a branch whose weight is 0 does not exist.

    Example:
        >>> from rmadapter import LossSettings, RMAdapter
        >>> loss = LossSettings(lambda_image_rec=0, lambda_text_rec=0)
        >>> RMAdapter(loss=loss).loss.lambda_image_con
        1.35
    """

    lambda_image_rec: float = option(
        0.1, "weight of image reconstruction; 0 removes the branch", ge=0
    )
    lambda_text_rec: float = option(
        0.1, "weight of text reconstruction; 0 removes the branch", ge=0
    )
    lambda_image_con: float = option(1.35, "weight of image consistency; 0 turns it off", ge=0)
    lambda_text_con: float = option(3.4, "weight of text consistency; 0 turns it off", ge=0)
    consistency_unit: Literal["feature", "logit", "raw"] = option(
        "logit",
        "of unit features; times the logit scale, for all backbones alike; or as printed in Eq. 17",
    )


def _compile_of(value: object) -> object:
    """Read what version 0.2 had, yes or no, as a mode."""
    modes: dict[object, object] = {False: "none", True: "default"}
    return modes.get(value, value) if isinstance(value, int) else value


@dataclass(frozen=True, config=STRICT)
class Machine:
    """Where to compute, in which number format, and how long.

    Only the last two may change results by more than rounding.

    Example:
        >>> from rmadapter import Lab, Machine
        >>> Lab(Machine(device="cpu")).machine.precision
        'fp32'
    """

    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = option(
        "fp32",
        "number format of training; auto: bf16 or fp16 where faster; a GPU has auto if none is "
        "given",
    )
    repeatable: bool = option(
        False,
        "on a GPU, fp32 without TF32, and deterministic algorithms: slower, but results repeat",
    )
    compile: Annotated[Compile, BeforeValidator(_compile_of)] = option(
        "none",
        "how torch.compile compiles a step: minutes, then faster; reduce-overhead: as CUDA graphs",
    )
    cache_memory: float = option(
        4.0,
        "GB of frozen activations kept in memory; beyond that, in a file in the run",
        ge=0,
        le=1e6,
    )
    disk_cache: float = option(
        0.0,
        "GB of frozen activations kept on disk for later commands (`rmadapter cache`); 0: none",
        ge=0,
        le=1e6,
    )
    workers: int = option(0, "processes that decode and augment images", ge=0, le=1024)


# Flat names


def members(owner: object) -> tuple[Member[object], ...]:
    """Return the fields of a group or method, which is a dataclass, that are settings or groups of
    them."""
    return tuple(f for f in fields(owner) if f.name not in NOT_SETTINGS)  # type: ignore[arg-type]


def settings_of(owner: object) -> JsonObject:
    """Return the settings of a group or method by flat name."""
    settings: JsonObject = {}
    for f in members(owner):
        value = getattr(owner, f.name)
        if is_dataclass(value):
            settings |= settings_of(value)
        else:
            settings[f.name] = value
    return settings


def configured(owner: T, values: Mapping[str, object], what: str = "") -> T:
    """Return the group or method with some settings replaced.

    Args:
        owner: The group or method.
        values: The new settings, by flat name.
        what: The owner's name in messages.

    Raises:
        UserError: A setting is unknown, or a value is invalid.
    """
    known = settings_of(owner)
    where = f"{what}: " if what else ""
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}unknown field {quoted(name)}{did_you_mean(str(name), known)}")
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not all(is_text(part) for part in parts if isinstance(part, str)):
            raise UserError(
                f"{where}{name}={quoted(value)}: has a NUL or a lone surrogate; use text"
            )
    changed = _replaced(owner, values, where) if values else owner
    check_range(settings_of(changed), where)
    return changed


def check_range(settings: Mapping[str, object], where: str = "") -> None:
    """Raise UserError for a number too large to compute with and a list too long for a record.

    Args:
        settings: Settings by name.
        where: What precedes the message.
    """
    for name, value in settings.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        if len(parts) > MAX_PARTS:
            raise UserError(f"{where}{name} has {len(parts):,} values: give at most {MAX_PARTS:,}")
        for part in parts:
            most = MAX_NUMBER if isinstance(part, float) else MAX_WHOLE_NUMBER
            if isinstance(part, (int, float)) and not abs(part) <= most:
                what = f"{name}={quoted(part)} is too large to compute with"
                raise UserError(f"{where}{what}: give a number of at most {most:.0e}")


def _replaced(owner: T, values: Mapping[str, object], where: str) -> T:
    hints = get_type_hints(type(owner))
    changed: dict[str, object] = {}
    for f in members(owner):
        old = getattr(owner, f.name)
        if is_dataclass(old):
            nested = {name: value for name, value in values.items() if name in settings_of(old)}
            changed[f.name] = _replaced(old, nested, where) if nested else old
        elif f.name in values:
            value = values[f.name]
            single = isinstance(value, str) and get_origin(hints[f.name]) is tuple
            changed[f.name] = (value,) if single else value
    shallow = {f.name: getattr(owner, f.name) for f in fields(owner) if f.init}  # type: ignore[arg-type]
    try:
        return TypeAdapter(type(owner)).validate_python({**shallow, **changed})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise cause from None
        name = str(first["loc"][0])
        text = documentation(owner).get(name, "")
        meaning = f" ({name}: {text})" if text else ""
        value = quoted(first["input"])
        raise UserError(f"{where}{name}={value}: {first['msg']}{meaning}") from None


def documentation(owner: object) -> dict[str, str]:
    """Return the meaning of each documented setting by flat name."""
    texts: dict[str, str] = {}
    documented = getattr(type(owner), "__pydantic_fields__", {})
    for f in members(owner):
        value = getattr(owner, f.name)
        if is_dataclass(value):
            texts |= documentation(value)
        elif f.name in documented:
            texts[f.name] = documented[f.name].description or ""
    return texts


def parse_overrides(pairs: Iterable[str]) -> JsonObject:
    """Parse `["rank=8", "norm=block"]` into a dictionary; values are read as YAML. Raises UserError
    for a pair without '='."""
    values: JsonObject = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {quoted(pair)}: write it as field=value, as in --set rank=8")
        try:
            value = _load(text)
        except ValueError:
            raise UserError(f"--set {quoted(pair)}: the value cannot be read") from None
        # YAML reads 1e-3 as text; a number is what was meant.
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        values[name.strip()] = value
    return values


def read_yaml(path: Path) -> JsonObject:
    """Read a YAML file of flat fields. Raises UserError if it is missing or not a list of
    'field: value' lines."""
    kind = "a readable config"
    text = read_text(path, kind, MAX_CHARACTERS)
    try:
        values = _load(text)
    except ValueError as error:
        raise UserError(f"{path}: not {kind} ({error})") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{path}: a config must be a list of 'field: value' lines")
    return values


def _load(text: str) -> object:
    """Parse YAML of few levels and without aliases, since few bytes of others can stand for
    gigabytes.

    Raises ValueError for any other text.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
    level = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            level += isinstance(event, yaml.CollectionStartEvent)
            level -= isinstance(event, yaml.CollectionEndEvent)
            if level > MAX_NESTING or isinstance(event, yaml.AliasEvent):
                raise ValueError
        return yaml.safe_load(text)
    # PyYAML raises nearly anything, such as an AttributeError for `!!timestamp x`.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"not YAML of at most {MAX_NESTING} levels without aliases{line}"
        ) from None


def to_yaml(values: Mapping[str, object]) -> str:
    """Write fields as YAML, in their order."""
    plain = {n: list(value) if isinstance(value, tuple) else value for n, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
