"""What a run leaves on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.artifacts.checkpoint import Saved as Saved
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

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.artifacts.checkpoint": ["Saved"],
        "rmadapter.artifacts.model_file": ["read_model"],
        "rmadapter.artifacts.page": ["small_jpeg", "thumbnail", "thumbnails_of"],
        "rmadapter.artifacts.predictions": ["Predictions", "read_predictions"],
        "rmadapter.artifacts.record": ["read_record"],
        "rmadapter.artifacts.run_folder": ["RunFolder", "find_run"],
        "rmadapter.artifacts.summary": ["describe_tie"],
        "rmadapter.support.files": ["atomic", "read_json", "read_text", "write_json", "write_text"],
        "rmadapter.support.html": ["template"],
        "rmadapter.support.locks": ["exclusive"],
        "rmadapter.support.machine": ["version_of"],
    },
)
