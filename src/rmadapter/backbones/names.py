"""Check the names of backbones before anything is loaded; open_clip, which takes seconds to import,
is not."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rmadapter.backbones.packaged import is_packaged, packaged_names
from rmadapter.backbones.trust import PICKLES, how_to_convert
from rmadapter.errors import UserError
from rmadapter.support.files import user_path

HF_HUB = "hf-hub:"  # before OWNER/NAME, for a backbone on the Hugging Face hub
TIMM = "timm:"  # before what `TimmName` reads, for an image encoder alone
AUTO = "auto"  # instead of a name, for those that are on this disk
NO_WEIGHTS = "none"  # instead of a tag, for random weights


class TimmName(NamedTuple):
    """What a name such as `timm:NAME.TAG@224` says.

    folder: of the model, None for one that timm knows. architecture: timm's name of it. tag: of
    published weights, `NO_WEIGHTS`, or a safetensors file. size: side of the images, 0 for the
    model's own.
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
    """Return the backbones that a text names: a folder, or names separated by commas. Raises
    UserError for an empty name."""
    names = [text] if user_path(text).exists() else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"backbone {text!r}: separate names with single commas")
    return names


def joined(names: str | Sequence[str]) -> str:
    """Return one or several names as one text, as `names_in` reads it."""
    return names if isinstance(names, str) else ",".join(names)


def is_choice(text: str) -> bool:
    """Return whether a text names several backbones, or leaves them to `AUTO`. Raises as
    `names_in`."""
    names = names_in(text)
    return AUTO in names or len(names) > 1


def check_name(name: str) -> None:
    """Raise UserError for a name that `load_backbone` cannot know: no folder, another form, an
    unknown architecture or tag, or a missing or foreign file of weights."""
    if name.startswith(HF_HUB) or user_path(name).is_dir() or is_packaged(name):
        return
    if name.startswith(TIMM):
        check_timm(name, TimmName.of(name), _timm_architectures())
        return
    if name.startswith(("/", ".", "~")) or "/" not in name:
        packages = "".join(f"{one!r}, " for one in packaged_names())
        raise UserError(
            f"backbone {name!r} is neither a folder nor a name: write {packages}"
            "'ARCHITECTURE/TAG' as in 'ViT-B-16/openai', 'hf-hub:OWNER/NAME', 'timm:NAME.TAG' or "
            "an existing folder"
        )
    architecture, _, tag = name.partition("/")
    known = _architectures()
    if known and architecture not in known:
        raise UserError(unknown_architecture(name, architecture, known))
    file = user_path(tag)
    if file.suffix in (".safetensors", *PICKLES):
        check_file(file, architecture)
    elif tag != "none" and (tags := _tags(architecture)) and cleaned(tag) not in tags:
        raise UserError(unknown_tag(architecture, tag, tags))


def check_timm(name: str, parts: TimmName, known: Iterable[str]) -> None:
    """Raise UserError for a name without weights, with a file of weights that is missing or
    foreign, or of an architecture that is not among the known ones, if any are."""
    if parts.folder:
        return
    architectures = [*known]
    if architectures and parts.architecture not in architectures:
        raise UserError(
            f"backbone {name!r}: timm has no model {parts.architecture!r}; the nearest are "
            f"{nearest(parts.architecture, architectures)}"
        )
    file = user_path(parts.tag)
    if file.suffix in (".safetensors", *PICKLES):
        check_file(file, parts.architecture)
    elif not parts.tag:
        raise UserError(
            f"backbone {name!r}: name its weights, too: {TIMM}NAME.TAG, as in "
            f"timm:vit_small_patch14_dinov2.lvd142m; {name + '/' + NO_WEIGHTS!r} has random weights"
        )


def unknown_architecture(name: str, architecture: str, known: Iterable[str]) -> str:
    """Return a message with the nearest of the known architectures."""
    return (
        f"backbone {name!r}: open_clip has no architecture {architecture!r}; the nearest are "
        f"{nearest(architecture, known)}"
    )


def unknown_tag(architecture: str, tag: str, tags: Iterable[str]) -> str:
    """Return a message with the nearest of the tags of published weights."""
    near = nearest(tag, tags)
    hint = f"the nearest are {near}" if near else "it has none"
    return (
        f"open_clip has no published weights {tag!r} for {architecture!r}; {hint}; "
        f"{architecture + '/none'!r} has random weights"
    )


def cleaned(tag: str) -> str:
    """Return a tag as open_clip's table has it."""
    return tag.lower().replace("-", "_")


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
    return sorted(
        file.stem for place in _places() for file in Path(place, "model_configs").glob("*.json")
    )


def _timm_architectures() -> list[str]:
    """List the models that the source of the installed timm defines, which is not imported."""
    package = importlib.util.find_spec("timm")
    places = package.submodule_search_locations if package else None
    files = [file for place in places or () for file in Path(place, "models").glob("*.py")]
    texts = [file.read_text(encoding="utf-8") for file in files]
    pattern = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
    return sorted({name for text in texts for name in pattern.findall(text)})


def _tags(architecture: str) -> list[str]:
    """List the tags of an architecture's published weights, as the source of the installed
    open_clip has them, which is parsed and not run; nothing where it has another form."""
    tables: dict[str, ast.expr] = {}
    with contextlib.suppress(OSError, SyntaxError, ValueError, IndexError):
        source = Path(_places()[0], "pretrained.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                tables[node.targets[0].id] = node.value
    # the table of -quickgelu is made of the plain one's
    of_architecture = _entries(tables.get("_PRETRAINED"))
    table = of_architecture.get(architecture.removesuffix("-quickgelu"))
    own = of_architecture.get(architecture)
    parts = [tables.get(one.id) if isinstance(one, ast.Name) else one for one in (table, own)]
    return sorted({tag for part in parts for tag in _entries(part)})


def _entries(node: ast.expr | None) -> dict[str, ast.expr]:
    """Return the entries of a dictionary in source: {"a": ...} or dict(a=...)."""
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(key.value): each for key, each in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call):
        return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return {}


def _places() -> list[str]:
    package = importlib.util.find_spec("open_clip")
    return [*(package.submodule_search_locations or ())] if package else []
