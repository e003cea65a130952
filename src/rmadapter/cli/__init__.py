"""The command line: the only place that knows Typer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.backbones.choice import first_of as first_of
    from rmadapter.cli.checks import check_backbones as check_backbones
    from rmadapter.cli.options import (
        Columns as Columns,
        Command as Command,
        Crops as Crops,
        Device as Device,
        ExperimentOptions as ExperimentOptions,
        FileOptions as FileOptions,
        Json as Json,
        MethodName as MethodName,
        Outside as Outside,
        PlanOnly as PlanOnly,
        Precision as Precision,
        Quiet as Quiet,
        RayOptions as RayOptions,
        RunOptions as RunOptions,
        SettingOptions as SettingOptions,
        ShotOptions as ShotOptions,
        Tolerance as Tolerance,
        Track as Track,
        comma_list as comma_list,
    )
    from rmadapter.errors import did_you_mean as did_you_mean
    from rmadapter.support.terminal import (
        escape as escape,
        note as note,
        table as table,
        track as track,
    )

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "Columns": "rmadapter.cli.options",
    "Command": "rmadapter.cli.options",
    "Crops": "rmadapter.cli.options",
    "Device": "rmadapter.cli.options",
    "ExperimentOptions": "rmadapter.cli.options",
    "FileOptions": "rmadapter.cli.options",
    "Json": "rmadapter.cli.options",
    "MethodName": "rmadapter.cli.options",
    "Outside": "rmadapter.cli.options",
    "PlanOnly": "rmadapter.cli.options",
    "Precision": "rmadapter.cli.options",
    "Quiet": "rmadapter.cli.options",
    "RayOptions": "rmadapter.cli.options",
    "RunOptions": "rmadapter.cli.options",
    "SettingOptions": "rmadapter.cli.options",
    "ShotOptions": "rmadapter.cli.options",
    "Tolerance": "rmadapter.cli.options",
    "Track": "rmadapter.cli.options",
    "check_backbones": "rmadapter.cli.checks",
    "comma_list": "rmadapter.cli.options",
    "did_you_mean": "rmadapter.errors",
    "escape": "rmadapter.support.terminal",
    "first_of": "rmadapter.backbones.choice",
    "note": "rmadapter.support.terminal",
    "table": "rmadapter.support.terminal",
    "track": "rmadapter.support.terminal",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
