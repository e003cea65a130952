"""What is SigLIP's own: its bias, its two activations, images of a fixed size, and what is
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from tests.helpers.hf_models import inputs, write_hf
from tests.helpers.rounding import double

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def logits(backbone: Backbone, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model.get_logits(IMAGES, tokens)[0]


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
@pytest.mark.parametrize(
    "both", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-2}], ids=["tanh", "gelu"]
)
def test_logits_have_the_bias_that_sigmoids_need(
    kind: str, both: dict[str, Any], tmp_path: Path
) -> None:
    reference = write_hf(tmp_path, kind, **both)
    backbone = double(load_backbone(str(tmp_path)))
    tokens = backbone.tokenizer(["a cat", "dog", "a bird"])
    with torch.no_grad():
        expected = reference(**inputs(kind, IMAGES, tokens)).logits_per_image
    torch.testing.assert_close(logits(backbone, tokens), expected, rtol=1e-5, atol=1e-6)
    assert backbone.model.logit_bias == reference.logit_bias


def test_a_small_difference_in_the_config_would_be_seen(tmp_path: Path) -> None:
    """So that the comparison above can fail: another activation, and another epsilon."""
    reference = write_hf(tmp_path, "siglip")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for name, value in {"hidden_act": "gelu", "layer_norm_eps": 1e-3}.items():
        changed = json.loads(json.dumps(config))
        changed["vision_config"][name] = value
        file.write_text(json.dumps(changed))
        backbone = double(load_backbone(str(tmp_path)))
        tokens = backbone.tokenizer(["a cat", "dog"])
        with torch.no_grad():
            expected = reference(**inputs("siglip", IMAGES, tokens)).logits_per_image
        assert (logits(backbone, tokens) - expected).abs().max() > 1e-5


def test_images_are_squeezed_into_a_square(tmp_path: Path) -> None:
    write_hf(tmp_path, "siglip2")
    backbone = load_backbone(str(tmp_path))
    assert (backbone.image_size, backbone.mean, backbone.std) == (32, (0.5,) * 3, (0.5,) * 3)
    assert backbone.model.visual.preprocess_cfg["resize_mode"] == "squash"


@pytest.mark.parametrize(
    ("kind", "side", "values", "told"),
    [
        (
            "siglip",
            "vision_config",
            {"hidden_act": "relu"},
            "activation relu; must be one of gelu, gelu_pytorch_tanh",
        ),
        ("siglip", "vision_config", {"vision_use_head": False}, "its image encoder has no head"),
        ("siglip2", "vision_config", {"num_patches": 15}, "15 patches do not make a square image"),
        (
            "siglip",
            "text_config",
            {"num_hidden_layers": 2},
            "the weights do not fit its config.json",
        ),
    ],
)
def test_what_open_clip_cannot_compute_is_refused(
    tmp_path: Path, kind: str, side: str, values: dict[str, Any], told: str
) -> None:
    write_hf(tmp_path, kind)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config[side] |= values
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        load_backbone(str(tmp_path))
