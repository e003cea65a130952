"""The command line: the only place that knows Typer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.backbones.choice import first_of as first_of
    from rmadapter.cli.checks import check_backbones as check_backbones
    from rmadapter.cli.options import Columns as Columns
    from rmadapter.cli.options import Command as Command
    from rmadapter.cli.options import Crops as Crops
    from rmadapter.cli.options import Device as Device
    from rmadapter.cli.options import ExperimentOptions as ExperimentOptions
    from rmadapter.cli.options import FileOptions as FileOptions
    from rmadapter.cli.options import Json as Json
    from rmadapter.cli.options import MethodName as MethodName
    from rmadapter.cli.options import Outside as Outside
    from rmadapter.cli.options import PlanOnly as PlanOnly
    from rmadapter.cli.options import Precision as Precision
    from rmadapter.cli.options import Quiet as Quiet
    from rmadapter.cli.options import RayOptions as RayOptions
    from rmadapter.cli.options import RunOptions as RunOptions
    from rmadapter.cli.options import SettingOptions as SettingOptions
    from rmadapter.cli.options import ShotOptions as ShotOptions
    from rmadapter.cli.options import Tolerance as Tolerance
    from rmadapter.cli.options import Track as Track
    from rmadapter.cli.options import comma_list as comma_list
    from rmadapter.errors import did_you_mean as did_you_mean
    from rmadapter.support.terminal import escape as escape
    from rmadapter.support.terminal import note as note
    from rmadapter.support.terminal import table as table
    from rmadapter.support.terminal import track as track

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
