"""Encoders without blocks: their features, the methods that need no more, and one sentence from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import CLIP_TEXT, SIZE, write_bert, write_model
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.explain.maps import trace
from rmadapter.method import NotApplicable
from rmadapter.methods import METHODS
from rmadapter.task import FEATURES_ALONE, TEXT_TOO
from shots import noisy_colors, pixels_of, shots_of
from test_methods import quick

IMAGES = noisy_colors(2)
RESNET = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None}
VIT = {"image_size": SIZE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
MT5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100, "pad_token_id": 0}
POOL = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
DECODER = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, "attn_pooler_heads": 2}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("resnet")
    return load_backbone(str(write_model(folder, {"vision_cfg": RESNET, "text_cfg": {**CLIP_TEXT, "layers": 2}})))


@pytest.fixture(scope="module")
def mt5(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    from transformers import MT5Config

    folder = write_bert(tmp_path_factory.mktemp("mt5"))
    MT5Config(**MT5).save_pretrained(folder / "text")
    text = {"hf_model_name": str(folder / "text"), "hf_tokenizer_name": "x", "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "context_length": 16}
    (folder / "config.json").unlink()
    return load_backbone(str(write_model(folder, {"vision_cfg": VIT, "text_cfg": text, "custom_text": True})))


@pytest.fixture(scope="module")
def coca(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    text = {**CLIP_TEXT, "width": 32, "heads": 2, "layers": 2, "embed_cls": True, "output_tokens": True}
    model = {"vision_cfg": VIT | POOL, "text_cfg": text, "multimodal_cfg": DECODER, "custom_text": True}
    return load_backbone(str(write_model(tmp_path_factory.mktemp("coca"), model)))


@pytest.fixture(params=["resnet", "mt5", "coca"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return request.getfixturevalue(request.param)


def test_features_are_the_models(backbone: Backbone) -> None:
    model: Any = backbone.model
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenizer(["a photo of the cat", "dog"])
    normalized = {"normalize": True}
    with torch.no_grad():
        image, text = model.encode_image(images, **normalized), model.encode_text(tokens, **normalized)
    for found, expected in ((backbone.image.frozen(images), image), (backbone.text.frozen(tokens), text)):
        assert expected.std() > 0.01
        torch.testing.assert_close(torch.nn.functional.normalize(found.features, dim=-1), expected)
        assert found.first is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("kind", "works", "side"),
    [
        ("resnet", (*FEATURES_ALONE, *TEXT_TOO), "image encoder, a ModifiedResNet,"),
        ("mt5", FEATURES_ALONE, "text encoder, a MT5Stack,"),
    ],
)
def test_a_method_works_or_names_those_that_do(
    name: str, kind: str, works: tuple[str, ...], side: str, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(kind)
    if name in works:
        fitted = quick(name).fit(backbone, shots_of(backbone, IMAGES))
        table = torch.cat(list(fitted.probabilities(IMAGES.images)))
        assert table.sum(1).allclose(torch.ones(len(IMAGES)))
        return
    with pytest.raises(UserError) as caught:
        quick(name).fit(backbone, shots_of(backbone, IMAGES))
    assert side in str(caught.value)
    assert str(caught.value).endswith(f"has none that are known; what works with it: {', '.join(works)}")


def test_no_map_of_what_it_attends_to(resnet: Backbone) -> None:
    fitted = quick("linear-probe").fit(resnet, shots_of(resnet, IMAGES))
    with pytest.raises(NotApplicable, match="do not show what they attend to"):
        trace(fitted, pixels_of(resnet, IMAGES, [0]))


def test_a_captioning_model_is_an_ordinary_one_for_them(coca: Backbone, tmp_path: Path) -> None:
    assert (coca.image.depth, coca.text.depth, coca.embedding_size) == (0, 0, 40)
    assert torch.cat(list(quick("linear-probe").fit(coca, shots_of(coca, IMAGES)).probabilities(IMAGES.images))).std()
