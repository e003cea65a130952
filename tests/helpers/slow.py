"""Mark tests, or some parameters of a test, that `make test` leaves out.

`ci` is for what .ci/run runs, too; `slow` for what only `make test-all` runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# One method of each kind: no training, a probe, a cache, prompts, deep prompts, adapters, low rank,
# test time.
ONE_OF_EACH = (
    "zero-shot", "linear-probe", "tip-adapter-f", "coop", "maple", "rmadapter", "rmadapter-plus",
    "clip-lora", "tda",
)  # fmt: skip


def slow_except(values: Iterable[Any], *fast: object) -> list[Any]:
    """Return the parameters, all but `fast` marked as slow.

    A tuple holds several parameters, of which the first counts.
    """
    return _marked(values, fast, pytest.mark.slow)


def ci_except(values: Iterable[Any], *fast: object) -> list[Any]:
    """Return the parameters, all but `fast` marked as for CI, as `slow_except` does."""
    return _marked(values, fast, pytest.mark.ci)


def _marked(
    values: Iterable[Any], fast: tuple[object, ...], mark: pytest.MarkDecorator
) -> list[Any]:
    marked = []
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        marked.append(pytest.param(*parts, marks=() if parts[0] in fast else mark))
    return marked
