"""Labelled images and what the few-shot protocol does with them; independent of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmadapter.support.lazy import lazy_names

if TYPE_CHECKING:
    from rmadapter.data.archives import unpack_zip as unpack_zip
    from rmadapter.data.catalog.sets import CATALOG as CATALOG, check as check
    from rmadapter.data.decode import (
        decode_upload as decode_upload,
        image_error as image_error,
        image_formats as image_formats,
        load_image as load_image,
    )
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
    from rmadapter.data.texts import parse_texts as parse_texts
    from rmadapter.errors import is_text as is_text

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "rmadapter.data.archives": ["unpack_zip"],
        "rmadapter.data.catalog.sets": ["CATALOG", "check"],
        "rmadapter.data.decode": [
            "decode_upload",
            "image_error",
            "image_formats",
            "load_image",
        ],
        "rmadapter.data.formats.base": ["Row", "image_files"],
        "rmadapter.data.formats.imagefolder": ["write_imagefolder"],
        "rmadapter.data.formats.registry": [
            "check_unlabelled",
            "locate",
            "open_class_folders",
            "write_labels",
        ],
        "rmadapter.data.names": [
            "descriptions",
            "is_catch_all",
            "key",
            "prompt_names",
            "typed_name",
        ],
        "rmadapter.data.texts": ["parse_texts"],
        "rmadapter.errors": ["is_text"],
    },
)
