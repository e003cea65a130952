"""Check the names of backbones before anything is loaded; open_clip, which takes seconds to import,
is not."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from rmadapter.backbones.packaged import is_packaged, packaged_names
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
    unknown architecture or tag, or a missing or foreign file of weights."""
    if name.startswith(HF_HUB) or user_path(name).is_dir() or is_packaged(name):
        return
    if name.startswith(("/", ".", "~")) or "/" not in name:
        packages = "".join(f"{one!r}, " for one in packaged_names())
        raise UserError(
            f"backbone {name!r} is neither a folder nor a name: write {packages}"
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
    elif tag != "none" and (tags := _tags(architecture)) and cleaned(tag) not in tags:
        raise UserError(unknown_tag(architecture, tag, tags))


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
