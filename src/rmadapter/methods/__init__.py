"""The methods: one paper, one file. `registry` finds them by name, and `parts` is what they
share."""

from rmadapter.methods.registry import (
    DEFAULT,
    EFFORTS,
    METHODS,
    changed_settings,
    check_named,
    check_text,
    entry_points,
    is_outside,
    load_method,
    may_run,
    name_with_settings,
    need_text,
    published_settings,
    traits_of,
)

__all__ = [
    "DEFAULT",
    "EFFORTS",
    "METHODS",
    "changed_settings",
    "check_named",
    "check_text",
    "entry_points",
    "is_outside",
    "load_method",
    "may_run",
    "name_with_settings",
    "need_text",
    "published_settings",
    "traits_of",
]
