"""BiCLIP against its equation in float64, and its training against gradients and AdamW by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images
from rmadapter.methods.biclip import BiCLIP
from rmadapter.settings import configured
from rmadapter.training.contract import Known
from rmadapter.training.loop import order
from tests.helpers.rounding import double
from tests.helpers.shots import logits_of, own_features, shots_of, states_of, unit_rows, untrained

NAMES = ("cat", "red car")


def scale_of(backbone: Backbone) -> float:
    return float(backbone.model.logit_scale.exp())  # type: ignore[operator]


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip"])
def test_logits_are_those_of_the_matrix(name: str, request: pytest.FixtureRequest) -> None:
    """For any upper triangle, and also for classes that it was not trained on."""
    backbone = double(request.getfixturevalue(name))
    size = backbone.embedding_size
    rng = np.random.default_rng(0)
    x, matrix = unit_rows(rng.normal(size=(5, size))), np.triu(rng.normal(size=(size, size)))
    with torch.no_grad():
        tokens = backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
        t = unit_rows(backbone.model.encode_text(tokens).numpy())  # type: ignore[operator]
    module = BiCLIP().module(backbone).double()
    module.load_state_dict({"upper": torch.from_numpy(matrix[np.triu_indices(size)])})
    with torch.no_grad():
        score = module.for_classes(NAMES, Known(("house", "tree")))
        found = score(states_of(7 * torch.from_numpy(x)))
    expected = scale_of(backbone) * np.einsum("bi,ij,cj->bc", x, matrix, t)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def symmetric(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the loss of CLIP for B pairs with these logits [B, B], and its gradient [B, B]."""
    shares = [np.exp(logits - logits.max(axis, keepdims=True)) for axis in (1, 0)]
    shares = [one / one.sum(axis, keepdims=True) for one, axis in zip(shares, (1, 0), strict=True)]
    loss = -sum(float(np.log(np.diag(one)).mean()) for one in shares) / 2
    return loss, (shares[0] + shares[1] - 2 * np.eye(len(logits))) / (2 * len(logits))


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_steps_are_adamws_on_the_upper_triangle(
    tiny_clip: Backbone, colors: Path, clip: float
) -> None:
    """Three epochs of uneven batches, in which classes repeat, at a constant rate and with a weight
    decay that the lower triangle is not there for."""
    shots = shots_of(tiny_clip, read_images(colors)["train"])
    rate, decay, size = 0.01, 0.5, tiny_clip.embedding_size
    values = {"epochs": 3, "batch_size": 9, "learning_rate": rate, "final_rate": rate}
    method = configured(BiCLIP(), {**values, "weight_decay": decay, "clip_gradient": clip})
    fitted = method.fit(tiny_clip, shots)

    x, t = own_features(tiny_clip, shots.images, shots.classes)
    labels = np.array(shots.images.labels)
    matrix, mean, square, losses, norms, step = np.eye(size), 0.0, 0.0, [], [], 0
    for epoch in range(3):
        for part in order(len(labels), 9, shots.seed, epoch):
            step += 1
            rows = part.numpy()
            assert len({*labels[rows]}) < len(rows)
            image, text = x[rows], t[labels[rows]]
            loss, slope = symmetric(scale_of(tiny_clip) * image @ matrix @ text.T)
            losses.append(loss)
            gradient = np.triu(scale_of(tiny_clip) * image.T @ slope @ text)
            norms.append(np.linalg.norm(gradient))
            if clip:
                gradient *= min(1.0, clip / norms[-1])
            mean, square = (
                0.9 * mean + 0.1 * gradient,
                0.999 * square + 0.001 * gradient**2,
            )
            root = np.sqrt(square / (1 - 0.999**step)) + 1e-8
            matrix = matrix * (1 - rate * decay) - rate * mean / (1 - 0.9**step) / root
    assert max(norms) > 1  # else the bound on the gradient changes nothing
    assert [one["loss"] for one in fitted.trained.history] == pytest.approx(losses, rel=1e-3)
    assert {one["lr"] for one in fitted.trained.history} == {rate}
    found = fitted.tensors["upper"].numpy()
    np.testing.assert_allclose(found, matrix[np.triu_indices(size)], rtol=1e-2, atol=1e-4)
    assert fitted.parameters == len(found) == size * (size + 1) // 2
    expected = scale_of(tiny_clip) * x @ matrix @ own_features(tiny_clip, shots.images, NAMES)[1].T
    np.testing.assert_allclose(logits_of(fitted, shots, NAMES).numpy(), expected, rtol=0, atol=0.02)


def test_a_batch_of_one_image_says_nothing(tiny_clip: Backbone) -> None:
    start = untrained(BiCLIP(), tiny_clip, shots_of(tiny_clip))
    assert start.terms([3])["loss"].item() == 0
