"""What would make a processor wait for its GPU, found without one: reading a value that is on the
GPU, or copying a value to it from memory that is not pinned."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmadapter import encoders

READS = {
    "tolist", "item", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__",
}  # fmt: skip
# Operators whose result has a size that depends on values, and those that return a number.
BY_VALUE = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::equal",
    "aten::is_nonzero", "aten::repeat_interleave",
}  # fmt: skip
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
FROM_PYTHON = {"tensor", "as_tensor"}


class Storages:
    """A set of storages, which tensors share with their views."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        for one in tensors:
            weak = StorageWeakRef(one.untyped_storage())
            self._known[weak.cdata] = weak  # kept, so that no other storage gets its address

    def __contains__(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self._known


class Device:
    """Tensors that stand for those on a GPU: some to begin with, what is moved by `to`, and all
    that is computed from them.

    either: tensors made with `device=`, on a processor the same for both, and what is computed from
    these alone. waits: what would wait for the GPU while `watching`, by name.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.held, self.either = Storages(), Storages()
        self.waits: list[str] = []
        self.watching = False
        self.held.add(tensors)

    def moved(self, x: Tensor) -> Tensor:
        """Return a copy on the device."""
        copy = x.detach().clone().requires_grad_(x.requires_grad)
        self.held.add([copy])
        return copy

    def send(self, x: Tensor, device: torch.device) -> Tensor:
        """Stand in for `encoders.send`."""
        with torch._C.DisableTorchFunction():
            return x if x in self.held else self.moved(x)

    def wait(self, name: str) -> None:
        if self.watching:
            self.waits.append(name)


@contextmanager
def on(device: Device) -> Iterator[None]:
    """Follow tensors within the block."""
    real = encoders.send
    with pytest.MonkeyPatch.context() as patch:
        for name, file in list(sys.modules.items()):
            if name.startswith("rmadapter") and getattr(file, "send", None) is real:
                patch.setattr(file, "send", device.send)
        with _Functions(device), _Operators(device):
            yield


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Functions(TorchFunctionMode):
    """Functions that on a processor run no operator, or one that does not know the device."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, kwargs, name = self.device, kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and name in READS and first in device.held:
            device.wait(name)
        watching = device.watching
        if name == "one_hot" and len(args) + len(kwargs) > 1:
            device.watching = False  # of a number of classes, it reads values on a processor alone
        made = func(*args, **kwargs)
        device.watching = watching
        if first is None and kwargs.get("device") not in (None, "cpu"):
            if name in FROM_PYTHON:
                device.wait(f"{name} of numbers")
            device.either.add(_tensors(made))
        elif first is not None and name == "to" and first not in device.held:
            given = [*args[1:], *kwargs.values()]
            places = [x for x in given if isinstance(x, torch.device)]
            if places or any(x in device.held for x in _tensors(given)):
                if first not in device.either:
                    device.wait("to")
                made = device.moved(made)
        return made


class _Operators(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, inputs, name = self.device, _tensors(args, kwargs), func._schema.name
        held = [x in device.held for x in inputs]
        apart = [not on and x not in device.either for x, on in zip(inputs, held, strict=True)]
        if any(held):
            if name in BY_VALUE:
                device.wait(name)
            if name in INDEXED and any(x.dtype == torch.bool for x in inputs[1:]):
                device.wait(f"{name} by a mask")
            if name in INDEXED and held[0] and any(apart):
                device.wait(f"{name} by places on the processor")
            if name == "aten::copy_" and any(apart):
                device.wait(name)
        output = func(*args, **(kwargs or {}))
        if any(held):
            device.held.add(_tensors(output))
        elif not all(apart):
            device.either.add(_tensors(output))
        return output
