"""Which images are none of a model's classes: limits by hand, and shares over many draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import beta, zscore
from sklearn.metrics import roc_auc_score

from rmadapter.answers.held_out import rank
from rmadapter.answers.rejection import ODDS_WEIGHT, RejectionScore
from rmadapter.errors import UserError


def draw(images: int, rng: np.random.Generator, other: bool = False) -> tuple[np.ndarray, ...]:
    """Return probabilities [N, 2] and distances [N]; images of other classes are farther and
    doubtful."""
    sure = 0.5 + 0.5 * rng.beta(2, 4 if other else 1, images)
    return np.stack([sure, 1 - sure], 1), rng.beta(3 if other else 2, 8, images)


def test_the_score_is_the_distance_and_the_doubt_in_standard_deviations() -> None:
    table, far = draw(50, np.random.default_rng(1))
    own = RejectionScore.of(table, far, "folds")
    expected = zscore(far) - ODDS_WEIGHT * zscore(logit(table.max(1)))
    np.testing.assert_allclose(own.scores(table, far), expected, atol=1e-3)
    new, new_far = draw(300, np.random.default_rng(2))
    other, other_far = draw(300, np.random.default_rng(3), other=True)
    scores = [own.scores(new, new_far), own.scores(other, other_far)]
    assert roc_auc_score(np.repeat([0, 1], 300), np.concatenate(scores)) > 0.8


def test_certain_answers_stay_finite() -> None:
    table = np.array([[1.0, 0.0], [0.999999999, 1e-9], [0.5, 0.5]])
    own = RejectionScore.of(table, np.zeros(3), "folds")
    found = own.scores(table, np.zeros(3))
    assert np.isfinite(found).all()
    assert found[0] == found[1] < found[2]


@pytest.mark.ci
@pytest.mark.parametrize(("images", "share"), [(22, 0.1), (9, 0.25), (45, 0.05), (60, 0.1)])
def test_the_promised_share_of_own_images_is_rejected(images: int, share: float) -> None:
    """On average over draws of the own images, k / (N + 1) with the k of `rank`."""
    rng = np.random.default_rng(4)
    away = []
    for _ in range(2000):
        own = RejectionScore.of(*draw(images, rng), "held out")
        table, far = draw(20, rng)
        away.append((~own.accepts(table, far, share)).mean())
    expected = rank(images, share) / (images + 1)
    assert np.mean(away) == pytest.approx(expected, abs=4 * np.std(away) / 2000**0.5)


@pytest.mark.ci
@pytest.mark.parametrize(("images", "share"), [(22, 0.1), (45, 0.05), (100, 0.1)])
def test_more_is_rejected_in_one_draw_of_ten_at_most(images: int, share: float) -> None:
    """Of a score in fixed deviations it is the tail of Beta(k, N + 1 - k)."""
    rng = np.random.default_rng(4)
    broken = 0
    for _ in range(400):
        own = RejectionScore.of(*draw(images, rng), "held out")
        table, far = draw(1000, rng)
        broken += (~own.accepts(table, far, share)).mean() > share
    k = rank(images, share)
    assert broken / 400 == pytest.approx(beta.sf(share, k, images + 1 - k), abs=0.06)
    assert broken / 400 <= 0.1 + 0.03


def test_an_image_is_rejected_if_its_score_is_among_the_highest_of_all() -> None:
    """Ranked by the z scores of the own images and the new one together."""
    rng = np.random.default_rng(9)
    table, far = draw(30, rng)
    own = RejectionScore.of(table, far, "folds")
    new, new_far = draw(200, rng, other=True)
    found = own.accepts(new, new_far, 0.1)
    places = rank(30, 0.1)
    for row, distance, is_accepted in zip(new, new_far, found, strict=True):
        doubts = zscore(logit(np.r_[np.array(own.sure), row.max()]))
        scores = zscore(np.r_[np.array(own.distances), distance]) - ODDS_WEIGHT * doubts
        assert is_accepted == ((scores[:-1] >= scores[-1]).sum() >= places)
    assert 0 < found.sum() < 200


def test_an_image_with_the_highest_score_of_the_own_ones_is_accepted() -> None:
    own = RejectionScore((0.5, *[0.75] * 8), (0.5, *[0.25] * 8), "folds")
    table = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert own.accepts(table, np.array([0.5, 0.75]), 0.25).tolist() == [True, False]
    alike = RejectionScore((0.5,) * 22, (0.0,) * 22, "folds")
    assert alike.accepts(table, np.array([0.0, 0.1]), 0.1).tolist() == [True, False]


def test_a_share_needs_images() -> None:
    own = RejectionScore.of(*draw(44, np.random.default_rng(5)), "folds")
    with pytest.raises(UserError, match=r"5 % needs 45 images .* there are 44"):
        own.rank(0.05)
    own.rank(0.1)
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="more than 0"):
            own.rank(share)


def test_possible_shares() -> None:
    rng = np.random.default_rng(7)
    for images, shares in ((21, []), (22, [0.1]), (45, [0.05, 0.1]), (230, [0.01, 0.05, 0.1])):
        assert RejectionScore.of(*draw(images, rng), "folds").possible() == shares


def test_the_same_as_json() -> None:
    own = RejectionScore.of(*draw(30, np.random.default_rng(8)), "held out")
    assert RejectionScore.from_json(json.loads(json.dumps(own.json()))) == own
    assert own.facts == {"images": 30, "source": "held out", "grouped": False}


def test_one_image_of_each_group_counts_and_earlier_files_say_nothing() -> None:
    table, far = draw(60, np.random.default_rng(9))
    own = RejectionScore.of(table, far, "held out", np.arange(60) // 3, 1)
    assert own.facts == {"images": 20, "source": "held out", "grouped": True}
    assert RejectionScore.from_json(own.json()) == own
    assert "20 groups of" in own.promise(0.05)
    assert "estimated" not in own.promise(0.05)
    assert "estimated on the training images" in RejectionScore.of(table, far, "folds").promise(
        0.05
    )
    values = {name: value for name, value in own.json().items() if name != "grouped"}
    assert not RejectionScore.from_json(values).grouped


@pytest.mark.parametrize(
    ("sure", "distances"),
    [((), ()), ((0.5,), ()), ((1.5,), (0.1,)), ((0.5,), (2.5,)), ((0.5,), (float("nan"),)),
     ((float("nan"),), (0.1,))],
)  # fmt: skip
def test_damaged_facts_are_refused(sure: tuple[float, ...], distances: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"outside|distance"):
        RejectionScore(sure, distances, "folds")
