"""Scores of the literature, beside pytorch-ood where it is installed, and by what they must do."""

from __future__ import annotations

import ood_scores
import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit features of 20 shots and 7 images, and logits' weights of 4 classes."""
    generator = torch.Generator().manual_seed(0)
    shots, new, weights = (torch.randn(n, 16, generator=generator) for n in (20, 7, 4))
    return F.normalize(shots, dim=-1), F.normalize(new, dim=-1), 5 * weights


def test_virtual_logit_by_pytorch_ood(features: tuple[torch.Tensor, ...]) -> None:
    detector = pytest.importorskip("pytorch_ood.detector", reason="pip install pytorch-ood")
    shots, new, weights = features
    theirs = detector.ViM(None, d=8, w=weights, b=torch.zeros(4))
    theirs.fit_features(shots, torch.zeros(20, dtype=torch.long))
    ours = ood_scores.virtual_logit(shots, shots @ weights.T, new, new @ weights.T)
    torch.testing.assert_close(ours, theirs.predict_features(new), rtol=1e-4, atol=1e-4)


def test_guided_by_pytorch_ood(features: tuple[torch.Tensor, ...]) -> None:
    detector = pytest.importorskip("pytorch_ood.detector", reason="pip install pytorch-ood")
    shots, new, weights = features
    theirs = detector.NNGuide(None, lambda z: z @ weights.T, k=ood_scores.NEIGHBOURS)
    theirs.fit_features(shots, torch.zeros(20, dtype=torch.long))
    ours = ood_scores.guided(shots, shots @ weights.T, new, new @ weights.T)
    torch.testing.assert_close(ours, theirs.predict_features(new))


def test_concepts_by_pytorch_ood(features: tuple[torch.Tensor, ...]) -> None:
    detector = pytest.importorskip("pytorch_ood.detector", reason="pip install pytorch-ood")
    _, new, weights = features
    unit = F.normalize(weights, dim=-1)
    theirs = detector.MCM(None, unit).predict_features(new)
    torch.testing.assert_close(ood_scores.concepts(new, unit), theirs)


def test_virtual_logit_of_what_the_shots_span(features: tuple[torch.Tensor, ...]) -> None:
    shots = torch.eye(16)[:4].repeat(2, 1)  # 8 shots span 4 directions, all of them kept
    shots = shots + 1e-3 * features[0][:8]
    inside, outside = torch.eye(16)[:1], torch.eye(16)[15:]
    logits = torch.zeros(1, 3)
    known = ood_scores.virtual_logit(shots, torch.ones(8, 3), inside, logits)
    strange = ood_scores.virtual_logit(shots, torch.ones(8, 3), outside, logits)
    assert strange > known + 10


def test_guided_prefers_images_like_the_shots(features: tuple[torch.Tensor, ...]) -> None:
    shots, _, weights = features
    new = torch.stack([shots[0], -shots[0]])
    known, strange = ood_scores.guided(shots, shots @ weights.T, new, torch.ones(2, 4))
    assert known < strange


def test_negatives_by_hand() -> None:
    weights, words = torch.eye(4)[:2], torch.eye(4)
    classes, other = ood_scores.negatives(torch.eye(4)[[0, 3]], weights, words, 10.0)
    # the words 2 and 3 are least like the classes 0 and 1
    one, far = torch.tensor(10.0).exp(), torch.ones(())
    torch.testing.assert_close(classes, 2 * far / (one + 3 * far))
    torch.testing.assert_close(other, (one + far) / (one + 3 * far))
