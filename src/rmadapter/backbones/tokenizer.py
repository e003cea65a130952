"""Load a model's tokenizer from a checked folder, with a digest of all that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rmadapter.backbones.trust import check_folder
from rmadapter.errors import UserError

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


class Tokenizer(NamedTuple):
    """A function of N texts -> long [N, context length], and the SHA-256 in hex of its files and
    settings."""

    split: Callable[[list[str]], torch.Tensor]
    digest: str


def files_of(place: Path) -> list[Path]:
    """Return the files of a Hugging Face tokenizer in a folder."""
    return sorted(file for file in place.iterdir() if file.name in FILES or file.suffix == ".model")


@cache
def _of_clip(settings: str) -> Any:
    """Load CLIP's tokenizer with settings in JSON, once; its vocabulary takes long to read."""
    import open_clip

    return open_clip.SimpleTokenizer(**json.loads(settings))


def load_tokenizer(name: str, text: Mapping[str, Any], place: Path | None = None) -> Tokenizer:
    """Load the tokenizer of open_clip's `text_cfg`: CLIP's, or a Hugging Face one with its files in
    `place`.

    Raises UserError if it cannot be read, or if `place` holds or asks for code.
    """
    import open_clip

    settings = {"context_length": text.get("context_length") or 77}
    settings |= text.get("tokenizer_kwargs") or {}
    files: list[Path] = []
    try:
        if place is None:
            split: Any = _of_clip(json.dumps(settings))
        else:
            check_folder(place, pickles=False)
            files = files_of(place)
            settings["tokenizer_mode"] = text.get("tokenizer_mode")
            split = open_clip.tokenizer.HFTokenizer(str(place), **settings, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"backbone {name!r}: its tokenizer cannot be read: {reason}") from error
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        content = file.read_bytes()
        sha.update(f"{file.name} {len(content)} ".encode() + content)
    return Tokenizer(split, sha.hexdigest())
