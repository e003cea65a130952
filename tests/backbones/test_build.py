"""Models by configuration: the right activation, weights that fit, and positions that open_clip
stretches."""

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
from rmadapter.backbones.load import _published
from rmadapter.errors import UserError
from tests.helpers.models import write_bert


@pytest.mark.parametrize(
    "name",
    ["ViT-B-16/openai", "ViT-B-16/dfn2b", "ViT-B-32/metaclip_400m", "ViT-B-16-quickgelu/openai"],
)
def test_weights_trained_with_quick_gelu_get_it(name: str) -> None:
    architecture, tag = name.split("/")
    record = _published(architecture, tag, [tag])
    model = build_model(
        name, architecture, draw=False, quick_gelu=record["quick_gelu"], transform=record
    )
    activations = [module for module in model.modules() if "GELU" in type(module).__name__]
    assert len(activations) == 24  # one a block, 12 blocks a tower
    assert all(isinstance(module, QuickGELU) for module in activations)


def test_weights_trained_with_gelu_keep_it() -> None:
    assert not _published("ViT-B-16", "laion2b_s34b_b88k", []).get("quick_gelu")
    model = build_model("x", "ViT-B-16", draw=False)
    assert not any(isinstance(module, QuickGELU) for module in model.modules())


def test_a_model_of_sounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="backbone 'x': it takes no images"):
        build_model("x", "ViT-B-16", draw=False)


def test_positions_of_another_image_size_are_stretched_unless_they_must_be_exact(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    file, name = tmp_path / "a.safetensors", "visual.positional_embedding"
    state = tiny_clip.model.state_dict()
    save_file({**state, name: state[name][:10].clone()}, file)  # a class token and 3 x 3 patches
    model = build_model("x", f"local-dir:{tiny_clip.name}", draw=False)
    load_weights("x", model, file)
    assert model.state_dict()[name].shape == state[name].shape
    with pytest.raises(
        UserError, match=r"they hold visual.positional_embedding \[10, 64\] instead of \[17, 64\]"
    ):
        load_weights("x", model, file, exact=True)
    save_file({name: tensor for name, tensor in state.items() if "resblocks.1" not in name}, file)
    with pytest.raises(
        UserError, match=r"they lack visual\.transformer\.resblocks\.1\.[\w.]+, .+ and 21 more"
    ):
        load_weights("x", model, file)


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
