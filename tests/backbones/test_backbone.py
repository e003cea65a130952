"""A backbone: its digests, its device, its encoders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmadapter.backbones import Backbone, load_backbone
from tests.helpers.rounding import double

BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]


def test_digest_sees_one_bit_and_the_activation(tiny_clip: Backbone, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip.name, tmp_path / "model")
    assert load_backbone(str(folder)).digest == tiny_clip.digest
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace('"embed_dim"', '"quick_gelu": true, "embed_dim"'))
    assert load_backbone(str(folder)).digest != tiny_clip.digest
    shutil.copy(Path(tiny_clip.name) / config.name, config)
    weights = load_file(folder / "open_clip_model.safetensors")
    bias = weights["ln_final.bias"]
    bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))
    save_file(weights, folder / "open_clip_model.safetensors")
    assert load_backbone(str(folder)).digest != tiny_clip.digest


def test_digest_sees_the_number_format_and_not_the_name(tiny_clip: Backbone) -> None:
    again = replace(tiny_clip, name="another")
    assert again.digest == tiny_clip.digest
    assert double(tiny_clip).digest != tiny_clip.digest


@pytest.mark.parametrize(
    ("part", "value"),
    [("head_width", 32), ("pool_type", "avg"), ("norm_kwargs", {"eps": 0.01})],
    ids=str,
)
def test_settings_without_weights_change_the_structure(
    part: str, value: Any, tiny_clip: Backbone, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_clip.name, tmp_path / "model"))
    same = load_backbone(str(folder))
    assert (same.digest, same.structure) == (tiny_clip.digest, tiny_clip.structure)
    config = folder / "open_clip_config.json"
    content = json.loads(config.read_text())
    content["model_cfg"]["vision_cfg"][part] = value
    config.write_text(json.dumps(content))
    other = load_backbone(str(folder))
    image = torch.ones(1, 3, 32, 32)
    assert not torch.equal(other.model.encode_image(image), same.model.encode_image(image))  # type: ignore[operator]
    assert other.digest == same.digest
    assert other.structure != same.structure


@pytest.mark.parametrize("name", BACKBONES)
def test_sizes_scale_and_encoders_are_the_models(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    assert backbone.embedding_size == 40
    assert backbone.logit_scale == backbone.model.logit_scale.exp()
    assert backbone.image.visual is backbone.model.visual
    assert (backbone.image.side, backbone.text.side) == ("image", "text")
    assert backbone.image is backbone.image  # taken apart once
    assert replace(backbone).image is not backbone.image


def test_a_backbone_moves_its_model_and_returns_itself(tiny_clip: Backbone) -> None:
    backbone = double(tiny_clip)
    assert backbone.device == torch.device("cpu")
    assert backbone.to(torch.device("meta")) is backbone  # a device that every machine has
    assert backbone.device == torch.device("meta")
