"""A folder of Hugging Face's transformers: its transform, its tokenizer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer

from rmadapter.backbones import load_backbone
from rmadapter.errors import UserError
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.training.contract import Known
from tests.helpers.hf_models import CLIP_TEXT, CLIP_VISION, KINDS, inputs, write_clip, write_hf
from tests.helpers.passes import adapted, same_as_reference
from tests.helpers.rounding import double


def test_transform_comes_from_the_folder(tmp_path: Path) -> None:
    write_clip(tmp_path)
    values: dict[str, Any] = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 2,
    }
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        json.dumps(
            {**values, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        )
    )
    backbone = load_backbone(str(tmp_path))
    assert (backbone.image_size, backbone.mean, backbone.std) == (
        32,
        (0.1, 0.2, 0.3),
        (0.5, 0.6, 0.7),
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    pixels = (
        np.asarray(image.resize((51, 32), Image.Resampling.BILINEAR).crop((10, 0, 42, 32))) / 255
    )
    expected = (
        torch.tensor((pixels - values["image_mean"]) / values["image_std"]).permute(2, 0, 1).float()
    )
    torch.testing.assert_close(backbone.preprocess(image), expected)
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(file.read_text())})
    )
    file.unlink()  # transformers 5 saves all processors of a model in one file
    torch.testing.assert_close(load_backbone(str(tmp_path)).preprocess(image), expected)
    file.write_text(json.dumps({**values, "size": {"shortest_edge": 40}}))
    with pytest.raises(UserError, match=r"preprocessor_config.json: images are resized"):
        load_backbone(str(tmp_path))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a model folder"):
        load_backbone(str(tmp_path))
    config = tmp_path / "config.json"
    for values, told in [
        (
            {"model_type": "bert"},
            "unsupported model type 'bert'; supported Hugging Face types are clip, metaclip_2,",
        ),
        ({"model_type": "align"}, "model type 'align'; its image encoder, an EfficientNet"),
        ({"model_type": ["clip"]}, "unsupported model type"),
        ({"model_type": "clip", "text_config": {"vocab_size": 21128}}, "vocabulary of 21128"),
        (
            {"model_type": "clip", "text_config": {"hidden_act": "relu"}},
            "activations quick_gelu and relu",
        ),
        (
            {"model_type": "clip", "text_config": CLIP_TEXT, "vision_config": CLIP_VISION},
            "do not fit",
        ),
    ]:
        config.write_text(json.dumps(values))
        with pytest.raises(UserError, match=told):
            load_backbone(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    """Features, and the probabilities of zero-shot, which are the softmax of the logits as they
    were trained."""
    reference = write_hf(tmp_path, kind)
    backbone = double(load_backbone(str(tmp_path)))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    names, template = ("cat", "dog", "small house"), "a photo of the {}"
    tokens = backbone.tokenizer([template.format(name) for name in names])
    with torch.no_grad():
        expected = reference(**inputs(kind, images, tokens))
        for found, truth in (
            (F.normalize(backbone.model.encode_image(images), dim=-1), expected.image_embeds),
            (F.normalize(backbone.model.encode_text(tokens), dim=-1), expected.text_embeds),
            (backbone.image.frozen(images).features, backbone.model.encode_image(images)),
            (backbone.text.frozen(tokens).features, backbone.model.encode_text(tokens)),
        ):
            assert found.std() > 0.01
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
    fitted = ZeroShot().restore(backbone, Known(names, (template,)), {})
    answers = fitted.answers({"it": fitted.score()}, images)["it"]
    torch.testing.assert_close(
        answers, expected.logits_per_image.softmax(-1).float(), rtol=1e-4, atol=1e-6
    )
    assert answers.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_lean_pass_is_the_reference_on_them(kind: str, tmp_path: Path) -> None:
    write_hf(tmp_path, kind)
    assert same_as_reference(
        adapted(double(load_backbone(str(tmp_path)))), ("cat", "small dog"), count=2
    )


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_split_as_transformers_does_to_full_length(kind: str, tmp_path: Path) -> None:
    write_hf(tmp_path, kind)
    texts = ["a Cat", "dog " * 40, "bird"]
    tokens = load_backbone(str(tmp_path)).tokenizer(texts)
    own = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        tokens.tolist()
        == own(texts, padding="max_length", max_length=16, truncation=True).input_ids
    )
    assert len({tuple(row) for row in tokens.tolist()}) == 3
