"""Import the names that a room exports when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def lazy_names(
    room: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], list[str]]:
    """Return the `__getattr__` and the `__all__` of a room that imports its modules on first use.

    Importing such a room imports no torch, so the command line starts quickly. The room also
    imports the names under `TYPE_CHECKING`, where type checkers and editors see them.

    Args:
        room: `__name__` of the room.
        modules: Names to export, by the module that defines them.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def import_name(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        # as `from module import name`, which also imports a name that is a module itself
        return getattr(__import__(module_of[name], fromlist=[name]), name)

    return import_name, list(module_of)
