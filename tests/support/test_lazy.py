"""Rooms that import their names on first use."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rmadapter
from rmadapter import support
from rmadapter.support import files
from rmadapter.support.lazy import lazy_names

ROOMS = [
    path
    for path in Path(rmadapter.__file__).parent.rglob("__init__.py")
    if "lazy_names" in path.read_text("utf-8")
]


def test_a_name_comes_from_its_module_and_an_unknown_one_is_none_of_the_room() -> None:
    get, names = lazy_names(support.__name__, {"rmadapter.support.files": ["sha256", "atomic"]})
    assert names == ["sha256", "atomic"]
    assert get("atomic") is files.atomic
    with pytest.raises(AttributeError, match=r"rmadapter\.support.*nothing"):
        get("nothing")


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.parent.name)
def test_type_checkers_see_what_a_room_exports(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    seen = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "lazy_names")
    modules = ast.literal_eval(call.args[1])
    assert seen == {(module, name) for module, names in modules.items() for name in names}
