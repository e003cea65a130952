"""Build the request for a run from flat names and values, as --set, --config and Python give
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rmadapter.backbones.names import is_choice
from rmadapter.backbones.packaged import POCKET
from rmadapter.errors import UserError, did_you_mean, quoted
from rmadapter.methods import AUTO, DEFAULT, check_named, default_for, load_method
from rmadapter.methods.auto import Auto
from rmadapter.settings import Machine, configured, parse_overrides, read_yaml, settings_of
from rmadapter.support.machine import fastest_precision, find_device
from rmadapter.support.terminal import note
from rmadapter.task import COMMON_SETTINGS, MACHINE_SETTINGS, TASK_SETTINGS, Task, check_views
from rmadapter.training.contract import Method

# Machine settings that apply where nothing is trained.
READING = ("device", "workers", "cache_memory", "disk_cache")


@dataclass(frozen=True)
class Request:
    """A task, a machine and a method. name: of the method, for `load_method`. minutes: to choose
    one of several backbones in; None for as many as usual."""

    task: Task
    machine: Machine
    method: Method
    name: str = DEFAULT
    minutes: float | None = None

    @classmethod
    def make(
        cls,
        values: Mapping[str, object] | None = None,
        method: str = DEFAULT,
        effort: str = "normal",
        data: str = "",
        choosing: bool = False,
    ) -> Request:
        """Build from flat names of the task, the machine and the method; `METHOD.field` reaches a
        method's field whose name is also a common one. choosing: as for `load_method`. Raises
        UserError that says what is unknown and what to write."""
        for_task, for_machine, for_method = split(values or {}, method)
        published = load_method(method, {}, effort, choosing)
        task = check_views(configured(Task(data=data), for_task))
        minutes = _minutes(for_method, published, task.backbone) if choosing else None
        _check_method_settings(for_method, published)
        machine = machine_of(for_machine)
        changed = configured(published, for_method)
        changed.choices()  # loads the candidates, if there are any
        return cls(task, machine, changed, method, minutes)


def requested(
    method: str,
    config: Path | None,
    flags: Mapping[str, object],
    sets: list[str] | None,
    effort: str = "normal",
    data: str = "",
    choosing: bool = False,
) -> Request:
    """Build a request from a command line: a file of settings, overridden by flags, which --set
    overrides. Without a method, `default_for` names one."""
    named, values = read_config(config, (method,))
    given = {flag: value for flag, value in flags.items() if value is not None}
    given |= parse_overrides(sets or [])
    name = method or named or default_for(given.get("classes", values.get("classes")))
    if effort != "normal":
        values = without_length(values, name)
    values |= given
    fits = flags.get("minutes") is None or is_choice(str(values.get("backbone", POCKET)))
    if not fits and not load_method(name, choosing=choosing).choices():
        raise UserError(
            "--minutes limits the choice of --method auto, and of one of several backbones; "
            "other methods train as long as --effort says"
        )
    return Request.make(values, name, effort, data, choosing)


def machine_of(values: Mapping[str, object]) -> Machine:
    """Build a Machine; resolve precision=auto and log the choice. Raises as `configured` does."""
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


def check_names(values: Mapping[str, object], name: str, method: Method, backbone: str) -> None:
    """Raise UserError for a setting unknown to the task, the machine, the method and the choice of
    a backbone. name: of the method. backbone: one or several."""
    for_method = split(values, name)[2]
    _minutes(for_method, method, backbone)
    _check_method_settings(for_method, method)


def _minutes(values: dict[str, object], method: Method, backbone: str) -> float | None:
    """Return the minutes to choose one of several backbones in, if values set them; they remain
    there only for a method that has such a setting, too. Raises UserError as `configured`."""
    if "minutes" not in values or not is_choice(backbone):
        return None
    minutes = configured(Auto(), {"minutes": values["minutes"]}).minutes
    if "minutes" not in settings_of(method):
        del values["minutes"]
    return minutes


def _check_method_settings(values: Mapping[str, object], method: Method) -> None:
    known = settings_of(method)
    for name in values:
        if name not in known:
            hint = did_you_mean(name, [*known, *COMMON_SETTINGS])
            if method.choices():
                hint += f"; for a setting of one of the methods that {AUTO} tries, name the method"
            raise UserError(f"unknown setting {quoted(name)}{hint}")


def read_config(file: Path | None, named: Sequence[str] = ()) -> tuple[str, dict[str, object]]:
    """Return the method named in a run's config.yaml, "" if none, and its other values; None counts
    as an empty file.

    Raises UserError for a method from outside, also as a candidate of `auto`, that is not among
    those `named` by the user: the file may come from elsewhere, and loading such a method runs its
    code.
    """
    values = read_yaml(file) if file else {}
    if file:
        methods: list[str] = []
        for name, value in values.items():
            if name.rpartition(".")[2] in ("method", "candidates"):
                methods += map(str, value if isinstance(value, list) else [value])
        check_named(file, methods, named)
    return str(values.pop("method", "")), values


def without_length(values: Mapping[str, object], method: str) -> dict[str, object]:
    """Return a file's values without those that an effort scales: an option takes precedence."""
    loaded = load_method(method, choosing=True)
    if loaded.choices():
        return dict(values)
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
