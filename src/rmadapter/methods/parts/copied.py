"""Copy a model such that only the weights that a method trains are copied."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn


def with_own(model: nn.Module, own: Iterable[nn.Parameter]) -> nn.Module:
    """Return a copy that shares all tensors but `own`, and all forward hooks: a hook on one model
    also sees the other."""
    apart = {id(parameter) for parameter in own}
    hooks = (module._forward_hooks for module in model.modules())
    every: Iterable[Any] = chain(model.parameters(), model.buffers(), hooks)
    return copy.deepcopy(model, {id(part): part for part in every if id(part) not in apart})
