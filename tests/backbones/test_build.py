"""Models by configuration: the right activation, weights that fit, and positions that open_clip
stretches."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from rmadapter.backbones import Backbone
from rmadapter.backbones.build import build_model, load_weights
from rmadapter.backbones.load import _published
from rmadapter.errors import UserError


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
