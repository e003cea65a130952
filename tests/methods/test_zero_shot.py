"""Zero-shot CLIP against open_clip's own encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.zero_shot import ZeroShot
from tests.helpers.shots import logits_of, pixels_of, shots_of

NAMES = ("cat", "a small red car", "dog")


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_hf"])
@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("the {}.", "a small {}", "{}")])
def test_logits_are_open_clips(
    name: str, templates: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    shots, plain = shots_of(backbone, templates=templates), shots_of(backbone)
    own = logits_of(load_method("zero-shot").fit(backbone, shots), shots, NAMES)
    other = load_method("zero-shot", {"templates": list(templates)})
    assert torch.equal(logits_of(other.fit(backbone, plain), plain, NAMES), own)
    if len(templates) == 1:
        other = load_method("zero-shot", {"templates": templates[0]})
        assert torch.equal(logits_of(other.fit(backbone, plain), plain, NAMES), own)

    clip: Any = backbone.model
    with torch.no_grad():
        prompts = [backbone.tokenizer([t.format(n) for n in NAMES]) for t in templates]
        each = torch.stack([F.normalize(clip.encode_text(tokens), dim=-1) for tokens in prompts])
        weights = F.normalize(each.mean(0), dim=-1)
        images = pixels_of(backbone, shots.images)
        expected = (
            clip.logit_scale.exp() * F.normalize(clip.encode_image(images), dim=-1) @ weights.T
        )
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_restored_models_keep_their_templates(tiny_clip: Backbone) -> None:
    """Nothing is saved of it but what it was asked with: the run's templates, unless it has its
    own."""
    shots = shots_of(tiny_clip, templates=("the {}",))
    for method in (ZeroShot(), ZeroShot(templates=("a small {}",))):
        fitted = method.fit(tiny_clip, shots)
        assert (fitted.tensors, fitted.first, fitted.known.templates) == ({}, None, ("the {}",))
        again = method.restore(tiny_clip, fitted.known, fitted.tensors)
        assert torch.equal(logits_of(again, shots, NAMES), logits_of(fitted, shots, NAMES))


def test_the_ensemble_has_seven_templates_and_can_be_given_others(tiny_clip: Backbone) -> None:
    method: Any = load_method("zero-shot-ensemble")
    assert len({template.format("cat") for template in method.templates}) == 7
    assert method.parameters(tiny_clip) == (0, 0)
    other: Any = load_method("zero-shot-ensemble", {"templates": ["{}"]})
    assert other.templates == ("{}",)
    with pytest.raises(UserError, match="templates"):
        load_method("zero-shot-ensemble", {"template": "{}"})
