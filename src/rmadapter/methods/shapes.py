"""Tensors of a saved method, checked before they are computed with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def shaped(tensors: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    """One of the tensors in float32. shape: its sides, -1 for one of any length.

    Raises RuntimeError, as torch does of a module's tensors, where it has another shape or holds no real numbers, and
    KeyError where it is missing.
    """
    tensor = tensors[name]
    fits = tensor.ndim == len(shape) and all(want in (-1, side) for want, side in zip(shape, tensor.shape, strict=True))
    if not fits or not tensor.is_floating_point():
        wanted = ", ".join("any" if side < 0 else str(side) for side in shape)
        raise RuntimeError(f"{name} is {tensor.dtype} of {[*tensor.shape]}, not numbers of [{wanted}]")
    return tensor.float()
