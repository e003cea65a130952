"""A pretend GPU: its tensors live in the processor's memory, but count as those of another device.

As on a GPU, these raise: an operation on tensors of both devices, except on single numbers and by
indices; a processor's generator of random numbers; `numpy()`; what no longer fits, within
`limited`; and float64, within `without_float64`. Autocast follows CUDA's lists. Random numbers are
the processor's own, so that results can be compared with its; nothing runs at the same time, and
nothing is fast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from rmadapter.support import machine

NAME = "pretend"
aten = torch.ops.aten

# Of torch's autocast_mode.h: what CUDA computes in the lower format, and in float32.
LOWER = (
    "conv1d", "conv2d", "conv3d", "convolution", "prelu", "addmm", "addmv", "addr", "matmul",
    "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul",
    "linalg_multi_dot", "scaled_dot_product_attention",
)  # fmt: skip
FULL = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal",
    "rsqrt", "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus",
    "layer_norm", "native_layer_norm", "group_norm", "cosine_similarity", "nll_loss", "nll_loss2d",
    "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp", "prod",
    "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "sum", "sum.dim_IntList", "norm.Scalar", "norm.ScalarOpt_dim",
)  # fmt: skip
# Questions about the shape of a tensor, which its twin in the processor's memory answers, since
# operations such as `squeeze_` change it in place.
SHAPE = {
    aten.size.default: Tensor.size,
    aten.sym_size.default: Tensor.size,
    aten.stride.default: Tensor.stride,
    aten.sym_stride.default: Tensor.stride,
    aten.dim.default: Tensor.dim,
    aten.numel.default: Tensor.numel,
    aten.sym_numel.default: Tensor.numel,
    aten.storage_offset.default: Tensor.storage_offset,
    aten.sym_storage_offset.default: Tensor.storage_offset,
    aten.is_contiguous.default: Tensor.is_contiguous,
    aten.is_contiguous.memory_format: lambda x, kind: x.is_contiguous(memory_format=kind),
    aten.is_strides_like_format.default: lambda x, kind: x.is_contiguous(memory_format=kind),
    aten.is_non_overlapping_and_dense.default: lambda x: True,
}
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Memory:
    """Bytes of the tensors that were made within `limited` and are still held."""

    def __init__(self, limit: float) -> None:
        self.limit, self.used, self.peak = limit, 0, 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def take(self, x: Tensor) -> None:
        """Count a tensor, unless it shares the memory of one that counts already."""
        storage = x.untyped_storage()
        known = self._held.get(storage._cdata)
        if known and not known[0].expired():
            return
        self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.used += storage.nbytes()
        if self.used > min(self.limit, self.peak):
            self._held = {key: one for key, one in self._held.items() if not one[0].expired()}
            self.used = sum(size for _, size in self._held.values())
        if self.used > self.limit:
            raise torch.OutOfMemoryError(f"{NAME} out of memory: {self.used} bytes of {self.limit}")
        self.peak = max(self.peak, self.used)


_limits: list[Memory] = []


@contextmanager
def limited(limit: float = float("inf")) -> Iterator[Memory]:
    """Let the device have as many bytes for what is made within the block."""
    _limits.append(Memory(limit))
    try:
        yield _limits[-1]
    finally:
        _limits.pop()


_no_float64: list[bool] = []


@contextmanager
def without_float64() -> Iterator[None]:
    """Let the device lack float64 within the block, as Apple's does."""
    _no_float64.append(True)
    try:
        yield
    finally:
        _no_float64.pop()


class PretendTensor(torch.Tensor):
    """A tensor of the device; `twin` is that of the processor that has its numbers."""

    twin: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, twin: Tensor) -> PretendTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            twin.shape,
            strides=twin.stride(),
            dtype=twin.dtype,
            layout=twin.layout,
            device=f"{NAME}:0",
            dispatch_sizes_strides_policy="sizes",
        )

    def __init__(self, twin: Tensor) -> None:
        if _no_float64 and twin.dtype == torch.float64:
            raise TypeError(f"Cannot convert a {NAME} tensor to float64 dtype: it has none")
        self.twin = twin
        for memory in _limits:
            memory.take(twin)

    @property
    def data(self) -> Any:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Any) -> None:
        """Take another tensor's numbers, and its number format."""
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.twin = value.twin

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"{NAME}({self.twin!r})"

    def tolist(self) -> Any:
        return self.twin.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy: use cpu() first")

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _twin(x: Any) -> Any:
    return x.twin if isinstance(x, PretendTensor) else x


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation of the device on the twins, on the processor."""
    if op in SHAPE:
        return SHAPE[op](_twin(args[0]), *args[1:], *kwargs.values())
    name, device = op._schema.name, kwargs.get("device")
    leaves = tree_leaves((args, kwargs))
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if name == "aten::copy_":
        _twin(args[0]).copy_(_twin(args[1]))
        return args[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    own = {id(x.twin): x for x in tensors if isinstance(x, PretendTensor)}
    others = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim()]
    if others and name not in INDEXED:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu: {name} of {tuple(others[0].shape)}"
        )
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    made = op(*tree_map(_twin, args), **tree_map(_twin, kwargs))
    if device is not None and torch.device(device).type == "cpu":
        return made

    def back(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return own[id(x)] if id(x) in own else PretendTensor(x)

    return tree_map(back, made)


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return PretendTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _twin(target).copy_(_twin(source))
    return target


def _casting(op: Any, lower: bool) -> Callable[..., Any]:
    """Return an operation as autocast runs it."""

    def cast(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        if x.device.type != NAME:
            return x
        return x.to(torch.get_autocast_dtype(NAME) if lower else torch.float32)

    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


class _Module(backend_registration._DummyBackendModule):
    """What torch asks `torch.pretend` for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        """Leave the processor's state alone: torch restores it by itself."""

    def manual_seed(self, seed: int) -> None:
        """Seed nothing: the processor's generator is seeded beside this one."""

    manual_seed_all = manual_seed


def _register() -> list[torch.library.Library]:
    """Make torch know the device; returns what must be kept for as long."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("empty.memory_format", _empty, "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    kernels.impl("_copy_from_and_resize", _copy_from, "PrivateUse1")
    for names, lower in ((LOWER, True), (FULL, False)):
        for name in names:
            packet, _, overload = name.partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            kernels.impl(name, _casting(op, lower), "AutocastPrivateUse1")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [kernels, others]


_kept = _register()


def find_device(name: str = "auto") -> torch.device:
    """Find the device by its name and as the fastest; others as the product does."""
    return torch.device(NAME) if name in ("auto", NAME) else _find_device(name)


_find_device = machine.find_device


@contextmanager
def plugged_in() -> Iterator[torch.device]:
    """Let the product find the device within the block."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    # as on a GPU, a parameter stays the same object when its module moves
    torch.__future__.set_swap_module_params_on_conversion(True)
    _exchange(_find_device, find_device)
    try:
        yield torch.device(NAME)
    finally:
        _exchange(find_device, _find_device)  # also in files that were imported meanwhile
        torch.__future__.set_swap_module_params_on_conversion(before)


def _exchange(old: Callable[..., object], new: Callable[..., object]) -> None:
    for name, file in list(sys.modules.items()):
        if name.startswith("rmadapter") and getattr(file, "find_device", None) is old:
            file.find_device = new  # type: ignore[attr-defined]
