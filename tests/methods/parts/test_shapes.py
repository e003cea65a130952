"""Tensors that do not fit are told from those that do."""

from __future__ import annotations

import pytest
import torch

from rmadapter.methods.parts.shapes import shaped


def test_one_that_fits_comes_back_in_float32() -> None:
    given = torch.rand(2, 3, dtype=torch.float64)
    for shape in ((2, 3), (-1, 3), (-1, -1)):
        found = shaped({"weight": given}, "weight", *shape)
        assert found.dtype == torch.float32
        assert torch.equal(found, given.float())
    assert shaped({"alpha": torch.tensor(2.0)}, "alpha").item() == 2


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 3, 1), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        RuntimeError, match=r"weight is torch.float32 of \[2, 3\], not numbers of \["
    ):
        shaped({"weight": torch.rand(2, 3)}, "weight", *shape)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_what_is_no_real_number_is_refused(kind: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=r"weight is torch.\w+ of \[2\], not numbers of \[any\]"):
        shaped({"weight": torch.ones(2, dtype=kind)}, "weight", -1)
    with pytest.raises(KeyError):
        shaped({}, "weight", -1)
