"""Zero-shot CLIP against open_clip's own encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbone import Backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods import load_method
from rmadapter.bench.methods.base import Training
from rmadapter.bench.methods.zero_shot import _text_features, text_features
from rmadapter.config import Config
from rmadapter.data.images import read_images
from rmadapter.errors import UserError


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("the {}.", "a small {}", "{}")])
def test_logits_are_open_clips(
    name: str, templates: tuple[str, ...], colors: Path, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    images = read_images(colors)["train"]
    activations = Activations(backbone, Config.make({"templates": templates, "device": "cpu"}))
    states = activations.states(images, progress=False).batch(torch.arange(5), torch.device("cpu"))
    names = ("cat", "a small red car", "dog")
    own = load_method("zero-shot").fit(backbone, Training(images, None, activations)).for_classes(names)(states)
    other = load_method("zero-shot", {"templates": list(templates)})
    plain = Activations(backbone, Config.make({"device": "cpu"}))
    assert torch.equal(other.fit(backbone, Training(images, None, plain)).for_classes(names)(states), own)
    if len(templates) == 1:
        other = load_method("zero-shot", {"templates": templates[0]})
        assert torch.equal(other.fit(backbone, Training(images, None, plain)).for_classes(names)(states), own)

    clip: Any = backbone.model
    with torch.no_grad():
        prompts = [backbone.tokenizer([t.format(n) for n in names]) for t in templates]
        each = torch.stack([F.normalize(clip.encode_text(tokens), dim=-1) for tokens in prompts])
        weights = F.normalize(each.mean(0), dim=-1)
        pictures = torch.stack([backbone.preprocess(load(images.images[i])) for i in range(5)])
        expected = clip.logit_scale.exp() * F.normalize(clip.encode_image(pictures), dim=-1) @ weights.T
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_class_features_are_computed_once_and_safe_from_those_who_use_them(tiny_clip: Backbone) -> None:
    first = text_features(tiny_clip, ["cat", "dog"], ["a {}."])
    kept = _text_features.cache_info()
    first.zero_()
    again = text_features(tiny_clip, ("cat", "dog"), ("a {}.",))
    assert _text_features.cache_info().misses == kept.misses
    torch.testing.assert_close(again.norm(dim=-1), torch.ones(2))
    assert not torch.equal(text_features(tiny_clip, ["dog", "cat"], ["a {}."]), again)


def load(path: object) -> object:
    from PIL import Image

    return Image.open(str(path)).convert("RGB")


def test_the_ensemble_has_seven_templates_and_can_be_given_others(tiny_clip: Backbone) -> None:
    method = load_method("zero-shot-ensemble")
    assert len({template.format("cat") for template in method.templates}) == 7
    assert method.parameters(tiny_clip) == 0
    assert load_method("zero-shot-ensemble", {"templates": ["{}"]}).templates == ("{}",)
    with pytest.raises(UserError, match="templates"):
        load_method("zero-shot-ensemble", {"template": "{}"})
