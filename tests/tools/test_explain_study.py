"""Heat maps and the curves that judge them, by hand; the differentiable pass is the method's
own."""

from __future__ import annotations

from typing import Any

import explain_study
import pytest
import torch
from explain_study import CANDIDATES, Trace, covered, occlusion, probabilities, trace
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods import METHODS, load_method
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.settings import settings_of
from rmadapter.training.contract import Fitted, Known, NotApplicable
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import REQUIRED_SETTINGS, noise_images, noisy_colors, pixels_of, shots_of


def line(data: str, first: list[float], random: list[float], row: int = 0) -> dict[str, Any]:
    scores = dict.fromkeys(explain_study.NAMES, random) | {"Grad-CAM": first}
    return {"data": data, "method": "m", "row": row, "right": True, "scores": scores}


def test_curves_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose probability is the share of the image's weight that is shown."""
    weight = torch.tensor([[0.7, 0.1], [0.1, 0.1]])

    def shares(fitted: Any, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels[:, 0] * weight).sum((1, 2))[:, None]

    monkeypatch.setattr(explain_study, "probabilities", shares)
    monkeypatch.setattr(explain_study, "SHARES", (0.25, 0.5))
    fitted: Any = None
    best, worst = (
        explain_study.curves(fitted, torch.ones(3, 2, 2), 0, torch.tensor(order), 2)
        for order in ([0, 1, 2, 3], [3, 2, 1, 0])
    )
    assert best == pytest.approx([0.75, 0.25])  # shown alone: 0.7, 0.8; covered: 0.3, 0.2 are left
    assert worst == pytest.approx([0.15, 0.85])


def test_better_than_random_by_more_than_the_interval() -> None:
    lines = [line(data, [0.8, 0.2], [0.5, 0.5], row) for data in "xyz" for row in (0, 1)]
    assert explain_study.mean(lines, "x", "m", "Grad-CAM") == pytest.approx((0.8, 0.2, 0.6))
    assert explain_study.ahead(lines, "m", "Grad-CAM", "random") == pytest.approx([0.6] * 3)
    assert explain_study.better(lines, "m", "Grad-CAM", "random")
    assert not explain_study.better(lines, "m", "centre", "random")
    mixed = [*lines[:4], *(line("z", [0.2, 0.8], [0.5, 0.5], row) for row in (0, 1))]
    assert not explain_study.better(mixed, "m", "Grad-CAM", "random")


QUICK = {
    "epochs": 1, "batch_size": 4, "first_block": 3, "rank": 4, "layer": 3, "n_ctx": 2,
    "search_steps": 0,
}  # fmt: skip


def fitted_by(name: str, backbone: Backbone) -> Fitted:
    own = settings_of(load_method(name))
    values = {key: value for key, value in QUICK.items() if key in own}
    if own.get("iterations"):
        values["iterations"] = 4
    return load_method(name, values | REQUIRED_SETTINGS.get(name, {})).fit(
        backbone, shots_of(backbone, noisy_colors(2))
    )


