"""Templates of the package's pages; needs neither torch nor the plotting code."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def template(name: str, escape: bool = True, **filters: Any) -> Any:
    """Load a template of the package, once. It escapes values for HTML and raises on missing ones.

    filters: added to Jinja2's and to `count`, which marks the thousands of a number.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rmadapter", "assets"), autoescape=escape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(filters, count=lambda number: f"{number:,}")
    return environment.get_template(name)
