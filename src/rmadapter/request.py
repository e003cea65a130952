"""Everything that a run is asked for, from one flat list of names, as --set, --config and Python give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rmadapter.console import note
from rmadapter.errors import UserError, nearest, quoted
from rmadapter.machine import fastest_precision, find_device
from rmadapter.method import Method
from rmadapter.methods import DEFAULT, load_method
from rmadapter.settings import Machine, configured, read_yaml, settings_of
from rmadapter.task import Task, check_views

TASK = tuple(f.name for f in fields(Task) if f.name not in ("data", "tests"))  # the two are no settings
MACHINE = tuple(f.name for f in fields(Machine))
READING = ("device", "workers", "cache_memory", "disk_cache")  # of the machine's, where nothing is trained
COMMON = (*TASK, *MACHINE)  # what is no method's own


@dataclass(frozen=True)
class Request:
    """name: of the method, as `load_method` knows it."""

    task: Task
    machine: Machine
    method: Method
    name: str = DEFAULT

    @classmethod
    def make(
        cls, values: Mapping[str, Any] | None = None, method: str = DEFAULT, effort: str = "normal", data: str = ""
    ) -> Request:
        """From flat names: of the task, of the machine, of the method; `METHOD.field` reaches a method's field that is
        called as a common one. Raises UserError that names what is unknown and what to write."""
        task, machine, own = split(values or {}, method)
        found = load_method(method, {}, effort)
        check_own(own, found)
        return cls(check_views(configured(Task(data=data), task)), machine_of(machine), configured(found, own), method)


def machine_of(values: Mapping[str, Any]) -> Machine:
    """From flat names; `precision=auto` becomes what it means here, and a note says so. Raises as `configured`."""
    machine = configured(Machine(), values)
    if machine.precision != "auto":
        return machine
    precision, times = fastest_precision(find_device(machine.device))
    kind = "float16" if precision == "fp16" else "bfloat16"
    note(f"precision={precision}: a matrix product in {kind} takes {1 / times:.2g} of its float32 time here")
    return replace(machine, precision=precision)


def check_names(values: Mapping[str, Any], method: str, owner: Any) -> None:
    """Raises UserError for a name that is none of the task, the machine or the method, whose settings `owner` holds."""
    check_own(split(values, method)[2], owner)


def check_own(own: Mapping[str, Any], owner: Any) -> None:
    for name in own:
        if name not in settings_of(owner):
            raise UserError(f"unknown setting {quoted(name)}{nearest(name, [*settings_of(owner), *COMMON])}")


def own_names(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a method as `make` takes them: a field that is called as a common one is named after the method."""
    return {f"{method}.{name}" if name in COMMON else name: value for name, value in settings.items()}


def read_config(file: Path | None) -> tuple[str, dict[str, Any]]:
    """The method that a run's config.yaml names, "" if none, and its other values; None is an empty file."""
    values = read_yaml(file) if file else {}
    if {"lambda_image_con", "lambda_text_con", "decouple_scale"} <= values.keys():  # of a run, which lists everything
        values.setdefault("consistency_unit", "feature")  # before there was a choice
    return str(values.pop("method", "")), values


def split(values: Mapping[str, Any], method: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Values of the task, of the machine, and of the method. Raises UserError for another method's."""
    task = {name: value for name, value in values.items() if name in TASK}
    machine = {name: value for name, value in values.items() if name in MACHINE}
    own: dict[str, Any] = {}
    for name, value in values.items():
        prefix, dot, rest = name.rpartition(".")
        if dot and prefix != method:
            raise UserError(f"{quoted(name)}: a setting of {quoted(prefix)}, but the method is {method!r}")
        if name not in COMMON:
            own[rest] = value
    return task, machine, own
