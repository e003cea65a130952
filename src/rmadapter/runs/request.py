"""The whole request for a run, built from flat names and values as --set, --config and Python give
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.methods import DEFAULT, check_named, load_method
from rmadapter.settings import Machine, configured, parse_overrides, read_yaml, settings_of
from rmadapter.support.machine import fastest_precision, find_device
from rmadapter.support.terminal import note
from rmadapter.task import COMMON_SETTINGS, MACHINE_SETTINGS, TASK_SETTINGS, Task, check_views
from rmadapter.training.contract import Method

READING = (
    "device",
    "workers",
    "cache_memory",
    "disk_cache",
)  # machine settings that apply where nothing is trained


@dataclass(frozen=True)
class Request:
    """name: of the method, for `load_method`."""

    task: Task
    machine: Machine
    method: Method
    name: str = DEFAULT

    @classmethod
    def make(
        cls,
        values: Mapping[str, Any] | None = None,
        method: str = DEFAULT,
        effort: str = "normal",
        data: str = "",
        choosing: bool = False,
    ) -> Request:
        """Build from flat names of the task, the machine and the method; `METHOD.field` reaches a
        method's field whose name is also a common one. choosing: as for `load_method`. Raises
        UserError that says what is unknown and what to write."""
        task, machine, settings = split(values or {}, method)
        published = load_method(method, {}, effort, choosing)
        check_own(settings, published)
        configured_method = configured(published, settings)
        configured_method.choices()  # loads the candidates, if it has any
        task_settings = check_views(configured(Task(data=data), task))
        return cls(task_settings, machine_of(machine), configured_method, method)


def requested(
    method: str,
    config: Path | None,
    flags: Mapping[str, Any],
    sets: list[str] | None,
    effort: str = "normal",
    data: str = "",
    choosing: bool = False,
) -> Request:
    """Build a request from a command line: a file of settings, overridden by flags, which --set
    overrides."""
    named, values = read_config(config, (method,))
    name = method or named or DEFAULT
    if effort != "normal":
        values = without_length(values, name)
    values |= {flag: value for flag, value in flags.items() if value is not None}
    values |= parse_overrides(sets or [])
    if flags.get("minutes") is not None and not load_method(name, choosing=choosing).choices():
        raise UserError(
            "--minutes limits the choice of --method auto; other methods train as long as --effort "
            "says"
        )
    return Request.make(values, name, effort, data, choosing)


def machine_of(values: Mapping[str, Any]) -> Machine:
    """From flat names; `precision=auto` becomes the fastest here, and a note says so. Raises as
    `configured` does."""
    machine = configured(Machine(), values)
    if machine.precision != "auto":
        return machine
    precision, times = fastest_precision(find_device(machine.device))
    kind = "float16" if precision == "fp16" else "bfloat16"
    note(
        f"precision={precision}: a matrix product in {kind} takes {1 / times:.2g} of its float32 "
        "time here"
    )
    return replace(machine, precision=precision)


def check_names(values: Mapping[str, Any], method: str, owner: Any) -> None:
    """Raises UserError for a name unknown to the task, the machine and the method. owner: has the
    method's settings."""
    check_own(split(values, method)[2], owner)


def check_own(own: Mapping[str, Any], owner: Any) -> None:
    for name in own:
        if name not in settings_of(owner):
            raise UserError(
                f"unknown setting {quoted(name)}"
                + did_you_mean(name, [*settings_of(owner), *COMMON_SETTINGS])
            )


def read_config(file: Path | None, named: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """The method named in a run's config.yaml, "" if none, and its other values; None counts as an
    empty file.

    Raises UserError for a method from outside, also as a candidate of `auto`, that is not among
    those `named` by the user: the file may come from elsewhere, and loading such a method runs its
    code.
    """
    values = read_yaml(file) if file else {}
    if file:
        given = [
            values[name] for name in values if name.rpartition(".")[2] in ("method", "candidates")
        ]
        check_named(
            file,
            [str(one) for some in given for one in (some if isinstance(some, list) else [some])],
            named,
        )
    return str(values.pop("method", "")), values


def without_length(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return a file's values without those that an effort scales: an option takes precedence."""
    loaded = load_method(method, choosing=True)
    if loaded.choices():
        return dict(values)
    long = ("epochs", "iterations", *loaded.traits.in_epochs)
    return {name: value for name, value in values.items() if name.rpartition(".")[2] not in long}


def split(
    values: Mapping[str, Any], method: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split values into those of the task, the machine and the method. Raises UserError for another
    method's."""
    task = {name: value for name, value in values.items() if name in TASK_SETTINGS}
    machine = {name: value for name, value in values.items() if name in MACHINE_SETTINGS}
    own: dict[str, Any] = {}
    for name, value in values.items():
        prefix, dot, rest = name.rpartition(".")
        if dot and prefix != method:
            raise UserError(
                f"{quoted(name)}: a setting of {quoted(prefix)}, but the method is {method!r}"
            )
        if name not in COMMON_SETTINGS:
            own[rest] = value
    return task, machine, own
