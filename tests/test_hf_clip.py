"""A Hugging Face CLIP folder: what transformers computes, its transform, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from rmadapter.backbones import load_backbone
from rmadapter.errors import UserError
from rounding import double

TEXT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 100}
TEXT |= {"max_position_embeddings": 16}
VISION = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
VISION |= {"image_size": 32, "patch_size": 8}


def write_clip(folder: Path, **both: Any) -> CLIPModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=TEXT | both, vision_config=VISION | both, projection_dim=40)).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("both", [{}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}], ids=["quick_gelu", "gelu"])
def test_computes_what_transformers_computes(both: dict[str, Any], tmp_path: Path) -> None:
    """In float64, where rounding cannot hide a difference."""
    reference = write_clip(tmp_path, **both).double()
    backbone = double(load_backbone(str(tmp_path)))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    tokens = backbone.tokenizer(["a photo of a cat.", "two dogs", "a text that is longer than the context of " * 3])
    with torch.inference_mode():
        image = reference.visual_projection(reference.vision_model(pixel_values=images).pooler_output)
        text = reference.text_projection(reference.text_model(input_ids=tokens).pooler_output)
        assert image.abs().mean() > 0.1
        assert text.abs().mean() > 0.1
        torch.testing.assert_close(backbone.model.encode_image(images), image, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(backbone.model.encode_text(tokens), text, rtol=1e-9, atol=1e-10)
    assert backbone.model.logit_scale == reference.logit_scale


def test_transform_comes_from_the_folder(tmp_path: Path) -> None:
    write_clip(tmp_path)
    values: dict[str, Any] = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**values, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}))
    backbone = load_backbone(str(tmp_path))
    assert (backbone.image_size, backbone.mean, backbone.std) == (32, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    pixels = np.asarray(image.resize((51, 32), Image.Resampling.BILINEAR).crop((10, 0, 42, 32))) / 255
    expected = torch.tensor((pixels - values["image_mean"]) / values["image_std"]).permute(2, 0, 1).float()
    torch.testing.assert_close(backbone.preprocess(image), expected)
    file.write_text(json.dumps({**values, "size": {"shortest_edge": 40}}))
    with pytest.raises(UserError, match=r"preprocessor_config.json: images are resized"):
        load_backbone(str(tmp_path))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no model folder"):
        load_backbone(str(tmp_path))
    config = tmp_path / "config.json"
    for values, told in [
        ({"model_type": "bert"}, "model type 'bert'"),
        ({"model_type": "clip", "text_config": {"vocab_size": 21128}}, "vocabulary of 21128"),
        ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "activations quick_gelu and relu"),
        ({"model_type": "clip", "text_config": TEXT, "vision_config": VISION}, "do not fit"),
    ]:
        config.write_text(json.dumps(values))
        with pytest.raises(UserError, match=told):
            load_backbone(str(tmp_path))
