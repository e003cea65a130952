"""The four ideas: laws against closed forms, alarms against their promise, looks by hand."""

from __future__ import annotations

import four_ideas
import numpy as np
import pytest
from four_ideas import (
    ALARM,
    Features,
    find as find_images,
    first_of_each,
    forecast,
    looks_at_random,
    looks_by_example,
    looks_by_order,
    martingale,
    power_law,
    streams,
    tables,
    weighted,
    weights_of,
)

LABELS = np.arange(120) % 3


def features(seed: int) -> Features:
    """Return clusters, one for each class, which names point to."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 12))

    def images() -> np.ndarray:
        x = centres[LABELS] + 0.4 * rng.normal(size=(len(LABELS), 12))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    names = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    return Features(images(), LABELS, images(), LABELS, images(), names)


def test_a_power_law_is_found_again() -> None:
    law = power_law((1, 2, 3), [40 * size**-0.5 for size in (1, 2, 3)])
    assert law(16) == pytest.approx(10)
    rising = power_law((1, 2, 4), (10, 20, 40))
    assert rising(8) == pytest.approx(20)  # no law grows: the geometric mean


def test_a_martingale_rises_for_strange_scores_alone() -> None:
    rng = np.random.default_rng(0)
    raised = [martingale(rng.random(40), rng.random(150), rng).max() >= ALARM for _ in range(200)]
    assert np.mean(raised) <= 0.05
    assert martingale(rng.random(40), 1 + rng.random(20), rng).max() >= ALARM
    first = martingale(np.zeros(0), np.array([0.5]), np.random.default_rng(1))[0]
    p = np.random.default_rng(1).random()  # the rank of a lone score is drawn
    assert first == pytest.approx(np.mean([e * p ** (e - 1) for e in four_ideas.POWERS]))


def test_looks_are_counted() -> None:
    labels = np.array([0, 1] * 6)
    scores = np.where(np.arange(12)[:, None] < 8, np.eye(2)[labels], 0)
    assert looks_by_order(labels, scores) == 8
    assert looks_by_order(labels, -scores) == 10  # all but two of the class whose name is wrong
    rng = np.random.default_rng(0)
    assert 8 <= looks_at_random(labels, rng) <= 12
    assert 8 <= looks_by_example(labels, np.eye(2)[labels], rng) <= 9
    rows = first_of_each(labels, np.arange(12)[::-1], 2)
    assert rows.tolist() == [10, 8, 11, 9]


def test_a_wrong_label_weighs_least() -> None:
    one, rng = features(1), np.random.default_rng(0)
    changed = one.train_labels.copy()
    changed[:5] = (changed[:5] + 1) % 3
    weights = weights_of(one.train, changed, rng)
    assert weights.mean() == pytest.approx(1)
    assert weights[:5].max() < np.median(weights[5:])


def test_every_idea_has_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_ideas, "STREAMS", 5)
    one, other, rng = features(1), features(2), np.random.default_rng(0)
    found = {
        "forecast": forecast(one, rng),
        "stream": streams(one, [other], rng),
        "find": find_images(one, rng),
        "weights": weighted(one, rng),
    }
    assert {line["more"] for line in found["forecast"]} == {8, 16, 32}
    [kinds] = found["stream"]
    assert kinds["exchangeable"] <= 40
    [looks] = found["find"]
    assert looks["least"] == 12 <= looks["words"]
    lines = [{"idea": idea, "data": "x", **line} for idea, own in found.items() for line in own]
    shown = tables(lines)
    assert len(shown) == 4
    assert f"| x | {looks['zero-shot']:.0f} |" in shown["four ideas: find"]
