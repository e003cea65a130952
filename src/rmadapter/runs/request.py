"""Build the request for a run from flat names and values, as --set, --config and Python give
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rmadapter.backbones.names import joined, names_in
from rmadapter.backbones.packaged import POCKET_3
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.methods import DEFAULT, check_named, load_method
from rmadapter.settings import (
    Machine,
    configured,
    parse_overrides,
    read_yaml,
    settings_of,
)
from rmadapter.support.machine import fastest_precision, find_device
from rmadapter.support.terminal import note
from rmadapter.task import COMMON_SETTINGS, MACHINE_SETTINGS, TASK_SETTINGS, Task, check_views
from rmadapter.training.contract import Method

# Machine settings that apply where nothing is trained.
READING = ("device", "workers", "cache_memory", "disk_cache")


@dataclass(frozen=True)
class Request:
    """A task, a machine and a method.

    Attributes:
        task: What to learn from, and what to test.
        machine: Where to compute.
        method: Method with its settings.
        name: Name of the method, for `load_method`.
    """

    task: Task
    machine: Machine
    method: Method
    name: str = DEFAULT

    @classmethod
    def make(
        cls,
        values: Mapping[str, object] | None = None,
        method: str = DEFAULT,
        effort: str = "normal",
        data: str = "",
    ) -> Request:
        """Build a request from flat names.

        Args:
            values: Settings of the task, the machine and the method; `METHOD.field` reaches a
                method's field whose name is also a common one.
            method: Name of the method.
            effort: As for `load_method`.
            data: What to learn from.

        Raises:
            UserError: A name is unknown; the message says what to write.
        """
        for_task, for_machine, for_method = split(values or {}, method)
        published = load_method(method, {}, effort)
        task = check_views(configured(Task(data=data), for_task))
        task = replace(task, backbone=joined(names_in(task.backbone)))
        _check_method_settings(for_method, published)
        machine = machine_of(for_machine)
        changed = configured(published, for_method)
        return cls(task, machine, changed, method)


def requested(
    method: str,
    config: Path | None,
    flags: Mapping[str, object],
    sets: list[str] | None,
    effort: str = "normal",
    data: str = "",
) -> Request:
    """Build a request from a command line: a file of settings, overridden by flags, which --set
    overrides. Without a method, it is `DEFAULT`; without a backbone, `POCKET_3`; without a number
    of shots, all images are taken."""
    named, values = read_config(config, (method,))
    given = {flag: value for flag, value in flags.items() if value is not None}
    given |= parse_overrides(sets or [])
    name = method or named or DEFAULT
    if effort != "normal":
        values = without_length(values, name)
    values = {"backbone": POCKET_3, "shots": 0, **values, **given}
    return Request.make(values, name, effort, data)


def machine_of(values: Mapping[str, object]) -> Machine:
    """Build a Machine; resolve precision=auto, which a GPU has unless a format is given or its
    results shall repeat, and log the choice. Raises as `configured` does."""
    machine = configured(Machine(), values)
    is_open = "precision" not in values and not machine.repeatable
    on_gpu = is_open and find_device(machine.device).type == "cuda"
    if machine.precision != "auto" and not on_gpu:
        return machine
    precision, why = fastest_precision(find_device(machine.device))
    note(f"precision={precision}: {why}")
    return replace(machine, precision=precision)


def check_names(values: Mapping[str, object], name: str) -> None:
    """Raise UserError for a setting unknown to the task, the machine and the method.

    Args:
        values: Settings by flat name.
        name: Name of the method, as for `Request.make`.
    """
    _check_method_settings(split(values, name)[2], load_method(name))


def _check_method_settings(values: Mapping[str, object], method: Method) -> None:
    known = settings_of(method)
    for name in values:
        if name not in known:
            hint = did_you_mean(name, [*known, *COMMON_SETTINGS])
            raise UserError(f"unknown setting {quoted(name)}{hint}")


def read_config(file: Path | None, named: Sequence[str] = ()) -> tuple[str, dict[str, object]]:
    """Return the method named in a run's config.yaml, "" if none, and its other values; None counts
    as an empty file.

    Raises UserError for a method from outside that is not among those `named` by the user: the file
    may come from elsewhere, and loading such a method runs its code.
    """
    values = read_yaml(file) if file else {}
    methods = [value for name, value in values.items() if name.rpartition(".")[2] == "method"]
    for value in methods:
        if not isinstance(value, str):
            raise UserError(f"{file}: method: {quoted(value)} is no name of a method")
        check_named(file or Path(), [value], named)
    return str(values.pop("method", "")), values


def without_length(values: Mapping[str, object], method: str) -> dict[str, object]:
    """Return a file's values without those that an effort scales: an option takes precedence."""
    loaded = load_method(method)
    long = ("epochs", "iterations", *loaded.traits.in_epochs)
    return {name: value for name, value in values.items() if name.rpartition(".")[2] not in long}


def split(
    values: Mapping[str, object], method: str
) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    """Split values into those of the task, the machine and the method. Raises UserError for another
    method's."""
    for_task = {name: value for name, value in values.items() if name in TASK_SETTINGS}
    for_machine = {name: value for name, value in values.items() if name in MACHINE_SETTINGS}
    for_method: dict[str, object] = {}
    for name, value in values.items():
        prefix, dot, rest = name.rpartition(".")
        if dot and prefix != method:
            raise UserError(
                f"{quoted(name)} is a setting of {quoted(prefix)}, but the method is {method!r}"
            )
        if name not in COMMON_SETTINGS:
            for_method[rest] = value
    return for_task, for_machine, for_method
