"""Templates of the package's pages, without torch and without what draws."""

from __future__ import annotations

from typing import Any


def template(name: str, escape: bool = True, **filters: Any) -> Any:
    """A template of the package, which escapes what it is given, for HTML, and refuses what it is not given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rmadapter", "assets"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
