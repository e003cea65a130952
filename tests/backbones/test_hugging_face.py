"""Folders of Hugging Face's transformers: features, transform, tokenizer, and what is refused.

The models are tiny and have random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file

from rmadapter.backbones import load_backbone
from rmadapter.errors import UserError
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.training.contract import Known
from tests.helpers.models import WORDS
from tests.helpers.passes import adapted, same_as_reference
from tests.helpers.rounding import double
from tests.helpers.slow import ci_except

LAYERS = {"num_hidden_layers": 3, "intermediate_size": 100}
TEXT = LAYERS | {"hidden_size": 48, "num_attention_heads": 3, "max_position_embeddings": 16}
VISION = LAYERS | {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
PAD, END = 0, 3
OWN = {"vocab_size": 40, "pad_token_id": PAD}
SIGLIP_TEXT = TEXT | OWN | {"projection_size": 64}
NAFLEX = {name: value for name, value in VISION.items() if name != "image_size"}
NAFLEX["num_patches"] = 16
# type in config.json -> name of its classes, text configuration, vision configuration
KINDS: dict[str, tuple[str, dict[str, int], dict[str, int]]] = {
    "clip": ("CLIP", TEXT, VISION),
    "metaclip_2": ("MetaClip2", TEXT | OWN | {"eos_token_id": END}, VISION),
    "chinese_clip": ("ChineseCLIP", TEXT | OWN, VISION),
    "siglip": ("Siglip", SIGLIP_TEXT, VISION),
    "siglip2": ("Siglip2", SIGLIP_TEXT, NAFLEX),
}
OTHER_GELU = {"hidden_act": "gelu", "layer_norm_eps": 1e-2}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
NAMES, TEMPLATE = ("cat", "dog", "small house " * 9), "a photo of the {}"  # one is cut


def write_model(folder: Path, kind: str, **both: Any) -> Any:
    """Write a model with its tokenizer; return it in float64. both: settings of both encoders."""
    name, text, vision = KINDS[kind]
    config: dict[str, Any] = {"text_config": text | both, "vision_config": vision | both}
    if not kind.startswith("siglip"):
        config["projection_dim"] = 40
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = getattr(transformers, f"{name}Config")(**config)
        model = getattr(transformers, f"{name}Model")(settings).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    if kind.startswith("siglip"):
        model.logit_scale.data += 3  # so that probabilities differ
    model.save_pretrained(folder)
    if kind == "siglip2":  # its tokenizer differs from BERT's; here of letters
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
        places = {word: i for i, word in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz"])}
        transformers.Siglip2Tokenizer(vocab=places, padding_side="right").save_pretrained(folder)
    elif kind != "clip":  # whose tokenizer is open_clip's
        (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return model.double()


def inputs(kind: str, images: torch.Tensor, tokens: torch.Tensor) -> dict[str, Any]:
    """Return arguments of the model's own forward pass, for images [B, 3, 32, 32] and padded tokens
    [C, L]."""
    arguments: dict[str, Any] = {"input_ids": tokens, "pixel_values": images}
    if kind == "chinese_clip":
        arguments["attention_mask"] = (tokens != PAD).long()
    if kind == "siglip2":  # patches from left to right, row by row, colours last
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1)
        patches = patches.flatten(3).flatten(1, 2)
        arguments["pixel_values"] = patches
        arguments["spatial_shapes"] = torch.full((len(images), 2), 4)
        arguments["pixel_attention_mask"] = torch.ones(patches.shape[:2], dtype=torch.long)
    return arguments


def edit_config(folder: Path, side: str, values: dict[str, Any]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {side: config[side] | values}))


@pytest.mark.parametrize("both", ci_except([{}, OTHER_GELU], {}), ids=["usual", "gelu"])
@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_transformers_computes(
    kind: str, both: dict[str, Any], tmp_path: Path
) -> None:
    """Features, and the probabilities of zero-shot, which are the softmax of the logits as they
    were trained; in float64, where rounding cannot hide a difference."""
    reference = write_model(tmp_path, kind, **both)
    backbone = double(load_backbone(str(tmp_path)))
    tokens = backbone.tokenizer([TEMPLATE.format(name) for name in NAMES])
    image, text = backbone.model.encode_image, backbone.model.encode_text
    with torch.no_grad():
        expected = reference(**inputs(kind, IMAGES, tokens))
        for features, truth in (
            (F.normalize(image(IMAGES), dim=-1), expected.image_embeds),
            (F.normalize(text(tokens), dim=-1), expected.text_embeds),
            (backbone.image.frozen(IMAGES).features, image(IMAGES)),
            (backbone.text.frozen(tokens).features, text(tokens)),
        ):
            assert features.std() > 0.01
            torch.testing.assert_close(features, truth, rtol=1e-8, atol=1e-9)
    fitted = ZeroShot().restore(backbone, Known(NAMES, (TEMPLATE,)), {})
    answers = fitted.answers({"it": fitted.score()}, IMAGES)["it"]
    probabilities = expected.logits_per_image.softmax(-1).float()
    torch.testing.assert_close(answers, probabilities, rtol=1e-4, atol=1e-6)
    assert answers.std() > 0.01
    if kind.startswith("siglip"):  # sigmoids need the bias
        logits = backbone.model.get_logits(IMAGES, tokens)[0]
        torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-5, atol=1e-6)
        assert backbone.model.logit_bias == reference.logit_bias


@pytest.mark.ci
@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}], ids=str)
def test_the_comparison_would_notice_another_config(change: dict[str, Any], tmp_path: Path) -> None:
    reference = write_model(tmp_path, "siglip")
    edit_config(tmp_path, "vision_config", change)
    backbone = double(load_backbone(str(tmp_path)))
    with torch.no_grad():
        expected = reference.get_image_features(IMAGES)
        expected = getattr(expected, "pooler_output", expected)
        assert (backbone.model.encode_image(IMAGES) - expected).abs().max() > 1e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clip"])
def test_the_lean_pass_equals_the_reference(kind: str, tmp_path: Path) -> None:
    write_model(tmp_path, kind)
    model = adapted(double(load_backbone(str(tmp_path))))
    assert same_as_reference(model, ("cat", "small dog"), count=2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "clip"])
def test_texts_are_split_as_transformers_does_to_full_length(kind: str, tmp_path: Path) -> None:
    write_model(tmp_path, kind)
    texts = ["a Cat", "dog " * 40, "bird"]
    tokens = load_backbone(str(tmp_path)).tokenizer(texts).tolist()
    own = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokens == own(texts, padding="max_length", max_length=16, truncation=True).input_ids
    assert len({tuple(row) for row in tokens}) == 3


def test_the_transform_comes_from_the_folder(tmp_path: Path) -> None:
    write_model(tmp_path, "clip")
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    values = {"image_mean": mean, "image_std": std, "resample": 2, "size": {"shortest_edge": 32}}
    values["crop_size"] = {"height": 32, "width": 32}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(values))
    backbone = load_backbone(str(tmp_path))
    assert (backbone.image_size, backbone.mean, backbone.std) == (32, (*mean,), (*std,))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    resized = image.resize((51, 32), Image.Resampling.BILINEAR).crop((10, 0, 42, 32))
    pixels = (np.asarray(resized) / 255 - mean) / std
    expected = torch.tensor(pixels).permute(2, 0, 1).float()
    torch.testing.assert_close(backbone.preprocess(image), expected)
    file.rename(tmp_path / "processor_config.json")
    # transformers 5 saves all processors of a model in one file
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    torch.testing.assert_close(load_backbone(str(tmp_path)).preprocess(image), expected)
    file.write_text(json.dumps({**values, "size": {"shortest_edge": 40}}))
    with pytest.raises(UserError, match=r"preprocessor_config.json: images are resized"):
        load_backbone(str(tmp_path))


def test_images_for_siglip_are_squeezed_into_a_square(tmp_path: Path) -> None:
    write_model(tmp_path, "siglip2")
    backbone = load_backbone(str(tmp_path))
    assert (backbone.image_size, backbone.mean, backbone.std) == (32, (0.5,) * 3, (0.5,) * 3)
    assert backbone.model.visual.preprocess_cfg["resize_mode"] == "squash"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (None, "not a model folder"),
        ({"model_type": "bert"}, "'bert'; supported Hugging Face types are clip, metaclip_2,"),
        ({"model_type": "align"}, "model type 'align'; its image encoder, an EfficientNet"),
        ({"model_type": ["clip"]}, "unsupported model type"),
        ({"model_type": "clip", "text_config": {"vocab_size": 21128}}, "vocabulary of 21128"),
        ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "quick_gelu and relu"),
        ({"model_type": "clip", "text_config": TEXT, "vision_config": VISION}, "do not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_folders_are_refused(
    config: dict[str, Any] | None, named: str, tmp_path: Path
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=named):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "side", "values", "named"),
    [
        (
            "siglip",
            "vision",
            {"hidden_act": "relu"},
            "relu; must be one of gelu, gelu_pytorch_tanh",
        ),
        ("siglip", "vision", {"vision_use_head": False}, "its image encoder has no head"),
        ("siglip2", "vision", {"num_patches": 15}, "15 patches do not make a square image"),
        ("siglip", "text", {"num_hidden_layers": 2}, "weights do not fit its config.json"),
    ],
)
def test_what_open_clip_cannot_compute_is_refused(
    kind: str, side: str, values: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_model(tmp_path, kind)
    edit_config(tmp_path, f"{side}_config", values)
    with pytest.raises(UserError, match=named):
        load_backbone(str(tmp_path))
