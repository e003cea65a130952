"""A GPU's rules of mixed precision on a processor: float32 operations, and no mixed formats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Of torch's autocast_mode.h: functions in float32 that methods use, and those that only a
# processor's autocast brings to one format.
FULL = (
    "layer_norm", "group_norm", "norm", "linalg_vector_norm", "vector_norm", "normalize",
    "cosine_similarity", "exp", "log", "pow", "rsqrt", "sum", "cumsum", "softmax", "log_softmax",
    "l1_loss", "kl_div", "cross_entropy",
)  # fmt: skip
UNMIXED = ("index_copy", "index_copy_", "gather", "scatter", "index_select")


def _full(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.half) else x


class GpuRules(TorchFunctionMode):
    """A mode in which the processor's autocast follows a GPU's rules."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not torch.is_autocast_enabled("cpu") or name not in (*FULL, *UNMIXED):
            return func(*args, **kwargs)
        if name in FULL:
            args, kwargs = tree_map(_full, args), tree_map(_full, kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs)
