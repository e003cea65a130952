"""Tokenizers by open_clip's configuration: what open_clip gives, a digest of all they depend on,
and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.tokenizer import load_tokenizer
from rmadapter.errors import UserError
from tests.helpers.models import write_bert

TEXTS = ["a photo of the cat.", "Red car", ""]
NAMED = {"context_length": 9, "hf_tokenizer_name": "x"}


@pytest.mark.parametrize(
    "more", [{}, {"tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True}}]
)
def test_it_is_open_clips(tmp_path: Path, more: dict[str, Any]) -> None:
    write_bert(tmp_path)
    for text, place in (({"context_length": 12}, None), ({**NAMED, **more}, tmp_path)):
        config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        plain = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
        assert torch.equal(load_tokenizer("x", text, place).split(TEXTS), plain)


def test_the_digest_follows_files_and_settings_and_not_the_place(tmp_path: Path) -> None:
    first = write_bert(tmp_path / "first")
    digest = load_tokenizer("x", NAMED, first).digest
    second = Path(shutil.copytree(first, tmp_path / "second"))
    (second / "README.md").write_text("not its business")
    assert load_tokenizer("another", NAMED, second).digest == digest
    changed = {load_tokenizer("x", {**NAMED, **more}, first).digest for more in (
        {"context_length": 8}, {"tokenizer_kwargs": {"clean": "lower"}},
        {"tokenizer_mode": "clips"},
    )}  # fmt: skip
    file = second / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat"', '"cot"'))
    changed |= {
        load_tokenizer("x", NAMED, second).digest,
        load_tokenizer("x", NAMED).digest,
        digest,
    }
    assert len(changed) == 6


def test_a_backbone_has_it(tiny_hf: Backbone, tiny_clip: Backbone, tmp_path: Path) -> None:
    assert tiny_hf.tokenizer_digest != tiny_clip.tokenizer_digest
    assert load_backbone(tiny_hf.name).tokenizer_digest == tiny_hf.tokenizer_digest
    assert (
        load_backbone("ViT-S-32-alt/none").tokenizer_digest
        == load_tokenizer("x", {"context_length": 77}).digest
    )


def test_no_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="backbone 'x': its tokenizer cannot be read"):
        load_tokenizer("x", NAMED, tmp_path)
