"""Compare numbers that processors round differently.

Processors, thread counts and batch sizes add the products of a matrix in different orders, so a
constant that holds on one of them does not bound the others. Tests of a function compute in
float64, where rounding is a million times smaller than any mistake. Tests of float32 measure its
error against float64, on the machine that runs them, for the code under test and for a plain
computation of the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rmadapter.backbones import Backbone

EPS = torch.finfo(torch.float32).eps
FACTOR = 4  # of two equally exact computations, either may be closer by chance
SLACK = 64 * EPS  # some roundings for each of a dozen blocks, forward and backward
# float16, bfloat16 and TF32 lose 1e-3 to 1e-2; a float32 oracle that loses as much is none
USELESS = 1e-2

Values = Mapping[str, Tensor]


def double(backbone: Backbone) -> Backbone:
    """Return a copy in float64, where rounding cannot hide a difference."""
    return replace(backbone, model=copy.deepcopy(backbone.model).double())


def relative_errors(found: Values, truth: Values, share: float = 0.0) -> dict[str, float]:
    """Return the error of every tensor relative to its norm, or to `share` of the largest norm of
    all if that is larger.

    A gradient ten thousand times smaller than the largest one is a difference of large numbers,
    which rounding decides.
    """
    assert found.keys() == truth.keys()
    norms = {name: float(tensor.norm()) for name, tensor in truth.items()}
    floor = max(share * max(norms.values()), torch.finfo(torch.float64).tiny)
    return {
        name: float((found[name] - truth[name]).norm()) / max(norms[name], floor) for name in norms
    }


def assert_rounds_like(
    plain: Values, found: Values, truth: Values, share: float = 0.0, factor: float = FACTOR
) -> None:
    """Check that no tensor of `found` is farther from `truth` than a few times the worst of
    `plain`.

    It fails for a number in fewer bits, a sum that cancels, and a wrong formula, whose error does
    not shrink with the rounding.
    """
    errors = relative_errors(found, truth, share)
    worst = max(relative_errors(plain, truth, share).values())
    assert worst < USELESS, "plain float32 is too far from float64: choose other inputs"
    allowed = factor * worst + SLACK
    assert all(error <= allowed for error in errors.values()), (allowed, errors)


def assert_same_float32(found: Tensor, expected: Tensor) -> None:
    """Check float32 numbers that come from other batches, layouts or orders of adding.

    They are compared by norm, as the smallest numbers are differences of large ones. Other images,
    classes or rows differ in all digits.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert float((found - expected).detach().norm()) <= SLACK * float(expected.detach().norm())
