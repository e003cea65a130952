"""Templates of the package's pages, without torch and without what draws."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def template(name: str, escape: bool = True, **filters: Any) -> Any:
    """A template of the package, which escapes what it is given, for HTML, and refuses what it is not given.

    filters: besides those of Jinja2 and `count`, a number with its thousands marked. One template is one object.
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
