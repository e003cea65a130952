"""tools/unfamiliar.py: the scores by hand, how they are compared, and that it goes on where it
was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import unfamiliar


def encoded(*features: list[float], error: float = 0.0) -> unfamiliar.Encoded:
    table = torch.tensor(features)
    return unfamiliar.Encoded(table, table, torch.full((len(table),), error))


def test_the_scores_of_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfamiliar, "NEIGHBOURS", (1, 2))
    images, shots = encoded([1.0, 0.0], [0.6, 0.8], error=3), encoded([1.0, 0.0], [0.0, 1.0])
    weights = dict.fromkeys(("adapted", "frozen"), torch.eye(2))
    found = unfamiliar.scores(images, shots, weights, 10.0, torch.tensor([5.0, 7.0]))
    second = {name: values[1].item() for name, values in found.items()}
    softmax = 1 - 1 / (1 + math.exp(-2))
    expected = {
        "max-softmax, adapted": softmax, "max-cosine, frozen": 0.2,
        "energy, adapted": -math.log(math.exp(8) + math.exp(6)) / 10,
        "MCM 1, adapted": 1 - 1 / (1 + math.exp(-0.2)),
        "energy 0.1, frozen": -math.log(math.exp(8) + math.exp(6)) / 10,
        "neighbour 1, adapted": 0.2, "neighbour 2, frozen": 0.4,
        "max-softmax, adapted + neighbour 2, frozen": softmax + 0.4,
        "max-cosine, adapted + neighbour 1, adapted": 0.4, "reconstruction": 3,
        "reconstruction, untrained": 7,
    }  # fmt: skip
    assert {name: second[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["neighbour 1, adapted"][0].item() == 0  # a shot itself
    assert len(found) == 2 * (3 + 2 * len(unfamiliar.TEMPERATURES) + 2) + 2 * 2 * 2 + 2


def test_area_and_what_passes() -> None:
    known = torch.arange(20.0)  # the quantile of 95 % is 18.05
    assert unfamiliar.apart(known, known + 100) == (1.0, 0.0)
    assert unfamiliar.apart(known + 100, known) == (0.0, 1.0)
    assert unfamiliar.apart(known, known) == (0.5, 0.95)
    assert unfamiliar.apart(known, torch.tensor([18.04, 18.06, 30.0, -1.0])) == (
        pytest.approx((19 + 19 + 20 + 0) / 80, abs=1e-4),
        0.5,
    )


def made(areas: dict[str, tuple[float, float]], data: tuple[str, ...]) -> list[dict[str, Any]]:
    """Two seeds and two far sets of equal means; areas: near and far by score."""
    return [
        {
            "data": name, "seed": seed, "far": far,
            "scores": {s: [p[bool(far)] + shift, 0.5] for s, p in areas.items()},
        }
        for name in data
        for seed, shift in ((1, -0.05), (2, 0.05))
        for far in ("", "x", "y")
    ]  # fmt: skip


def test_near_and_far_count_the_same_and_a_set_is_one_observation() -> None:
    lines = made({unfamiliar.BASELINE: (0.5, 0.8)}, unfamiliar.REPORT)
    assert unfamiliar.mean(lines, "grocery", unfamiliar.BASELINE, "far") == pytest.approx(0.8)
    assert unfamiliar.over(lines, unfamiliar.REPORT, unfamiliar.BASELINE) == pytest.approx(0.65)
    for place, data in enumerate(unfamiliar.REPORT):  # differences of 0.01, 0.02 ... 0.05
        for line in lines:
            if line["data"] == data:
                line["scores"]["s"] = [
                    line["scores"][unfamiliar.BASELINE][0] + (place + 1) / 100,
                    0,
                ]
    middle, low, high, p = unfamiliar.difference(lines, "s", "far")
    half = 2.776445 * math.sqrt(0.00025 / 5)  # Student's t of 4 degrees of freedom
    assert (middle, low, high, p) == pytest.approx((0.03, 0.03 - half, 0.03 + half, 0.0625))


def test_the_score_is_chosen_on_the_sets_for_that_among_what_any_method_has() -> None:
    areas = {
        unfamiliar.BASELINE: (0.5, 0.5),
        "neighbour 1, frozen": (0.6, 0.9),
        "neighbour 1, adapted": (0.9, 0.9),
    }
    lines = made(areas, unfamiliar.CHOOSE) + made(
        dict.fromkeys(areas, (0.1, 0.1)), unfamiliar.REPORT
    )
    assert unfamiliar.best(lines, areas) == "neighbour 1, adapted"
    assert unfamiliar.best(lines, filter(unfamiliar.usable, areas)) == "neighbour 1, frozen"
    usable = {
        "max-cosine, adapted": False, "energy, adapted": False, "MCM 0.1, adapted": True,
        "max-softmax, adapted + neighbour 4, frozen": True,
        "max-softmax, adapted + neighbour 4, adapted": False,
        "max-cosine, adapted + neighbour 4, frozen": False, "energy 0.1, adapted": False,
        "reconstruction": False,
    }  # fmt: skip
    assert {name: unfamiliar.usable(name) for name in usable} == usable
    assert (
        unfamiliar.family("max-softmax, adapted + neighbour 16, frozen")
        == "max-softmax, adapted + neighbour, frozen"
    )
    assert (
        unfamiliar.family("energy 0.1, adapted")
        == unfamiliar.family("energy, adapted")
        == "energy, adapted"
    )


def test_the_halves_share_no_set_and_related_ones_are_no_pair() -> None:
    assert not set(unfamiliar.CHOOSE) & set(unfamiliar.REPORT)
    assert unfamiliar.far_of("caltech101") == ["rsscn7", "trashnet"]
    assert unfamiliar.far_of("pacs/photo") == ["grocery", "dtd10", "sign_digits", "neu_steel"]
