"""Tensors of a saved method, checked before use."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def shaped(tensors: Mapping[str, Tensor], name: str, *shape: int) -> Tensor:
    """Return one of a saved method's tensors, in float32. shape: its expected sides, -1 for any
    length.

    Raises RuntimeError, as torch does for a module's tensors, if it has another shape or no
    floating-point numbers, and KeyError if it is missing.
    """
    tensor = tensors[name]
    fits = tensor.ndim == len(shape) and all(
        want in (-1, side) for want, side in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not tensor.is_floating_point():
        expected = ", ".join("any" if side < 0 else str(side) for side in shape)
        raise RuntimeError(
            f"{name} is {tensor.dtype} of {[*tensor.shape]}, not numbers of [{expected}]"
        )
    return tensor.float()
