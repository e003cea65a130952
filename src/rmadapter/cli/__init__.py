"""The command line: the only place that knows Typer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.backbones.choice import first_of as first_of
    from rmadapter.cli.options import Columns as Columns
    from rmadapter.cli.options import Command as Command
    from rmadapter.cli.options import Device as Device
    from rmadapter.cli.options import Json as Json
    from rmadapter.cli.options import Outside as Outside
    from rmadapter.cli.options import Quiet as Quiet
    from rmadapter.support.terminal import table as table

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "Columns": "rmadapter.cli.options",
    "Command": "rmadapter.cli.options",
    "Device": "rmadapter.cli.options",
    "Json": "rmadapter.cli.options",
    "Outside": "rmadapter.cli.options",
    "Quiet": "rmadapter.cli.options",
    "first_of": "rmadapter.backbones.choice",
    "table": "rmadapter.support.terminal",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
