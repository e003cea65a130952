"""Import open_clip for a command without the libraries that only some of its models need.

timm and transformers are optional for open_clip, and take as long to import as open_clip itself.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rmadapter.support.files import JsonObject


class OptionalLibrary(NamedTuple):
    """A library that open_clip does without, if it is not installed.

    Attributes:
        part: Part of a model's configuration that can name a model of the library.
        field: Field of that part.
        module: open_clip's module that imports the library.
        encoder: Class of that module, which `open_clip.model` uses.
    """

    part: str
    field: str
    module: str
    encoder: str


OPTIONAL = {
    "timm": OptionalLibrary("vision_cfg", "timm_model_name", "open_clip.timm_model", "TimmModel"),
    "transformers": OptionalLibrary(
        "text_cfg", "hf_model_name", "open_clip.hf_model", "HFTextEncoder"
    ),
}


@contextmanager
def _absent(*libraries: str) -> Iterator[None]:
    """Let imports of libraries fail as if they were not installed, unless they are imported."""
    hidden = [name for name in libraries if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is documented
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules[name] is None:
                del sys.modules[name]


def import_for_command() -> None:
    """Import torch and open_clip, without the optional libraries and without searches for garbage.

    `import_needed` imports a library once a model needs it. Other code of this process that builds
    such a model with open_clip alone would be told to install the library, so only the command line
    calls this; for others, open_clip is imported as usual.
    """
    if "torch" in sys.modules:
        return
    gc.disable()  # the searches take a fifth of the time and find nothing
    try:
        with _absent(*OPTIONAL):
            import open_clip  # noqa: F401
        gc.freeze()
    finally:
        gc.enable()


def import_needed(config: JsonObject) -> None:
    """Import the optional libraries that a model needs, if `import_for_command` left them out.

    Args:
        config: Configuration of an open_clip model.
    """
    import open_clip

    for library, optional in OPTIONAL.items():
        part = config.get(optional.part)
        if not isinstance(part, dict) or not part.get(optional.field):
            continue
        module = importlib.import_module(optional.module)
        if getattr(module, library) is None:
            importlib.import_module(library)
            importlib.reload(module)
            setattr(open_clip.model, optional.encoder, getattr(module, optional.encoder))
