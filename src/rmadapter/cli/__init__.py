"""The command line: the only place that knows Typer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.backbones.load import first_of as first_of
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
        comma_list as comma_list,
    )
    from rmadapter.errors import did_you_mean as did_you_mean
    from rmadapter.support.escape import escape as escape
    from rmadapter.support.terminal import note as note, table as table, track as track

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.backbones.load": ["first_of"],
        "rmadapter.cli.options": [
            "Columns",
            "Command",
            "Crops",
            "Device",
            "ExperimentOptions",
            "FileOptions",
            "Json",
            "MethodName",
            "Outside",
            "PlanOnly",
            "Precision",
            "Quiet",
            "RayOptions",
            "RunOptions",
            "SettingOptions",
            "ShotOptions",
            "Tolerance",
            "comma_list",
        ],
        "rmadapter.errors": ["did_you_mean"],
        "rmadapter.support.escape": ["escape"],
        "rmadapter.support.terminal": ["note", "table", "track"],
    },
)
