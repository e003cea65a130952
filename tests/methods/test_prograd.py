"""ProGrad against the projection written out by hand, and as a whole on eight images."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.methods import prograd
from rmadapter.methods.coop import CoOp
from rmadapter.methods.prograd import Aligned, ProGrad
from rmadapter.prompts import zero_shot_weights
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.context_prompts import (
    CLASSES,
    LABELS,
    assert_same_as_plain,
    eight_shots,
    plain_logits,
    plain_text,
)
from tests.helpers.rounding import FACTOR
from tests.helpers.shots import logits_of


def projected(learner: Any, shots: Shots, strength: float = 1.0) -> tuple[Tensor, float]:
    """The loss of ROWS, with the gradient that it is to have, and the inner product of the two that
    it is made of."""
    known = zero_shot_weights(learner.backbone, CLASSES, shots.templates)
    logits = plain_logits(
        learner.backbone, shots, plain_text(learner.backbone, CLASSES, learner.ctx)
    )
    teacher = plain_logits(learner.backbone, shots, known).softmax(-1)
    losses = F.cross_entropy(logits, LABELS), -(teacher * logits.log_softmax(-1)).sum(-1).mean()
    a, b = (torch.autograd.grad(loss, learner.ctx, retain_graph=True)[0] for loss in losses)
    inner = float((a * b).sum())
    if inner < 0:
        a = a - strength * inner / float((b * b).sum()) * b
    return sum(losses).detach() + (a * (learner.ctx - learner.ctx.detach())).sum(), inner


@pytest.mark.parametrize(("name", "against"), [("tiny_clip", False), ("tiny_hf", True)])
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_loss_and_gradient_are_the_plain_ones(
    name: str, against: bool, strength: float, request: pytest.FixtureRequest
) -> None:
    def plain(learner: Any, shots: Shots) -> Tensor:
        loss, inner = projected(learner, shots, strength)
        assert (inner < 0) == against
        return loss

    # what is projected is a difference, by which luck counts for more
    factor = 4 * FACTOR if against else FACTOR
    assert_same_as_plain(
        ProGrad(context="", strength=strength), request.getfixturevalue(name), plain, factor=factor
    )


@pytest.mark.parametrize("length", [1e-7, 1e-2])
def test_what_is_nothing_but_rounding_has_no_direction(length: float) -> None:
    """The second gradient of a prompt that is still zero-shot CLIP's own is zero but for rounding,
    which differs between processors; what they remove of the first would, too."""
    ours, other = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([-0.6, 0.0, 0.8])
    start = torch.zeros(3, requires_grad=True)
    both = Aligned.apply(start, lambda x: x.clone(), 1.0)
    [found] = torch.autograd.grad(both, start, [ours, length * other])
    removed = 0 if length < 1e-6 else (ours @ other) * other
    torch.testing.assert_close(found, ours - removed)


def test_several_processes_project_by_the_sum_of_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two, of which each alone would leave its gradient as it is, or lose another part of it."""
    # of each process: by both losses
    by = torch.tensor([[[1.0, -3.0], [2.0, 1.0]], [[-2.0, 1.0], [1.0, 1.0]]])

    def returned(mine: Tensor) -> Tensor:
        start = torch.zeros(2, requires_grad=True)
        ours, same = Aligned.apply(start, lambda x: 2 * x, 1.0)
        [found] = torch.autograd.grad([ours, same], start, [*mine])
        return found

    whole = returned(by.sum(0))
    assert not torch.allclose(whole, sum(map(returned, by)))
    monkeypatch.setattr(prograd, "several", lambda: True)
    monkeypatch.setattr(prograd, "dist", Mock(get_world_size=lambda: 2))
    for one, other in ((0, 1), (1, 0)):
        parts = iter(2 * by[other])
        monkeypatch.setattr(
            prograd, "add_up", lambda *sums, parts=parts: [one.add_(next(parts)) for one in sums]
        )
        torch.testing.assert_close(2 * returned(by[one]), whole)


def test_words_come_last_and_short_encoders_have_fewer_tokens(
    tiny_clip: Backbone, vit_b16: Backbone
) -> None:
    # The released prompt learner: 16 context tokens of width 512, of which the first are 0
    assert ProGrad().parameters(vit_b16) == (8192, 0)
    ctx, coop = ProGrad().module(vit_b16).ctx, CoOp().module(vit_b16).ctx
    assert torch.equal(ctx, torch.cat([torch.zeros(12, 512), coop]))
    assert ProGrad(context="").module(vit_b16).ctx.detach().std() == pytest.approx(0.02, rel=0.05)
    assert len(ProGrad().module(tiny_clip).ctx) == 4


def test_it_stays_nearer_to_zero_shot_clip_than_coop(tiny_clip: Backbone) -> None:
    shots = eight_shots(tiny_clip)
    fields = {"context": "", "epochs": 60, "batch_size": 8, "learning_rate": 0.02}
    free, held = (
        configured(ProGrad(), {**fields, "strength": s}).fit(tiny_clip, shots) for s in (0.0, 1.0)
    )
    coop = configured(CoOp(), fields).fit(tiny_clip, shots)
    torch.testing.assert_close(logits_of(free, shots), logits_of(coop, shots))
    last = [fitted.trained.history[-1]["divergence"] for fitted in (free, held)]
    assert last[1] < last[0]
