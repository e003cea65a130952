"""Ridge regression with exact leave-one-group-out answers, against explicit refits in NumPy and
scikit-learn's regression."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from rmadapter.regression import Factors, other_groups

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SIZES = [(11, 4), (11, 11), (11, 30)]  # rows, features
GROUPS = np.array([0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 6])  # those of 1 and 6 over two classes
LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0, 1, 2, 0])
WEIGHTS = {
    "equal": None,
    "unequal": np.array([1.0, 3, 0.5, 2, 1, 1, 4, 0.1, 1, 2, 5]),
    "zero": np.array([1.0, 3, 0, 2, 1, 0, 4, 1, 1, 2, 5]),
}


class Case(NamedTuple):
    """A regression with 11 rows."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None

    @classmethod
    def draw(cls, size: int, weights: np.ndarray | None, classes: int = 3) -> Case:
        x = np.random.default_rng(size).normal(size=(11, size)) + 0.5
        return cls(
            x / np.linalg.norm(x, axis=1, keepdims=True), np.eye(classes)[LABELS % classes], weights
        )

    def factors(self, *, kernel: bool = False) -> Factors:
        x, weights = torch.from_numpy(self.x), self.weights
        given = None if weights is None else torch.from_numpy(weights)
        return Factors.of_kernel(x @ x.T, given) if kernel else Factors.of_features(x, given)

    def outputs(self, penalty: float, kept: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Fit to some rows by the normal equations; return outputs for others. Weights are 1 on
        average over all rows, whatever is left out."""
        weights = np.ones(11) if self.weights is None else 11 * self.weights / self.weights.sum()
        x, y, w = self.x[kept], self.y[kept], weights[kept]
        means = [np.average(part, axis=0, weights=w) for part in (x, y)]
        z = x - means[0]
        left = z.T @ (w[:, None] * z) + penalty * np.eye(x.shape[1])
        slopes = np.linalg.solve(left, z.T @ (w[:, None] * (y - means[1])))
        found: np.ndarray = means[1] + (self.x[asked] - means[0]) @ slopes
        return found

    def left_out(self, penalty: float, groups: np.ndarray) -> np.ndarray:
        """Refit once for each row."""
        rows = [
            self.outputs(penalty, groups != group, np.array([row]))
            for row, group in enumerate(groups)
        ]
        return np.concatenate(rows)


def left_out(factors: Factors, y: np.ndarray, penalty: float, groups: np.ndarray) -> np.ndarray:
    return factors.left_out(torch.from_numpy(y), penalty, torch.from_numpy(groups)).numpy()


@pytest.fixture(params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param[1])


@pytest.fixture(params=WEIGHTS.values(), ids=WEIGHTS)
def weights(request: pytest.FixtureRequest) -> np.ndarray | None:
    found: np.ndarray | None = request.param
    return found


@pytest.fixture
def penalties(weights: np.ndarray | None) -> list[float]:
    """A weight of zero is taken for 1e-12, which counts beside small penalties."""
    return [1.0, 100.0] if weights is WEIGHTS["zero"] else [1e-2, 1.0, 100.0]


@pytest.mark.parametrize("kernel", [False, True])
def test_the_duals_give_the_outputs_of_the_normal_equations(
    size: int, weights: np.ndarray | None, penalties: list[float], kernel: bool
) -> None:
    case = Case.draw(size, weights)
    factors, y = case.factors(kernel=kernel), torch.from_numpy(case.y)
    x, every = torch.from_numpy(case.x), np.arange(11)
    for penalty in penalties:
        slopes = x.T @ factors.duals(y, penalty)
        found = factors.mean(y) + (x - factors.mean(x)) @ slopes
        np.testing.assert_allclose(found.numpy(), case.outputs(penalty, every, every), **EXACT)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("groups", [np.arange(11), GROUPS], ids=["single rows", "groups"])
def test_what_is_left_out_equals_refits(
    size: int,
    weights: np.ndarray | None,
    penalties: list[float],
    groups: np.ndarray,
    kernel: bool,
) -> None:
    case = Case.draw(size, weights)
    factors = case.factors(kernel=kernel)
    for penalty in penalties:
        found = left_out(factors, case.y, penalty, groups)
        np.testing.assert_allclose(found, case.left_out(penalty, groups), **EXACT)


def test_a_direction_of_little_variance_counts(size: int) -> None:
    """Beside a small penalty; its eigenvalue is a millionth of the largest."""
    drawn = Case.draw(size, WEIGHTS["unequal"])
    case = drawn._replace(x=drawn.x * np.array([3e-3, *[1] * (size - 1)]))
    found = left_out(case.factors(), case.y, 1e-5, np.arange(11))
    expected = case.left_out(1e-5, np.arange(11))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_two_classes_and_any_numbers_of_groups(size: int) -> None:
    """Groups are named by any numbers, and not in the order of the rows."""
    case = Case.draw(size, WEIGHTS["unequal"], classes=2)
    groups = np.array([70, 3, 3, 9, 70, 9, 9, 1, 5, 70, 2])
    found = left_out(case.factors(), case.y, 0.3, groups)
    np.testing.assert_allclose(found, case.left_out(0.3, groups), **EXACT)
    np.testing.assert_allclose(found.sum(1), 1, **EXACT)


def test_a_fit_is_scikit_learns(size: int, weights: np.ndarray | None) -> None:
    case = Case.draw(size, weights)
    factors, x, y = case.factors(), torch.from_numpy(case.x), torch.from_numpy(case.y)
    each = None if weights is None else 11 * weights / weights.sum()
    oracle = Ridge(alpha=0.7).fit(case.x, case.y, sample_weight=each)
    slopes = (x.T @ factors.duals(y, 0.7)).T.numpy()
    np.testing.assert_allclose(slopes, oracle.coef_, **EXACT)
    intercept = factors.mean(y).numpy() - slopes @ factors.mean(x).numpy()
    np.testing.assert_allclose(intercept, oracle.intercept_, **EXACT)


def test_float32_is_close_to_float64(size: int) -> None:
    """As where there are too many rows for their kernel."""
    case = Case.draw(size, WEIGHTS["unequal"])
    x = torch.from_numpy(case.x).float()
    factors = Factors.of_features(x, torch.from_numpy(WEIGHTS["unequal"]))
    found = factors.left_out(torch.from_numpy(case.y).float(), 1.0, torch.from_numpy(GROUPS))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), case.left_out(1.0, GROUPS), atol=1e-4)


@pytest.mark.parametrize("size", [2, 30])
def test_rows_that_are_all_equal_give_the_mean(size: int) -> None:
    x, y = torch.ones(11, size, dtype=torch.float64), torch.eye(3).double()[LABELS]
    for factors in (Factors.of_features(x), Factors.of_kernel(x @ x.T)):
        assert not factors.values.gt(1e-12).any()
        slopes = x.T @ factors.duals(y, 1e-3)
        torch.testing.assert_close(slopes, torch.zeros_like(slopes), atol=1e-7, rtol=0)
        found = factors.left_out(y, 1e-3, torch.arange(11))
        torch.testing.assert_close(found, (y.sum(0) - y) / 10)


@pytest.mark.parametrize("count", [1, 2, 11])
def test_without_any_other_row_the_answers_are_zero(count: int) -> None:
    case = Case.draw(4, None)
    factors = Factors.of_features(torch.from_numpy(case.x[:count]))
    found = left_out(factors, case.y[:count], 0.1, np.full(count, 4))
    np.testing.assert_array_equal(found, np.zeros((count, 3)))


def test_other_groups_of_a_class() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    groups = torch.tensor([5, 5, 2, 2, 2, 9, 0, 1])
    # the first class has groups 5 and 2, the second 2 alone, in two images
    assert other_groups(labels, groups).tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
