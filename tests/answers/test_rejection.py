"""Which images are none of a model's classes: limits by hand, and shares over many draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import zscore
from sklearn.metrics import roc_auc_score

from rmadapter.answers.rejection import ODDS, Familiarity
from rmadapter.errors import UserError


def draw(images: int, rng: np.random.Generator, strange: bool = False) -> tuple[np.ndarray, ...]:
    """Return probabilities [N, 2] and distances [N]; strange images are farther and doubtful."""
    sure = 0.5 + 0.5 * rng.beta(2, 4 if strange else 1, images)
    return np.stack([sure, 1 - sure], 1), rng.beta(3 if strange else 2, 8, images)


def test_strangeness_is_the_distance_and_the_doubt_in_standard_deviations() -> None:
    table, far = draw(50, np.random.default_rng(1))
    own = Familiarity.of(table, far, "folds")
    expected = zscore(far) - ODDS * zscore(logit(table.max(1)))
    np.testing.assert_allclose(own.strangeness(table, far), expected, atol=1e-3)
    new, new_far = draw(300, np.random.default_rng(2))
    other, other_far = draw(300, np.random.default_rng(3), strange=True)
    scores = [own.strangeness(new, new_far), own.strangeness(other, other_far)]
    assert roc_auc_score(np.repeat([0, 1], 300), np.concatenate(scores)) > 0.8


def test_certain_answers_stay_finite() -> None:
    table = np.array([[1.0, 0.0], [0.999999999, 1e-9], [0.5, 0.5]])
    own = Familiarity.of(table, np.zeros(3), "folds")
    found = own.strangeness(table, np.zeros(3))
    assert np.isfinite(found).all()
    assert found[0] == found[1] < found[2]


@pytest.mark.parametrize(("images", "share"), [(9, 0.1), (3, 0.25), (19, 0.05), (60, 0.1)])
def test_the_promised_share_of_own_images_is_turned_away(images: int, share: float) -> None:
    """On average over draws of the own images: k / (N + 1), k = floor((N + 1) share)."""
    rng = np.random.default_rng(4)
    away = []
    for _ in range(2000):
        own = Familiarity.of(*draw(images, rng), "held out")
        table, far = draw(20, rng)
        away.append((~own.familiar(table, far, own.strangest(share), 2)).mean())
    expected = int((images + 1) * share + 1e-9) / (images + 1)
    assert np.mean(away) == pytest.approx(expected, abs=4 * np.std(away) / 2000**0.5)


def test_an_image_is_strange_if_it_is_among_the_strangest_of_all() -> None:
    """Ranked by the z scores of the own images and the new one together."""
    rng = np.random.default_rng(9)
    table, far = draw(30, rng)
    own = Familiarity.of(table, far, "folds")
    new, new_far = draw(200, rng, strange=True)
    found = own.familiar(new, new_far, 3, 2)
    for row, distance, is_familiar in zip(new, new_far, found, strict=True):
        doubts = zscore(logit(np.r_[np.array(own.sure), row.max()]))
        strange = zscore(np.r_[np.array(own.distances), distance]) - ODDS * doubts
        assert is_familiar == ((strange[:-1] >= strange[-1]).sum() >= 3)
    assert 0 < found.sum() < 200


def test_an_image_as_strange_as_the_strangest_own_one_is_familiar() -> None:
    own = Familiarity((0.5, 0.75, 0.75), (0.5, 0.25, 0.25), "folds")
    table = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert own.familiar(table, np.array([0.5, 0.75]), 1, 2).tolist() == [True, False]
    alike = Familiarity((0.5,) * 9, (0.0,) * 9, "folds")
    assert alike.familiar(table, np.array([0.0, 0.1]), 1, 2).tolist() == [True, False]


def test_a_share_needs_images() -> None:
    own = Familiarity.of(*draw(18, np.random.default_rng(5)), "folds")
    with pytest.raises(UserError, match=r"5 % needs 19 images .* there are 18"):
        own.strangest(0.05)
    own.strangest(0.1)
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="more than 0"):
            own.strangest(share)


def test_images_of_added_classes_are_never_strange() -> None:
    own = Familiarity.of(*draw(60, np.random.default_rng(6)), "folds")
    table = np.array([[0.6, 0.4, 0.0], [0.3, 0.2, 0.5]])
    assert own.familiar(table, np.ones(2), own.strangest(0.1), 2).tolist() == [False, True]
    assert own.familiar(table, np.ones(2), own.strangest(0.1), 3).tolist() == [False, False]


def test_possible_shares() -> None:
    rng = np.random.default_rng(7)
    for images, shares in ((8, []), (9, [0.1]), (19, [0.05, 0.1]), (99, [0.01, 0.05, 0.1])):
        assert Familiarity.of(*draw(images, rng), "folds").possible() == shares


def test_the_same_as_json() -> None:
    own = Familiarity.of(*draw(30, np.random.default_rng(8)), "held out")
    assert Familiarity.from_json(json.loads(json.dumps(own.json()))) == own
    assert own.facts == {"images": 30, "source": "held out", "grouped": False}


def test_one_image_of_each_group_counts_and_earlier_files_say_nothing() -> None:
    table, far = draw(60, np.random.default_rng(9))
    own = Familiarity.of(table, far, "held out", np.arange(60) // 3, 1)
    assert own.facts == {"images": 20, "source": "held out", "grouped": True}
    assert Familiarity.from_json(own.json()) == own
    assert "20 groups of" in own.promise(0.05)
    assert "estimated" not in own.promise(0.05)
    assert "estimated on folds" in Familiarity.of(table, far, "folds").promise(0.05)
    values = {name: value for name, value in own.json().items() if name != "grouped"}
    assert not Familiarity.from_json(values).grouped


@pytest.mark.parametrize(
    ("sure", "distances"),
    [((), ()), ((0.5,), ()), ((1.5,), (0.1,)), ((0.5,), (2.5,)), ((0.5,), (float("nan"),)),
     ((float("nan"),), (0.1,))],
)  # fmt: skip
def test_damaged_facts_are_refused(sure: tuple[float, ...], distances: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"outside|distance"):
        Familiarity(sure, distances, "folds")
