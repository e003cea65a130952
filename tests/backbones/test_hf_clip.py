"""A Hugging Face CLIP folder: what transformers computes, its transform, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.backbones import load_backbone
from tests.helpers.hf_models import write_clip
from tests.helpers.rounding import double


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
