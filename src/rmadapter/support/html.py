"""Templates of the package's pages; needs neither torch nor the plotting code."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def template(name: str, escape: bool = True, **filters: Any) -> Any:
    """A template of the package. It escapes values for HTML, unless `escape` is off, and raises on
    missing ones.

    filters: besides Jinja2's and `count`, which marks the thousands of a number. Each template is
    loaded only once.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rmadapter", "assets"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters, count=lambda number: f"{number:,}")
    return environment.get_template(name)
