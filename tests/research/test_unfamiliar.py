"""unfamiliar.py: the scores, how they are compared and how one is chosen, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import unfamiliar
from unfamiliar import BASELINE, CHOOSE, REPORT


def encoded(*features: list[float], error: float = 0.0) -> unfamiliar.Encoded:
    table = torch.tensor(features)
    return unfamiliar.Encoded(table, table, torch.full((len(table),), error))


def test_the_scores_of_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfamiliar, "NEIGHBOURS", (1, 2))
    images, shots = encoded([1.0, 0.0], [0.6, 0.8], error=3), encoded([1.0, 0.0], [0.0, 1.0])
    weights = dict.fromkeys(("adapted", "frozen"), torch.eye(2))
    scores = unfamiliar.scores(images, shots, weights, 10.0, torch.tensor([5.0, 7.0]))
    softmax = 1 - 1 / (1 + math.exp(-2))
    energy = -math.log(math.exp(8) + math.exp(6)) / 10
    expected = {
        "max-softmax, adapted": softmax, "max-cosine, frozen": 0.2, "energy, adapted": energy,
        "MCM 1, adapted": 1 - 1 / (1 + math.exp(-0.2)), "energy 0.1, frozen": energy,
        "neighbour 1, adapted": 0.2, "neighbour 2, frozen": 0.4,
        "max-softmax, adapted + neighbour 2, frozen": softmax + 0.4,
        "max-cosine, adapted + neighbour 1, adapted": 0.4, "reconstruction": 3,
        "reconstruction, untrained": 7,
    }  # fmt: skip
    second = {name: scores[name][1].item() for name in expected}
    assert second == pytest.approx(expected, abs=1e-6)
    assert scores["neighbour 1, adapted"][0].item() == 0  # a shot itself
    assert len(scores) == 2 * (3 + 2 * len(unfamiliar.TEMPERATURES) + 2) + 2 * 2 * 2 + 2


def test_area_and_share_that_passes() -> None:
    known = torch.arange(20.0)  # the quantile of 95 % is 18.05
    assert unfamiliar.apart(known, known + 100) == (1.0, 0.0)
    assert unfamiliar.apart(known + 100, known) == (0.0, 1.0)
    assert unfamiliar.apart(known, known) == (0.5, 0.95)
    area = pytest.approx((19 + 19 + 20 + 0) / 80, abs=1e-4)
    assert unfamiliar.apart(known, torch.tensor([18.04, 18.06, 30.0, -1.0])) == (area, 0.5)


def lines_of(areas: dict[str, tuple[float, float]], data: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return two seeds and two far sets of equal means; areas: near and far by score."""
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
    lines = lines_of({BASELINE: (0.5, 0.8)}, REPORT)
    assert unfamiliar.mean(lines, "grocery", BASELINE, "far") == pytest.approx(0.8)
    assert unfamiliar.over(lines, REPORT, BASELINE) == pytest.approx(0.65)
    for line in lines:  # differences of 0.01, 0.02 ... 0.05
        more = (REPORT.index(line["data"]) + 1) / 100
        line["scores"]["s"] = [line["scores"][BASELINE][0] + more, 0]
    half = 2.776445 * math.sqrt(0.00025 / 5)  # Student's t of 4 degrees of freedom
    expected = pytest.approx((0.03, 0.03 - half, 0.03 + half, 0.0625))
    assert unfamiliar.difference(lines, "s", "far") == expected


def test_the_best_usable_score_is_chosen_on_its_own_sets() -> None:
    frozen, adapted = "neighbour 1, frozen", "neighbour 1, adapted"
    areas = {BASELINE: (0.5, 0.5), frozen: (0.6, 0.9), adapted: (0.9, 0.9)}
    lines = lines_of(areas, CHOOSE) + lines_of(dict.fromkeys(areas, (0.1, 0.1)), REPORT)
    assert unfamiliar.best(lines, areas) == adapted
    assert unfamiliar.best(lines, filter(unfamiliar.usable, areas)) == frozen


@pytest.mark.parametrize(
    ("name", "usable", "family"),
    [
        ("max-cosine, adapted", False, "max-cosine, adapted"),
        ("energy 0.1, adapted", False, "energy, adapted"),
        ("MCM 0.1, adapted", True, "MCM, adapted"),
        ("max-softmax, adapted + neighbour 4, frozen", True, None),
        ("max-softmax, adapted + neighbour 4, adapted", False, None),
        ("max-cosine, adapted + neighbour 4, frozen", False, None),
        ("reconstruction", False, "reconstruction"),
    ],
)
def test_a_score_that_not_every_method_has_is_not_usable(
    name: str, usable: bool, family: str | None
) -> None:
    assert unfamiliar.usable(name) == usable
    assert unfamiliar.family(name) == (family or name.replace(" 4", ""))


def test_the_halves_share_no_set_and_related_sets_are_no_pair() -> None:
    assert not set(CHOOSE) & set(REPORT)
    assert unfamiliar.far_of("caltech101") == ["rsscn7", "trashnet"]
    assert unfamiliar.far_of("pacs/photo") == ["grocery", "dtd10", "sign_digits", "neu_steel"]
