"""Weights of the backbone's own that a method trains: in a model that shares all the others with it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn


def with_own(model: nn.Module, own: Iterable[nn.Parameter]) -> nn.Module:
    """A copy that shares all tensors but its own, and hooks: who watches a module watches both."""
    apart = {id(parameter) for parameter in own}
    hooks = (module._forward_hooks for module in model.modules())
    every: Iterable[Any] = chain(model.parameters(), model.buffers(), hooks)
    return copy.deepcopy(model, {id(part): part for part in every if id(part) not in apart})
