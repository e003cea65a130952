"""Weights of images: what the loop draws, and what methods make of them that are not trained step
by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from rmadapter import FewShotClassifier, Fitted, Method, Parameters, load_method
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.tip_adapter import Search, TipAdapter
from rmadapter.runs.lab import Lab
from rmadapter.runs.run import run_task
from rmadapter.task import Task
from rmadapter.training.loop import order
from tests.helpers.shots import logits_of, noisy_colors, shots_of

IMAGES = noisy_colors(3)
WEIGHTS = tuple(float(1 + i % 3) for i in range(12))  # 1, 2, 3 of each colour


def test_a_row_comes_as_often_as_its_weight_says() -> None:
    weights = torch.tensor([0.0, 0.4, 1.0, 2.6, 0.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    seen: Counter[int] = Counter()
    for epoch in range(400):
        parts = order(8, 3, seed=1, epoch=epoch, weights=weights)
        assert [len(part) for part in parts] == [3, 3, 2]
        once = Counter(torch.cat(parts).tolist())
        assert all(abs(once[row] - weight) < 1 for row, weight in enumerate(weights.tolist()))
        seen += once
    for row, weight in enumerate(weights.tolist()):
        assert seen[row] / 400 == pytest.approx(weight, abs=0.1)  # 4 standard errors
    assert torch.equal(torch.cat(order(8, 3, 1, 5, weights)), torch.cat(order(8, 3, 1, 5, weights)))


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_equal_weights_change_nothing(count: int) -> None:
    ones = torch.full((count,), 3.0, dtype=torch.float64)
    for epoch in range(20):
        assert torch.equal(
            torch.cat(order(count, 4, 2, epoch, ones / ones.mean())),
            torch.cat(order(count, 4, 2, epoch)),
        )


def test_shots_know_their_weights_in_proportion(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, replace(IMAGES, weights=WEIGHTS))
    assert shots.weights is not None
    assert shots.weights.tolist() == pytest.approx([w / 2 for w in WEIGHTS])
    assert shots_of(tiny_clip, IMAGES).weights is None
    part = shots.images.subset([2, 0])
    assert part.weights == (3, 1)
    assert part.digest != replace(part, weights=()).digest


def test_the_linear_probe_is_scikit_learns_with_weights(tiny_clip: Backbone) -> None:
    shots = shots_of(tiny_clip, replace(IMAGES, weights=WEIGHTS))
    fitted = LinearProbe(search_steps=0, C=1.0).fit(tiny_clip, shots)
    x = F.normalize(shots.plain_features(), dim=-1).numpy()
    theirs = LogisticRegression(C=1.0, max_iter=1000).fit(x, IMAGES.labels, np.array(WEIGHTS) / 2)
    expected = torch.from_numpy(theirs.predict_proba(x)).float()
    torch.testing.assert_close(logits_of(fitted, shots).softmax(-1), expected, rtol=1e-3, atol=1e-4)
    plain = LinearProbe(search_steps=0, C=1.0).fit(tiny_clip, shots_of(tiny_clip, IMAGES))
    assert (logits_of(plain, shots) - logits_of(fitted, shots)).abs().max() > 1e-3


def test_a_key_of_weight_2_is_two_keys(tiny_clip: Backbone) -> None:
    rows = [row for row, weight in enumerate(WEIGHTS) for _ in range(int(weight))]
    method = TipAdapter(Search(search=False))
    weighed, repeated = (
        method.fit(tiny_clip, shots_of(tiny_clip, images))
        for images in (replace(IMAGES, weights=WEIGHTS), IMAGES.subset(rows))
    )
    cache = [
        method.restore(
            tiny_clip, weighed.known, {**fitted.tensors, "values": fitted.tensors["values"] * scale}
        )
        for fitted, scale in ((weighed, 2.0), (repeated, 1.0))  # of weights that are 2 on average
    ]
    shots = shots_of(tiny_clip, IMAGES)
    torch.testing.assert_close(
        logits_of(cache[0], shots), logits_of(cache[1], shots), rtol=1e-4, atol=1e-4
    )


def test_class_weights_change_a_trained_classifier(tiny_clip: Backbone) -> None:
    """A class of no weight is not learnt, one of much is: by the classifier, with a loss that knows
    of no weights."""
    images = noisy_colors(4)
    labels = [images.classes[label] for label in images.labels]
    classifier = FewShotClassifier(
        tiny_clip.name, method="linear-probe-zero-shot", shots=0, device="cpu", epochs=10,
        learning_rate=0.1, class_weight={"red": 0, "blue": 5},
    )  # fmt: skip
    table = classifier.fit(images.images, labels).predict_proba(images.images)
    even = FewShotClassifier(**{**classifier.get_params(), "class_weight": None}).fit(
        images.images, labels
    )
    before = even.predict_proba(images.images)
    red, blue = (classifier.classes_.tolist().index(name) for name in ("red", "blue"))
    assert table[:, red].mean() < before[:, red].mean() - 0.01
    assert table[:, blue].mean() > before[:, blue].mean() + 0.01


@dataclass(frozen=True)
class Deaf(Method):
    title: ClassVar[str] = "a method of one's own"
    source: ClassVar[str] = ""

    def fit(self, backbone: Backbone, shots: Any) -> Fitted:
        return load_method("zero-shot").restore(backbone, shots.known, {})

    def restore(self, backbone: Backbone, known: object, tensors: object) -> Fitted:
        raise NotImplementedError

    def parameters(self, *words: Any) -> Parameters:
        return Parameters()


def test_a_method_without_weights_refuses_weighted_images(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(progress=False)
    lab.add_backbone(tiny_clip)
    lab.add("even", {"train": IMAGES, "test": IMAGES.subset([])})
    lab.add("uneven", {"train": replace(IMAGES, weights=WEIGHTS), "test": IMAGES.subset([])})
    monkeypatch.setattr("rmadapter.runs.run.describe_run", lambda *words, **more: None)
    run_task(Task(data="even", shots=0, backbone=tiny_clip.name), Deaf(), lab)
    with pytest.raises(UserError, match="a method of one's own cannot weight images"):
        run_task(Task(data="uneven", shots=0, backbone=tiny_clip.name), Deaf(), lab)
