"""The methods: one paper, one file. `registry` finds them by name, and `parts` is what they
share."""

from rmadapter.methods.registry import (
    AUTO,
    DEFAULT,
    EFFORTS,
    FOR_NEW_CLASSES,
    METHODS,
    ON_FEATURES,
    changed_settings,
    check_named,
    default_for,
    entry_points,
    explain_effort,
    is_outside,
    load_method,
    may_run,
    name_with_settings,
    published_settings,
)

__all__ = [
    "AUTO",
    "DEFAULT",
    "EFFORTS",
    "FOR_NEW_CLASSES",
    "METHODS",
    "ON_FEATURES",
    "changed_settings",
    "check_named",
    "default_for",
    "entry_points",
    "explain_effort",
    "is_outside",
    "load_method",
    "may_run",
    "name_with_settings",
    "published_settings",
]
