"""Ridge regression with an intercept, from one eigendecomposition: its outputs for every penalty,
and what it gives for its own rows without them.

With rows x_i of weights w_i, centred at their weighted mean, and z_i = sqrt(w_i) x_i:

    Z Z' = U diag(s) U',   H = U diag(s / (s + penalty)) U' + sqrt(w) sqrt(w)' / sum(w)
    without a group G of rows:  y_G - f_-G(x_G) = (I - H_GG)^-1 (y_G - f(x_G))

which is exact (Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2, for one
row). Above, H_GG acts on residuals times sqrt(w).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_WEIGHT = 1e-12  # of the mean weight: a row of weight 0 counts for nothing, and has an answer


@dataclass(frozen=True, eq=False)
class Factors:
    """The eigendecomposition of a regression of N rows.

    Attributes:
        vectors: U, [N, R].
        values: s, [R], from 0 up.
        roots: Square roots [N] of the weights, whose mean is 1.
    """

    vectors: Tensor
    values: Tensor
    roots: Tensor

    @classmethod
    def of_kernel(cls, kernel: Tensor, weights: Tensor | None = None) -> Factors:
        """Decompose the inner products of all rows.

        Args:
            kernel: Inner products [N, N], not centred.
            weights: Weights [N] of the rows; None for equal ones.
        """
        roots = _roots(len(kernel), weights, kernel)
        share = roots**2 / len(roots)
        means = kernel @ share
        centred = kernel - means - means[:, None] + share @ means
        values, vectors = torch.linalg.eigh(roots[:, None] * centred * roots)
        return cls(vectors, values.clamp(min=0), roots)

    @classmethod
    def of_features(cls, x: Tensor, weights: Tensor | None = None) -> Factors:
        """Decompose features, on the side that is smaller.

        Args:
            x: Features [N, D], not centred.
            weights: As for `of_kernel`.
        """
        if len(x) <= x.shape[1]:
            return cls.of_kernel(x @ x.T, weights)
        roots = _roots(len(x), weights, x)
        z = roots[:, None] * (x - roots**2 @ x / len(x))
        values, vectors = torch.linalg.eigh((z.T @ z).double())
        kept = values > values[-1] * torch.finfo(x.dtype).eps * len(values)
        values, vectors = values[kept].to(x), vectors[:, kept].to(x)
        return cls(z @ vectors / values.sqrt(), values, roots)

    def duals(self, y: Tensor, penalty: float) -> Tensor:
        """Return A [N, C] such that f(x) = mean(y) + (x - mean(x)) X'A.

        Args:
            y: Targets [N, C].
            penalty: Lambda, above 0.
        """
        along = self._along(y) / (self.values + penalty)[:, None]
        # what no eigenvector reaches is orthogonal to every row, and adds nothing to X'A
        return self.roots[:, None] * (self.vectors @ along)

    def mean(self, y: Tensor) -> Tensor:
        """Return the weighted mean of N rows, [C] of targets [N, C]."""
        return self.roots**2 @ y / len(y)

    def left_out(self, y: Tensor, penalty: float, groups: Tensor) -> Tensor:
        """Return the outputs [N, C] for the rows, each as if fitted without the rows of its group.

        Args:
            y: Targets [N, C].
            penalty: Lambda, above 0.
            groups: Group numbers [N]; zeros are returned for the rows of a group that holds all.
        """
        if len(y) == 1:
            return torch.zeros_like(y)
        shrink = self.values / (self.values + penalty)
        smooth = self.vectors * shrink
        outputs = self.mean(y) + smooth @ self._along(y) / self.roots[:, None]
        residuals, roots = y - outputs, self.roots
        own = (smooth * self.vectors).sum(1) + roots**2 / len(roots)
        result = y - residuals / (1 - own)[:, None]
        for rows in _shared(groups):
            influence = smooth[rows] @ self.vectors[rows].T
            influence += roots[rows, None] * roots[rows] / len(roots)
            influence *= roots[rows] / roots[rows, None]
            if len(rows) == len(y):
                result[rows] = 0.0
                continue
            others = torch.eye(len(rows)).to(y) - influence
            result[rows] = y[rows] - torch.linalg.solve(others, residuals[rows])
        return result

    def _along(self, y: Tensor) -> Tensor:
        """Return the centred targets along each eigenvector, [R, C]."""
        return self.vectors.T @ (self.roots[:, None] * (y - self.mean(y)))


def other_groups(labels: Tensor, groups: Tensor) -> Tensor:
    """Return how many other groups the class of each row has, [N].

    Args:
        labels: Indices of the classes, [N].
        groups: Group numbers, [N].
    """
    of_groups = torch.stack([labels, groups]).unique(dim=1)[0]
    return torch.bincount(of_groups)[labels] - 1


def _roots(count: int, weights: Tensor | None, like: Tensor) -> Tensor:
    if weights is None:
        return like.new_ones(count)
    return (weights / weights.mean()).clamp(min=MIN_WEIGHT).to(like).sqrt()


def _shared(groups: Tensor) -> Iterator[Tensor]:
    """Yield the rows of each group of several."""
    order = groups.argsort(stable=True)
    counts = groups.unique(return_counts=True)[1]
    for rows in order.split(counts.tolist()):
        if len(rows) > 1:
            yield rows
