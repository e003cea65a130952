"""What a test may ask of numbers that another processor rounds in another way.

Processors, thread counts and batch sizes add the products of a matrix in different orders, so no
constant that one of them happens to meet bounds the others. Where the function is in question,
tests compute in float64, where rounding is a million times smaller than any mistake. Where float32
itself is in question, its error against float64 is measured, on the machine that runs the test, for
the code under test and for a plain way of computing the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rmadapter.backbones import Backbone

EPS = torch.finfo(torch.float32).eps
# two ways of computing are equally good, but which of them is luckier differs from one machine to
# the next
FACTOR = 4
SLACK = (
    64 * EPS
)  # some roundings for each of a dozen blocks, forward and backward, where the plain way had luck
# float16, bfloat16 and TF32 lose 1e-3 to 1e-2; a float32 oracle that loses as much is none
USELESS = 1e-2

Values = Mapping[str, Tensor]


def double(backbone: Backbone) -> Backbone:
    """The same weights in float64, where rounding cannot hide a difference."""
    return replace(backbone, model=copy.deepcopy(backbone.model).double())


def relative_errors(found: Values, truth: Values, share: float = 0.0) -> dict[str, float]:
    """Of every tensor, relative to its norm, or to `share` of the largest norm of all, if that is
    larger.

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
    """No tensor of `found` is farther from `truth` than a few times what `plain` is in its worst
    one.

    Of all tensors, because a single number may be right by luck in one of the two ways. What fails:
    a number held in fewer bits, a sum that cancels, and every wrong formula, whose error does not
    shrink with the rounding.
    """
    errors, allowed = (
        relative_errors(found, truth, share),
        max(relative_errors(plain, truth, share).values()),
    )
    assert allowed < USELESS, (
        "plain float32 is too far from float64 to judge by: choose other inputs"
    )
    allowed = factor * allowed + SLACK
    assert all(error <= allowed for error in errors.values()), (allowed, errors)


def assert_same_float32(found: Tensor, expected: Tensor) -> None:
    """The same float32 numbers from other batches, layouts or orders of adding: all of them
    together keep their digits.

    By norm, as the smallest numbers are differences of large ones. Other images, classes or rows
    differ by all digits.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert float((found - expected).detach().norm()) <= SLACK * float(expected.detach().norm())
