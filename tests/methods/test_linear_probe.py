"""The linear probe against its own optimality conditions."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.training.contract import Shots
from tests.helpers.shots import logits_of, noise_images, noisy_colors, shots_of

pytestmark = pytest.mark.real_plots


@pytest.fixture
def shots(tiny_clip: Backbone, colors: Path) -> Shots:
    return shots_of(tiny_clip, read_images(colors)["train"])


@pytest.mark.parametrize("strength", [0.316, 50.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_penalised_loss_is_at_its_minimum(
    tiny_clip: Backbone, shots: Shots, strength: float, classes: int
) -> None:
    """Logits of the probe against a minimiser in float64 that knows nothing of scikit-learn.

    Of two classes only the second one has weights, and the logit of the first one is 0.
    """
    if classes == 2:
        shots = shots_of(tiny_clip, noisy_colors(6, names=("blue", "red")))
    rows = classes if classes > 2 else 1
    x, y = F.normalize(shots.plain_features(), dim=-1).double(), shots.labels
    weight = torch.zeros(rows, x.shape[1]).double().requires_grad_()
    bias = torch.zeros(rows).double().requires_grad_()

    def scores() -> torch.Tensor:
        return F.pad(x @ weight.T + bias, (classes - rows, 0))

    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        solver.zero_grad()
        value = weight.square().sum() / 2 + strength * F.cross_entropy(scores(), y, reduction="sum")
        value.backward()
        return float(value.detach())

    solver.step(closure)
    fitted = LinearProbe(search_steps=0, C=strength).fit(tiny_clip, shots)
    found, exact = (
        s - s.mean(1, keepdim=True) for s in (logits_of(fitted, shots).double(), scores().detach())
    )
    assert float((found - exact).norm() / exact.norm()) < 0.01  # where scikit-learn stops
    assert (
        fitted.parameters
        == rows * (x.shape[1] + 1)
        == LinearProbe().parameters(tiny_clip, classes).trained
    )


def test_the_search_takes_a_strength_with_most_hits() -> None:
    """On features with so much noise that the penalty matters."""
    random = torch.Generator().manual_seed(0)
    center, labels = torch.randn(10, 40, generator=random), torch.arange(10).repeat(8)
    fit, held = (
        F.normalize(center[labels] + 3 * torch.randn(80, 40, generator=random), dim=-1)
        for _ in range(2)
    )
    probe = LinearProbe()

    def hits(strength: float) -> int:
        return int(
            (
                probe._regression(fit[None], labels, torch.ones(80), strength).predict(held.numpy())
                == labels.numpy()
            ).sum()
        )

    coarse = {exponent: hits(10.0**exponent) for exponent in range(-6, 7, 2)}
    assert len(set(coarse.values())) > 2
    found, heat = probe._search(
        fit[None], labels, torch.ones(80), [(torch.arange(80), held, labels)]
    )
    assert hits(found) >= max(coarse.values())
    assert hits(found) >= max(hits(found * 10**0.125), hits(found / 10**0.125))
    assert probe._search(fit[None], labels, torch.ones(80), []) == (probe.C, 1.0)
    logits = torch.from_numpy(
        probe._regression(fit[None], labels, torch.ones(80), found).decision_function(held.numpy())
    ).double()
    losses = {
        t: float(F.cross_entropy(logits / (heat * t), labels, label_smoothing=1 / 81))
        for t in (0.8, 1.0, 1.25)
    }
    assert losses[1.0] < min(losses[0.8], losses[1.25])


@pytest.mark.ci
def test_answers_do_not_depend_on_confidence() -> None:
    """Labels by chance, so that held-out images want a probe that is sure of nothing."""
    random = torch.Generator().manual_seed(0)
    labels, weights = torch.arange(5).repeat(4), torch.ones(20)
    for _ in range(20):
        x = F.normalize(torch.randn(20, 10, generator=random), dim=-1)
        turns = torch.arange(20) // 5
        parts = [
            ((turns != k).nonzero()[:, 0], x[turns == k], labels[turns == k]) for k in range(4)
        ]
        strength, heat = LinearProbe()._search(x[None], labels, weights, parts)
        model = LinearProbe()._regression(x[None], labels, weights, strength)
        weight, bias = (
            torch.from_numpy(part / heat).float() for part in (model.coef_, model.intercept_)
        )
        assert (
            F.linear(x, weight, bias).softmax(-1).argmax(-1).tolist()
            == model.predict(x.numpy()).tolist()
        )


def test_one_class_and_one_shot(tiny_clip: Backbone) -> None:
    with pytest.raises(UserError, match="at least two"):
        LinearProbe().fit(tiny_clip, shots_of(tiny_clip, noise_images(3, ("cat",))))
    one = shots_of(tiny_clip, noise_images(3, ("cat", "dog", "car")))
    given = LinearProbe(search_steps=0).fit(tiny_clip, one)
    searched = LinearProbe().fit(tiny_clip, one)
    assert torch.equal(logits_of(given, one), logits_of(searched, one))  # nothing could be held out
    with warnings.catch_warnings():
        # scikit-learn takes many classes of one image each for a regression's values
        warnings.simplefilter("error")
        LinearProbe().fit(
            tiny_clip, shots_of(tiny_clip, noise_images(24, tuple(f"thing {i}" for i in range(24))))
        )
