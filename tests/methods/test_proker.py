"""ProKeR against scikit-learn's kernel ridge regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.kernel_ridge import KernelRidge

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.proker import Grid, ProKeR
from rmadapter.settings import configured
from rmadapter.training.contract import Shots
from tests.helpers.shots import logits_of, noise_images, pixels_of, shots_of
from tests.helpers.slow import ci_except

THREE = ("cat", "dog", "car")


@torch.no_grad()
def unit_features(backbone: Backbone, shots: Shots) -> np.ndarray:
    """Features [N, e] by the backbone's own forward pass, normalised."""
    encoded = backbone.model.encode_image(pixels_of(backbone, shots.images))
    return F.normalize(encoded, dim=-1).double().numpy()


def expected(
    backbone: Backbone, shots: Shots, asked: Shots, beta: float, penalty: float
) -> torch.Tensor:
    """Logits of `asked` by scikit-learn, whose regression has lambda in another place."""
    s, x = unit_features(backbone, shots), unit_features(backbone, asked)
    zero_shot = load_method("zero-shot").fit(backbone, shots)
    scale = float(backbone.logit_scale)
    known, new = (
        logits_of(zero_shot, part, shots.classes).double().numpy() / scale
        for part in (shots, asked)
    )
    rest = np.eye(len(shots.classes))[shots.labels.numpy()] - known
    ridge = KernelRidge(alpha=penalty, kernel="precomputed").fit(
        np.exp(-beta * (1 - s @ s.T)), rest
    )
    found = new + penalty * ridge.predict(np.exp(-beta * (1 - x @ s.T)))
    return torch.from_numpy(scale * found).float()


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_logits_are_zero_shot_and_the_regression(
    name: str, colors: Path, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    splits = read_images(colors)
    shots, asked = (shots_of(backbone, splits[part]) for part in ("train", "test"))
    fitted = ProKeR(Grid(beta=2.5, penalty=0.3, search=False)).fit(backbone, shots)
    assert all(tensor.dtype == torch.float32 for tensor in fitted.tensors.values())
    found = logits_of(fitted, asked, shots.classes)
    wanted = expected(backbone, shots, asked, 2.5, 0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-3)


def test_every_view_is_a_key(tiny_clip: Backbone, colors: Path) -> None:
    shots = shots_of(tiny_clip, read_images(colors)["train"], augmentation="standard", views=3)
    fitted = ProKeR(Grid(search=False)).fit(tiny_clip, shots)
    keys = F.normalize(shots.features(), dim=-1).flatten(0, 1)
    torch.testing.assert_close(fitted.tensors["keys"], keys)
    assert fitted.tensors["values"].shape == (len(keys), len(shots.classes))


def test_beta_and_lambda_are_the_best_of_the_grid_on_validation_images(
    tiny_clip: Backbone,
) -> None:
    val = noise_images(15, THREE, seed=101, grain=32)
    shots = shots_of(tiny_clip, noise_images(12, THREE, seed=1, grain=32), val=val)
    changes: dict[str, float] = {
        "smallest_beta": 0.5, "largest_beta": 30.0, "beta_steps": 4,
        "smallest_penalty": 0.01, "largest_penalty": 10.0, "penalty_steps": 3,
    }  # fmt: skip
    fitted = configured(ProKeR(), changes).fit(tiny_clip, shots)
    judged, hits = shots_of(tiny_clip, val), {}
    for beta in np.linspace(0.5, 30, 4):
        for penalty in np.linspace(0.01, 10, 3):
            table = expected(tiny_clip, shots, judged, float(beta), float(penalty))
            hits[beta, penalty] = int((table.argmax(1) == judged.labels).sum())
    assert len({*hits.values()}) > 1
    beta, penalty = max(hits, key=lambda pair: hits[pair])  # the first of equals
    assert float(fitted.tensors["beta"]) == pytest.approx(beta)
    wanted = expected(tiny_clip, shots, judged, float(beta), float(penalty))
    torch.testing.assert_close(
        logits_of(fitted, judged, shots.classes), wanted, rtol=1e-3, atol=5e-3
    )


def test_with_one_shot_per_class_nothing_is_searched(tiny_clip: Backbone) -> None:
    one = shots_of(tiny_clip, noise_images(3, THREE, grain=32))
    given = ProKeR(Grid(search=False)).fit(tiny_clip, one)
    assert torch.equal(logits_of(given, one), logits_of(ProKeR().fit(tiny_clip, one), one))
    with pytest.raises(UserError, match="penalty=0"):
        configured(ProKeR(), {"penalty": 0})
