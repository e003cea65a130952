"""What a run leaves on disk."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.artifacts.checkpoint import Saved as Saved, copy_run as copy_run
    from rmadapter.artifacts.model_file import read_model as read_model
    from rmadapter.artifacts.page import (
        small_jpeg as small_jpeg,
        thumbnail as thumbnail,
        thumbnails_of as thumbnails_of,
    )
    from rmadapter.artifacts.predictions import (
        Predictions as Predictions,
        read_predictions as read_predictions,
    )
    from rmadapter.artifacts.record import read_record as read_record
    from rmadapter.artifacts.run_folder import RunFolder as RunFolder, find_run as find_run
    from rmadapter.artifacts.summary import describe_tie as describe_tie
    from rmadapter.support.files import (
        atomic as atomic,
        read_json as read_json,
        read_text as read_text,
        write_json as write_json,
        write_text as write_text,
    )
    from rmadapter.support.html import template as template
    from rmadapter.support.locks import exclusive as exclusive
    from rmadapter.support.machine import version_of as version_of

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "Predictions": "rmadapter.artifacts.predictions",
    "RunFolder": "rmadapter.artifacts.run_folder",
    "Saved": "rmadapter.artifacts.checkpoint",
    "atomic": "rmadapter.support.files",
    "copy_run": "rmadapter.artifacts.checkpoint",
    "describe_tie": "rmadapter.artifacts.summary",
    "exclusive": "rmadapter.support.locks",
    "find_run": "rmadapter.artifacts.run_folder",
    "read_json": "rmadapter.support.files",
    "read_model": "rmadapter.artifacts.model_file",
    "read_predictions": "rmadapter.artifacts.predictions",
    "read_record": "rmadapter.artifacts.record",
    "read_text": "rmadapter.support.files",
    "small_jpeg": "rmadapter.artifacts.page",
    "template": "rmadapter.support.html",
    "thumbnail": "rmadapter.artifacts.page",
    "thumbnails_of": "rmadapter.artifacts.page",
    "version_of": "rmadapter.support.machine",
    "write_json": "rmadapter.support.files",
    "write_text": "rmadapter.support.files",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
