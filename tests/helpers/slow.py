"""Mark some parameters of a test as slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(values: Iterable[Any], *fast: object) -> list[Any]:
    """Return the parameters, all but `fast` marked as slow.

    A tuple holds several parameters, of which the first counts.
    """
    marked = []
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        marked.append(pytest.param(*parts, marks=() if parts[0] in fast else pytest.mark.slow))
    return marked