def hand(layers: list[Tensor], tokens: Tensor | None = None, logits: Tensor | None = None) -> Trace:
    """One class token and four patches."""
    none = torch.zeros(1, 1)
    return Trace(
        none if logits is None else logits, layers, none if tokens is None else tokens, 2, 5, 0
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_pass_is_that_of_every_method(name: str, tiny_clip: Backbone) -> None:
    fitted, pixels = fitted_by(name, tiny_clip), pixels_of(tiny_clip, noise_images(3))
    expected = fitted.score()(fitted.states(pixels, features=True))
    if fitted.remembers:
        with pytest.raises(NotApplicable, match="the answers of TDA depend on other images, too"):
            trace(fitted, pixels)
        return
    found = trace(fitted, pixels)
    torch.testing.assert_close(found.logits.detach(), expected, rtol=1e-4, atol=1e-4)
    assert found.side == 4
    for make in CANDIDATES.values():
        drawn = make(found, torch.tensor([0, 1, 2]))
        assert drawn.shape == (3, 4, 4)
        assert drawn.isfinite().all()
        assert drawn.std() > 0
    assert not any(module._forward_hooks for module in tiny_clip.model.modules())
    assert all(parameter.grad is None for parameter in tiny_clip.model.parameters())


def test_other_kinds_of_backbone(
    tiny_siglip: Backbone, tiny_hf: Backbone, tiny_eva: Backbone
) -> None:
    for backbone in (tiny_siglip, tiny_hf):
        found = trace(fitted_by("rmadapter", backbone), pixels_of(backbone, noise_images(2)))
        assert CANDIDATES["attention x gradient"](found, torch.tensor([0, 1])).std() > 0
    with pytest.raises(NotApplicable, match="do not show what they attend to"):
        trace(ZeroShot().restore(tiny_eva, Known(("cat", "dog")), {}), torch.zeros(1, 3, 32, 32))


def test_rollout_by_hand() -> None:
    torch.manual_seed(0)
    first, top = torch.rand(1, 3, 5, 5), torch.rand(1, 3, 1, 5)
    eye = torch.eye(5)
    rows = (top.mean(1)[0, 0] / 2 + eye[0] / 2) @ (first.mean(1)[0] / 2 + eye / 2)
    assert_same_float32(
        CANDIDATES["attention rollout"](hand([first, top]), torch.tensor([0]))[0].flatten(),
        rows[1:],
    )


def test_appended_tokens_are_no_patches() -> None:
    torch.manual_seed(0)
    top = torch.rand(1, 3, 1, 7)
    found = CANDIDATES["attention rollout"](hand([top]), torch.tensor([0]))
    assert_same_float32(found[0].flatten(), top.mean(1)[0, 0, 1:5] / 2)


def test_relevance_by_hand() -> None:
    torch.manual_seed(0)
    layers = [
        torch.rand(1, 2, 5, 5, requires_grad=True),
        torch.rand(1, 2, 1, 5, requires_grad=True),
    ]
    slopes = [torch.randn_like(layer) for layer in layers]
    wanted = sum((layer * slope).sum() for layer, slope in zip(layers, slopes, strict=True))
    assert isinstance(wanted, Tensor)
    logits = torch.stack([torch.zeros(()), wanted])[None]
    first, top = (
        (layer * slope).clamp(min=0).mean(1)[0].detach()
        for layer, slope in zip(layers, slopes, strict=True)
    )
    eye = torch.eye(5)
    rows = (eye[0] + top[0]) @ (eye + first)
    found = CANDIDATES["attention x gradient"](hand(layers, logits=logits), torch.tensor([1]))
    assert_same_float32(found[0].flatten(), rows[1:])


@pytest.mark.parametrize("appended", [0, 2])
def test_grad_cam_by_hand(appended: int) -> None:
    """Also where a method appends tokens of its own, which are no patches."""
    torch.manual_seed(0)
    tokens, slope = (
        torch.randn(1, 5 + appended, 3, requires_grad=True),
        torch.randn(1, 5 + appended, 3),
    )
    found = hand([], tokens, (tokens * slope).sum()[None, None])
    patches, slopes = tokens[0, 1:5].detach(), slope[0, 1:5]
    drawn = CANDIDATES["Grad-CAM"](found, torch.tensor([0]))[0].flatten()
    assert_same_float32(drawn, (patches @ slopes.mean(0)).clamp(min=0))


def test_occlusion_is_the_fall_of_the_log_probability(tiny_clip: Backbone) -> None:
    fitted, pixels = fitted_by("linear-probe", tiny_clip), pixels_of(tiny_clip, noise_images(1))[0]
    found = occlusion(fitted, pixels, 1, 4)
    hidden = pixels.clone()
    hidden[:, 16:, :16] = 0
    whole, part = probabilities(fitted, torch.stack([pixels, hidden]))[:, 1].log()
    torch.testing.assert_close(found[2:, :2], (whole - part).expand(2, 2), rtol=1e-4, atol=1e-5)
    assert found.std() > 0


def test_what_is_not_shown_has_the_mean_colour() -> None:
    shown = torch.tensor([[[True, False], [False, False]]])
    assert covered(torch.ones(3, 4, 4), shown)[0, 0].sum() == 4
