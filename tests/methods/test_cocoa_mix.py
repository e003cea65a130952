"""CoCoA-Mix: its loss written out, its shares by SciPy and by what they are to do, its answers
class by class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods.cocoa_mix import (
    WORDS,
    CoCoAMix,
    other_names,
    share_inside,
    share_outside,
)
from rmadapter.prompts import entropy, zero_shot_weights
from rmadapter.settings import configured
from rmadapter.training.contract import Known, Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    assert_same_as_plain,
    eight_shots,
    plain_logits,
    plain_text,
)
from tests.helpers.shots import logits_of
from tests.helpers.slow import ci_except


def drawn(seed: int, scale: float = 3.0, images: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both kinds of prompts, of which neither is right about all, and labels."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (images,), generator=noise)
    right = scale * F.one_hot(labels, 5)
    ours, theirs = (
        right + scale * torch.randn(images, 5, generator=noise, dtype=torch.float64)
        for _ in range(2)
    )
    return ours, theirs, labels


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
@pytest.mark.parametrize("confusion", [1.0, 7.0])
def test_loss_and_gradient_are_the_plain_ones(
    name: str, confusion: float, request: pytest.FixtureRequest
) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        logits = plain_logits(
            learner.backbone, shots, plain_text(learner.backbone, CLASSES, learner.ctx)
        )
        p = (logits - logits.max(-1, keepdim=True).values).exp()
        own = (p / p.sum(-1, keepdim=True))[range(3), LABELS]
        return (confusion * (1 - own) - own.log()).mean()

    assert_same_as_plain(CoCoAMix(confusion=confusion), request.getfixturevalue(name), plain)


@pytest.mark.parametrize("seed", range(4))
def test_for_trained_classes_the_cross_entropy_is_least(seed: int) -> None:
    ours, theirs, labels = drawn(seed)
    weights = torch.linspace(0, 2, 40, dtype=torch.float64)

    def loss(share: float) -> float:
        mixed = share * ours + (1 - share) * theirs
        return float((weights * F.cross_entropy(mixed, labels, reduction="none")).sum())

    found = share_inside(ours, theirs, labels, weights)
    assert 0.05 < found < 0.95
    assert found == pytest.approx(
        minimize_scalar(loss, bounds=(0, 1), method="bounded").x, abs=1e-4
    )
    right = 9.0 * F.one_hot(labels, 5)
    assert share_inside(right, torch.zeros_like(right), labels, weights) == 1
    assert share_inside(-right, right, labels, weights) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_for_new_classes_no_answer_is_surer_than_by_written_prompts(
    seed: int, margin: float
) -> None:
    ours, theirs, _ = drawn(seed)
    ours[0] *= 100  # of an image that does not count
    weights = torch.linspace(0, 2, 40, dtype=torch.float64)

    def hinge(share: float) -> float:
        found, wanted = (
            torch.distributions.Categorical(logits=x).entropy() for x in (share * ours, theirs)
        )
        return float((weights * (wanted - found + margin).clamp(min=0)).sum())

    found = share_outside(ours, theirs, margin, weights)
    assert 0.01 < found < 1
    assert hinge(found) < 1e-12 < hinge(found + 1e-4)


def test_the_share_for_new_classes_at_its_limits() -> None:
    ours, theirs, _ = drawn(0)
    torch.testing.assert_close(
        entropy(ours), torch.distributions.Categorical(logits=ours).entropy()
    )
    even = torch.ones(40)
    assert share_outside(theirs / 2, theirs, 0.0, even) == 1  # never surer
    assert share_outside(2 * theirs, theirs, 0.0, even) == pytest.approx(0.5, abs=1e-4)
    assert share_outside(ours, theirs, 9.0, even) == 0  # more than an even answer


def test_other_names_are_not_class_names() -> None:
    assert len({*WORDS}) == len(WORDS) > 100
    classes = ("Lemon", "owl", *WORDS[:30])
    names = other_names(classes, seed=1)
    assert len({*names}) == len(classes)
    assert not {*names} & {name.lower() for name in classes}
    described = [f"{word} | a thing" for word in classes]
    assert not {*other_names(described, seed=1)} & {name.lower() for name in classes}
    assert names == other_names(classes, seed=1) != other_names(classes, seed=2)
    many = other_names([str(i) for i in range(1000)], seed=1)
    assert len({*many}) == 1000
    assert {len(name.split()) for name in many} == {1, 2}


def test_each_class_has_the_share_of_its_kind(tiny_clip: Backbone) -> None:
    """Whatever else is asked about, and without a unit length: it is the cosines that are mixed."""
    shots, templates = eight_shots(tiny_clip), ("the {}",)
    module: Any = CoCoAMix().module(tiny_clip)
    module.shares.copy_(torch.tensor([0.8, 0.3]))
    names = ("house", "dog", "blue bird", "cat")
    with torch.no_grad():
        ours = F.normalize(plain_text(tiny_clip, names, module.ctx), dim=-1)
        theirs = zero_shot_weights(tiny_clip, names, templates)
        s_1, s_0 = (
            shots.plain_features() @ w.T / shots.plain_features().norm(dim=-1)[:, None]
            for w in (ours, theirs)
        )
        pi = torch.tensor([0.3, 0.8, 0.3, 0.8])
        found = module.for_classes(names, Known(CLASSES, templates))(
            shots.source().batch(torch.arange(8))
        )
    torch.testing.assert_close(
        found, tiny_clip.logit_scale * (pi * s_1 + (1 - pi) * s_0), rtol=1e-4, atol=1e-4
    )


def test_the_shares_of_a_fit_are_those_of_its_shots(tiny_clip: Backbone) -> None:
    shots = eight_shots(tiny_clip)
    fitted = configured(CoCoAMix(), {"epochs": 20}).fit(tiny_clip, shots)
    features = F.normalize(shots.plain_features(), dim=-1).double()

    def pair(names: tuple[str, ...]) -> list[Tensor]:
        ours = F.normalize(plain_text(tiny_clip, names, fitted.tensors["ctx"]), dim=-1)
        both = ours, zero_shot_weights(tiny_clip, names, shots.templates)
        return [tiny_clip.logit_scale * features @ w.detach().double().T for w in both]

    inside = share_inside(*pair(CLASSES), shots.labels, torch.ones(8))
    outside = share_outside(*pair(other_names(CLASSES, shots.seed)), 0.0, torch.ones(8))
    assert fitted.tensors["shares"].tolist() == pytest.approx([inside, outside], abs=1e-3)
    far = configured(CoCoAMix(margin=9.0), {"epochs": 20}).fit(tiny_clip, shots)
    zero = zero_shot_weights(tiny_clip, ("house",), shots.templates)
    expected = tiny_clip.logit_scale * features @ zero.double().T
    torch.testing.assert_close(
        logits_of(far, shots, ("house",)).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_number_of_context_vectors(tiny_clip: Backbone, vit_b16: Backbone) -> None:
    assert CoCoAMix().module(vit_b16).ctx.detach().std() == pytest.approx(0.02, rel=0.05)
    assert len(CoCoAMix().module(tiny_clip).ctx) == 4
