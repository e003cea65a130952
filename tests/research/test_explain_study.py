"""explain_study.py: heat maps and the curves that judge them, against hand calculations; the
differentiable pass computes the method's own logits."""

from __future__ import annotations

from typing import Any

import explain_study
import pytest
import torch
from explain_study import CANDIDATES, NotApplicable, Trace, covered, occlusion, probabilities, trace
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods import load_method
from rmadapter.training.contract import Fitted
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import noise_images, noisy_colors, pixels_of, shots_of

QUICK: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "linear-probe": {"search_steps": 0},
    "rmadapter": {"epochs": 1, "batch_size": 4, "first_block": 3, "rank": 4},
    "maple": {"epochs": 1, "batch_size": 4, "n_ctx": 2},
}


def fitted_by(name: str, backbone: Backbone) -> Fitted:
    return load_method(name, QUICK.get(name)).fit(backbone, shots_of(backbone, noisy_colors(2)))


# Scores


def line(data: str, first: list[float], random: list[float], row: int = 0) -> dict[str, Any]:
    scores = dict.fromkeys(explain_study.NAMES, random) | {"Grad-CAM": first}
    return {"data": data, "method": "m", "row": row, "right": True, "scores": scores}


def test_curves_are_means_over_shares_of_shown_and_covered_patches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a model whose probability is the share of the image's weight that is shown."""
    weight = torch.tensor([[0.7, 0.1], [0.1, 0.1]])

    def shares(fitted: Any, pixels: Tensor) -> Tensor:
        return (pixels[:, 0] * weight).sum((1, 2))[:, None]

    monkeypatch.setattr(explain_study, "probabilities", shares)
    monkeypatch.setattr(explain_study, "SHARES", (0.25, 0.5))
    fitted: Any = None
    best, worst = (
        explain_study.curves(fitted, torch.ones(3, 2, 2), 0, torch.tensor(order), 2)
        for order in ([0, 1, 2, 3], [3, 2, 1, 0])
    )
    assert best == pytest.approx([0.75, 0.25])  # shown alone: 0.7, 0.8; covered: 0.3, 0.2 remain
    assert worst == pytest.approx([0.15, 0.85])


def test_a_map_is_ahead_by_its_mean_difference_of_insertion_and_deletion() -> None:
    lines = [line(data, [0.8, 0.2], [0.5, 0.5], row) for data in "xyz" for row in (0, 1)]
    assert explain_study.mean(lines, "x", "m", "Grad-CAM") == pytest.approx((0.8, 0.2, 0.6))
    assert explain_study.ahead(lines, "m", "Grad-CAM", "random") == pytest.approx([0.6] * 3)


# The differentiable pass


@pytest.mark.parametrize("name", QUICK)
def test_the_pass_has_the_logits_of_the_method_and_a_gradient(
    name: str, tiny_clip: Backbone
) -> None:
    fitted, pixels = fitted_by(name, tiny_clip), pixels_of(tiny_clip, noise_images(3))
    expected = fitted.score()(fitted.states(pixels, features=True))
    traced = trace(fitted, pixels)
    torch.testing.assert_close(traced.logits.detach(), expected, rtol=1e-4, atol=1e-4)
    for make in CANDIDATES.values():
        drawn = make(traced, torch.tensor([0, 1, 2]))
        assert drawn.shape == (3, 4, 4)
        assert drawn.isfinite().all()
        assert drawn.std() > 0
    assert not any(module._forward_hooks for module in tiny_clip.model.modules())
    assert all(parameter.grad is None for parameter in tiny_clip.model.parameters())


def test_methods_with_memory_and_opaque_encoders_are_refused(
    tiny_clip: Backbone, tiny_eva: Backbone
) -> None:
    for name, backbone in (("tda", tiny_clip), ("zero-shot", tiny_eva)):
        with pytest.raises(NotApplicable):
            trace(fitted_by(name, backbone), torch.zeros(1, 3, 32, 32))


# Maps


NONE = torch.zeros(1, 1)


def traced(layers: list[Tensor], tokens: Tensor = NONE, logits: Tensor = NONE) -> Trace:
    """Return a trace with one class token and four patches."""
    return Trace(logits, layers, tokens, 2, 5, 0)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_rollout_multiplies_the_mean_attention_of_blocks() -> None:
    first, top = torch.rand(1, 3, 5, 5), torch.rand(1, 3, 1, 5)
    eye = torch.eye(5)
    rows = (top.mean(1)[0, 0] / 2 + eye[0] / 2) @ (first.mean(1)[0] / 2 + eye / 2)
    drawn = CANDIDATES["attention rollout"](traced([first, top]), torch.tensor([0]))
    assert_same_float32(drawn[0].flatten(), rows[1:])
    wide = torch.rand(1, 3, 1, 7)  # with two appended tokens, which are no patches
    drawn = CANDIDATES["attention rollout"](traced([wide]), torch.tensor([0]))
    assert_same_float32(drawn[0].flatten(), wide.mean(1)[0, 0, 1:5] / 2)


def test_relevance_multiplies_attention_by_its_positive_gradient() -> None:
    layers = [torch.rand(1, 2, rows, 5, requires_grad=True) for rows in (5, 1)]
    slopes = [torch.randn_like(layer) for layer in layers]
    pairs = list(zip(layers, slopes, strict=True))
    logit = torch.stack([(layer * slope).sum() for layer, slope in pairs]).sum()
    logits = torch.stack([torch.zeros(()), logit])[None]
    first, top = ((layer * slope).clamp(min=0).mean(1)[0].detach() for layer, slope in pairs)
    eye = torch.eye(5)
    rows = (eye[0] + top[0]) @ (eye + first)
    drawn = CANDIDATES["attention x gradient"](traced(layers, logits=logits), torch.tensor([1]))
    assert_same_float32(drawn[0].flatten(), rows[1:])


@pytest.mark.parametrize("appended", [0, 2])
def test_grad_cam_weights_patches_by_their_mean_gradient(appended: int) -> None:
    tokens = torch.randn(1, 5 + appended, 3, requires_grad=True)
    slope = torch.randn(1, 5 + appended, 3)
    trace_of_tokens = traced([], tokens, (tokens * slope).sum()[None, None])
    patches, slopes = tokens[0, 1:5].detach(), slope[0, 1:5]
    drawn = CANDIDATES["Grad-CAM"](trace_of_tokens, torch.tensor([0]))[0].flatten()
    assert_same_float32(drawn, (patches @ slopes.mean(0)).clamp(min=0))


def test_occlusion_is_the_fall_of_the_log_probability(tiny_clip: Backbone) -> None:
    fitted, pixels = fitted_by("linear-probe", tiny_clip), pixels_of(tiny_clip, noise_images(1))[0]
    drawn = occlusion(fitted, pixels, 1, 4)
    hidden = pixels.clone()
    hidden[:, 16:, :16] = 0
    whole, part = probabilities(fitted, torch.stack([pixels, hidden]))[:, 1].log()
    torch.testing.assert_close(drawn[2:, :2], (whole - part).expand(2, 2), rtol=1e-4, atol=1e-5)
    assert drawn.std() > 0


def test_covered_patches_have_the_mean_colour() -> None:
    shown = torch.tensor([[[True, False], [False, False]]])
    assert covered(torch.ones(3, 4, 4), shown)[0, 0].sum() == 4
