"""A Hugging Face CLIP folder: what transformers computes, its transform, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from rmadapter.backbones import load_backbone
from tests.helpers.rounding import double

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 100,
}
TEXT |= {"max_position_embeddings": 16}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
VISION |= {"image_size": 32, "patch_size": 8}


def write_clip(folder: Path, **both: Any) -> CLIPModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(text_config=TEXT | both, vision_config=VISION | both, projection_dim=40)
        ).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "both", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}], ids=["quick_gelu", "gelu"]
)
def test_computes_what_transformers_computes(both: dict[str, Any], tmp_path: Path) -> None:
    """In float64, where rounding cannot hide a difference."""
    reference = write_clip(tmp_path, **both).double()
    backbone = double(load_backbone(str(tmp_path)))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    tokens = backbone.tokenizer(
        ["a photo of a cat.", "two dogs", "a text that is longer than the context of " * 3]
    )
    with torch.inference_mode():
        image = reference.visual_projection(
            reference.vision_model(pixel_values=images).pooler_output
        )
        text = reference.text_projection(reference.text_model(input_ids=tokens).pooler_output)
        assert image.abs().mean() > 0.1
        assert text.abs().mean() > 0.1
        torch.testing.assert_close(
            backbone.model.encode_image(images), image, rtol=1e-9, atol=1e-10
        )
        torch.testing.assert_close(backbone.model.encode_text(tokens), text, rtol=1e-9, atol=1e-10)
    assert backbone.model.logit_scale == reference.logit_scale
