"""Models and tokenizers by open_clip's configuration, and weights that fit or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.build import build_model, load_tokenizer, load_weights
from rmadapter.backbones.load import published_config
from rmadapter.errors import UserError
from tests.helpers.models import write_bert


@pytest.mark.parametrize(
    "name",
    ["ViT-B-16/openai", "ViT-B-16/dfn2b", "ViT-B-32/metaclip_400m", "ViT-B-16-quickgelu/openai"],
)
def test_weights_trained_with_quick_gelu_get_it(name: str) -> None:
    architecture, tag = name.split("/")
    record = published_config(architecture, tag, [tag])
    model = build_model(
        name, architecture, draw=False, quick_gelu=record["quick_gelu"], transform=record
    )
    activations = [module for module in model.modules() if "GELU" in type(module).__name__]
    assert len(activations) == 24  # one a block, 12 blocks a tower
    assert all(isinstance(module, QuickGELU) for module in activations)


def test_weights_trained_with_gelu_keep_it() -> None:
    assert not published_config("ViT-B-16", "laion2b_s34b_b88k", []).get("quick_gelu")
    model = build_model("x", "ViT-B-16", draw=False)
    assert not any(isinstance(module, QuickGELU) for module in model.modules())


def test_a_model_without_an_image_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="backbone 'x': it takes no images"):
        build_model("x", "ViT-B-16", draw=False)


def test_positions_of_another_image_size_are_resized_unless_exact(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    file, name = tmp_path / "a.safetensors", "visual.positional_embedding"
    state = tiny_clip.model.state_dict()
    save_file({**state, name: state[name][:10].clone()}, file)  # a class token and 3 x 3 patches
    model = build_model("x", f"local-dir:{tiny_clip.name}", draw=False)
    load_weights("x", model, file)
    assert model.state_dict()[name].shape == state[name].shape
    with pytest.raises(UserError, match=r"positional_embedding \[10, 64\] instead of \[17, 64\]"):
        load_weights("x", model, file, exact=True)


TEXTS = ["a photo of the cat.", "Red car", ""]
NAMED = {"context_length": 9, "hf_tokenizer_name": "x"}


@pytest.mark.parametrize(
    "more", [{}, {"tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True}}]
)
def test_the_tokenizer_splits_as_open_clips_does(tmp_path: Path, more: dict[str, Any]) -> None:
    write_bert(tmp_path)
    for text, place in (({"context_length": 12}, None), ({**NAMED, **more}, tmp_path)):
        config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        plain = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
        assert torch.equal(load_tokenizer("x", text, place).split(TEXTS), plain)


def test_the_tokenizer_digest_follows_files_and_settings_but_not_the_folder(tmp_path: Path) -> None:
    first = write_bert(tmp_path / "first")
    digests = {load_tokenizer("x", NAMED, first).digest}
    second = Path(shutil.copytree(first, tmp_path / "second"))
    (second / "README.md").write_text("not of the tokenizer")
    digests.add(load_tokenizer("another", NAMED, second).digest)
    assert len(digests) == 1
    cleaned = {"tokenizer_kwargs": {"clean": "lower"}}
    for more in ({"context_length": 8}, cleaned, {"tokenizer_mode": "clips"}):
        digests.add(load_tokenizer("x", {**NAMED, **more}, first).digest)
    file = second / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat"', '"cot"'))
    digests.add(load_tokenizer("x", NAMED, second).digest)
    digests.add(load_tokenizer("x", NAMED).digest)
    assert len(digests) == 6


def test_a_backbone_knows_the_digest_of_its_tokenizer(
    tiny_hf: Backbone, tiny_clip: Backbone
) -> None:
    assert tiny_hf.tokenizer_digest != tiny_clip.tokenizer_digest
    assert load_backbone(tiny_hf.name).tokenizer_digest == tiny_hf.tokenizer_digest
    clip = load_tokenizer("x", {"context_length": 77})
    assert load_backbone("ViT-S-32-alt/none").tokenizer_digest == clip.digest


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="backbone 'x': its tokenizer cannot be read"):
        load_tokenizer("x", NAMED, tmp_path)
