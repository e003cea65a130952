"""Names of backbones, checked as far as that needs no library that takes seconds to import."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rmadapter.backbones.packaged import POCKET_3, is_packaged, packaged_names
from rmadapter.backbones.trust import PICKLE_SUFFIXES, how_to_convert
from rmadapter.errors import UserError
from rmadapter.support.files import user_path

HF_HUB = "hf-hub:"  # before OWNER/NAME, for a backbone on the Hugging Face hub
TIMM = "timm:"  # before what `TimmName` reads, for an image encoder alone
AUTO = "auto"  # instead of a name, for those that are on this disk
# names for what a user wants, which stand for backbones whose licences allow commercial use
PRESETS = {
    "laptop": "ViT-B-32/datacomp_xl_s13b_b90k",
    "accuracy": "ViT-L-16-SigLIP2-256/webli",
    "phone": "PE-Core-S-16-384/meta",
}
# ends the message that the hub cannot be reached
INSTEAD = f", give a local file or folder, or use the backbone {POCKET_3!r}"
NO_WEIGHTS = "none"  # instead of a tag, for random weights
WEIGHTS_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


class TimmName(NamedTuple):
    """What a name such as `timm:NAME.TAG@224` says.

    Attributes:
        folder: Folder of the model, None for one that timm knows.
        architecture: timm's name of the architecture.
        tag: Published weights, `NO_WEIGHTS`, or a safetensors file.
        size: Side of the images, 0 for the model's own.
    """

    folder: Path | None
    architecture: str
    tag: str
    size: int

    @classmethod
    def of(cls, name: str) -> TimmName:
        """Split a name, with its prefix. Raises UserError for another form."""
        place, at, digits = name.removeprefix(TIMM).rpartition("@")
        if not (at and digits.isdecimal() and len(digits) <= 4):
            place, digits = name.removeprefix(TIMM), "0"
        folder, size = user_path(place), int(digits)
        if place and folder.is_dir():
            return cls(folder, "", "", size)
        if place.startswith(("/", ".", "~")):
            raise UserError(f"backbone {name!r}: {folder} is not a folder")
        architecture, slash, tag = place.partition("/")
        if not slash:
            architecture, _, tag = place.partition(".")
        return cls(None, architecture, tag, size)


def names_in(text: str) -> list[str]:
    """Return the backbones that a text names: a folder, or names separated by commas, of which
    those of `PRESETS` are resolved. Raises UserError for an empty name."""
    names = [text] if user_path(text).exists() else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"backbone {text!r}: separate names with single commas")
    return [full_name(name) for name in names]


def full_name(name: str) -> str:
    """Return the backbone that a name of `PRESETS` stands for; any other name, as it is."""
    return PRESETS.get(name, name)


def needs_hub(name: str) -> bool:
    """Return whether a backbone, whose name was checked, is fetched unless it is cached."""
    if name.startswith(HF_HUB):
        return True
    if user_path(name).is_dir() or is_packaged(name):
        return False
    tag = TimmName.of(name).tag if name.startswith(TIMM) else name.partition("/")[2]
    return tag not in ("", NO_WEIGHTS) and user_path(tag).suffix not in WEIGHTS_SUFFIXES


def joined(names: str | Sequence[str]) -> str:
    """Return one or several names as one text, as `names_in` reads it."""
    return names if isinstance(names, str) else ",".join(names)


def is_choice(text: str) -> bool:
    """Return whether a text names several backbones, or leaves them to `AUTO`. Raises as
    `names_in`."""
    names = names_in(text)
    return AUTO in names or len(names) > 1


def check_name(name: str) -> None:
    """Raise UserError for a name of no known form, an unknown architecture of open_clip, or a
    missing or foreign file of weights.

    Tags of weights and architectures of timm are checked when they are loaded.
    """
    name = full_name(name)
    if name.startswith(HF_HUB) or user_path(name).is_dir() or is_packaged(name):
        return
    if name.startswith(TIMM):
        parts = TimmName.of(name)
        if parts.folder is None and not parts.tag:
            raise UserError(
                f"backbone {name!r}: name its weights, too: {TIMM}NAME.TAG, as in "
                f"timm:vit_small_patch14_dinov2.lvd142m; {name + '/' + NO_WEIGHTS!r} has random "
                "weights"
            )
        _check_weights_file(parts.tag, parts.architecture)
        return
    if name.startswith(("/", ".", "~")) or "/" not in name:
        packages = "".join(f"{one!r}, " for one in (*packaged_names(), *PRESETS))
        raise UserError(
            f"backbone {name!r} is neither a folder nor a name: write {packages}"
            "'ARCHITECTURE/TAG' as in 'ViT-B-16/openai', 'hf-hub:OWNER/NAME', 'timm:NAME.TAG' or "
            "an existing folder"
        )
    architecture, _, tag = name.partition("/")
    check_architecture(name, architecture, _architectures())
    _check_weights_file(tag, architecture)


def check_architecture(name: str, architecture: str, known: Sequence[str]) -> None:
    """Raise UserError for an architecture that open_clip does not have.

    Args:
        name: Backbone, for the message.
        architecture: Its architecture.
        known: Those of open_clip; if empty, nothing is checked.
    """
    if known and architecture not in known:
        raise UserError(
            f"backbone {name!r}: open_clip has no architecture {architecture!r}; the nearest are "
            f"{nearest(architecture, known)}"
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the three known words that are most like a word."""
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))


def _check_weights_file(tag: str, architecture: str) -> None:
    """Raise UserError for a tag that names a file which is missing or not in safetensors."""
    file = user_path(tag)
    if file.suffix not in WEIGHTS_SUFFIXES:
        return
    if not file.is_file():
        raise UserError(f"{file}: no such weights file")
    if file.suffix != ".safetensors":
        raise UserError(
            f"{file}: weights must be safetensors; {how_to_convert(file, architecture)}"
        )


def _architectures() -> list[str]:
    """List open_clip's architectures by the files of its package, or nothing where these are
    elsewhere."""
    package = importlib.util.find_spec("open_clip")
    places = package.submodule_search_locations if package else None
    files = [file for place in places or () for file in Path(place).glob("model_configs/*.json")]
    return sorted(file.stem for file in files)
