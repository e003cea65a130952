"""Check the names of backbones before anything is loaded; open_clip, which takes seconds to import,
is not."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from rmadapter.backbones.pocket import POCKET
from rmadapter.backbones.trust import PICKLES, how_to_convert
from rmadapter.errors import UserError
from rmadapter.support.files import user_path

HF_HUB = "hf-hub:"  # before OWNER/NAME, for a backbone on the Hugging Face hub


def names_in(text: str) -> list[str]:
    """Return the backbones that a text names: a folder, or names separated by commas. Raises
    UserError for an empty name."""
    names = [text] if user_path(text).exists() else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"backbone {text!r}: separate names with single commas")
    return names


def check_name(name: str) -> None:
    """Raise UserError for a name that `load_backbone` cannot know: no folder, another form, an
    unknown architecture, or a missing or foreign file of weights."""
    if name == POCKET or name.startswith(HF_HUB) or user_path(name).is_dir():
        return
    if name.startswith(("/", ".", "~")) or "/" not in name:
        raise UserError(
            f"backbone {name!r} is neither a folder nor a name: write 'pocket', "
            "'ARCHITECTURE/TAG' as in 'ViT-B-16/openai', 'hf-hub:OWNER/NAME' or an existing "
            "folder"
        )
    architecture, _, tag = name.partition("/")
    known = _architectures()
    if known and architecture not in known:
        raise UserError(unknown_architecture(name, architecture, known))
    file = user_path(tag)
    if file.suffix in (".safetensors", *PICKLES):
        check_file(file, architecture)


def unknown_architecture(name: str, architecture: str, known: Iterable[str]) -> str:
    """Return a message with the nearest of the known architectures."""
    return (
        f"backbone {name!r}: open_clip has no architecture {architecture!r}; the nearest are "
        f"{nearest(architecture, known)}"
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the three known words that are most like a word."""
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))


def check_file(file: Path, architecture: str) -> None:
    """Raise UserError for a file of weights that is missing or not in safetensors."""
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
    return sorted(
        file.stem for place in places or () for file in Path(place, "model_configs").glob("*.json")
    )
