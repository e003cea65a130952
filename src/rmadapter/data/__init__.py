"""Labelled images and what the few-shot protocol does with them; independent of models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmadapter.data.archives import unpack_zip as unpack_zip
    from rmadapter.data.catalog.sets import CATALOG as CATALOG, ELEVEN as ELEVEN, check as check
    from rmadapter.data.decode import (
        decode_upload as decode_upload,
        image_error as image_error,
        load_image as load_image,
    )
    from rmadapter.data.fewshot import split_digest as split_digest
    from rmadapter.data.formats.base import Row as Row, image_files as image_files
    from rmadapter.data.formats.imagefolder import write_imagefolder as write_imagefolder
    from rmadapter.data.formats.registry import (
        check_unlabelled as check_unlabelled,
        locate as locate,
        open_class_folders as open_class_folders,
        write_labels as write_labels,
    )
    from rmadapter.data.names import (
        descriptions as descriptions,
        is_catch_all as is_catch_all,
        key as key,
        prompt_names as prompt_names,
        typed_name as typed_name,
    )
    from rmadapter.data.texts import parse_texts as parse_texts, texts_of_all as texts_of_all
    from rmadapter.errors import is_text as is_text

# Imported on first use, so that the command line does not import torch.
_HOME_OF = {
    "CATALOG": "rmadapter.data.catalog.sets",
    "ELEVEN": "rmadapter.data.catalog.sets",
    "Row": "rmadapter.data.formats.base",
    "check": "rmadapter.data.catalog.sets",
    "check_unlabelled": "rmadapter.data.formats.registry",
    "decode_upload": "rmadapter.data.decode",
    "descriptions": "rmadapter.data.names",
    "image_error": "rmadapter.data.decode",
    "image_files": "rmadapter.data.formats.base",
    "is_catch_all": "rmadapter.data.names",
    "is_text": "rmadapter.errors",
    "key": "rmadapter.data.names",
    "load_image": "rmadapter.data.decode",
    "locate": "rmadapter.data.formats.registry",
    "open_class_folders": "rmadapter.data.formats.registry",
    "parse_texts": "rmadapter.data.texts",
    "prompt_names": "rmadapter.data.names",
    "split_digest": "rmadapter.data.fewshot",
    "texts_of_all": "rmadapter.data.texts",
    "typed_name": "rmadapter.data.names",
    "unpack_zip": "rmadapter.data.archives",
    "write_imagefolder": "rmadapter.data.formats.imagefolder",
    "write_labels": "rmadapter.data.formats.registry",
}
__all__ = [*_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
