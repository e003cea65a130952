"""ReHARK against scikit-learn's kernel ridge regression with kernels of its own."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel

from rmadapter.backbones import Backbone
from rmadapter.methods.rehark import RANGES, Numbers, ReHARK
from rmadapter.training.contract import Shots
from tests.helpers.shots import logits_of, noise_images, own_features, shots_of, unit_rows
from tests.helpers.slow import ci_except

THREE = ("cat", "dog", "car")
GIVEN = Numbers(narrow=4.0, wide=0.3, mix=0.3, penalty=0.2, share=0.4, bridge=0.7, power=0.6)


def expected(backbone: Backbone, shots: Shots, asked: Shots, numbers: Numbers) -> np.ndarray:
    """Logits [B, C] of `asked`."""

    def bent(f: np.ndarray) -> np.ndarray:
        return unit_rows(np.sign(f) * np.abs(f) ** numbers.power)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        narrow, wide = (rbf_kernel(a, b, gamma) for gamma in (numbers.narrow, numbers.wide))
        found: np.ndarray = numbers.mix * narrow + (1 - numbers.mix) * wide
        return found

    features, prompts = own_features(backbone, shots.images, THREE)
    x, y = bent(features), np.array(shots.images.labels)
    means = np.stack([unit_rows(x[y == label].mean(0)) for label in range(len(THREE))])
    prior = unit_rows((1 - numbers.share) * bent(prompts) + numbers.share * means)
    support = np.concatenate([x, unit_rows(x + numbers.bridge * prior[y])])
    rest = np.eye(len(THREE))[np.tile(y, 2)] - numbers.scale * support @ prior.T
    ridge = KernelRidge(alpha=numbers.penalty, kernel="precomputed")
    ridge.fit(kernel(support, support), rest)
    new = bent(own_features(backbone, asked.images, THREE)[0])
    found: np.ndarray = numbers.scale * new @ prior.T + ridge.predict(kernel(new, support))
    return found


@pytest.mark.parametrize("name", ci_except(["tiny_clip", "tiny_hf"], "tiny_clip"))
def test_logits_are_prior_and_regression(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    shots = shots_of(backbone, noise_images(12, THREE, grain=16))
    asked = shots_of(backbone, noise_images(7, THREE, seed=5, grain=16))
    fitted = ReHARK(GIVEN, trials=0).fit(backbone, shots)
    assert all(tensor.dtype == torch.float32 for tensor in fitted.tensors.values())
    found = logits_of(fitted, asked, THREE).double().numpy()
    np.testing.assert_allclose(found, expected(backbone, shots, asked, GIVEN), atol=5e-3)
    some = logits_of(fitted, asked, ("car", "cat")).double().numpy()
    np.testing.assert_allclose(some, found[:, [2, 0]], atol=1e-5)


def test_every_view_is_in_the_support(tiny_clip: Backbone) -> None:
    images = noise_images(6, THREE, grain=16)
    shots = shots_of(tiny_clip, images, augmentation="standard", views=3)
    fitted = ReHARK(trials=0).fit(tiny_clip, shots)
    assert fitted.tensors["support"].shape == (2 * 3 * 6, tiny_clip.embedding_size)


def test_the_numbers_with_the_most_hits_on_validation_images_are_kept(tiny_clip: Backbone) -> None:
    val = noise_images(15, THREE, seed=101, grain=32)
    shots = shots_of(tiny_clip, noise_images(12, THREE, seed=1, grain=32), val=val)
    judged, method = shots_of(tiny_clip, val), ReHARK(trials=6)
    fitted, hits = method.fit(tiny_clip, shots), []
    tried = list(method._drawn(shots.seed))
    for numbers in tried:
        table = expected(tiny_clip, shots, judged, numbers)
        hits.append(int((table.argmax(1) == judged.labels.numpy()).sum()))
    assert len({*hits}) > 1
    best = tried[hits.index(max(hits))]
    assert {name: float(fitted.tensors[name]) for name in RANGES} == pytest.approx(asdict(best))
    assert tried[0] == method.numbers
    for numbers in tried:
        for name, value in asdict(numbers).items():
            low, high = RANGES[name]
            assert low <= value <= high


def test_with_one_shot_per_class_nothing_is_searched(tiny_clip: Backbone) -> None:
    one = shots_of(tiny_clip, noise_images(3, THREE, grain=32))
    given = replace(ReHARK(), trials=0).fit(tiny_clip, one)
    assert torch.equal(logits_of(given, one), logits_of(ReHARK().fit(tiny_clip, one), one))
