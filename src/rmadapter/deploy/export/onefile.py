"""A module and everything it uses from this package, as one file that runs without the package.

Nothing is rewritten: definitions are copied verbatim, so that the code that runs elsewhere is the
code tested here.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
Found = dict[str, list[ast.stmt]]  # name in a module -> the top-level statements that define it


class _Module:
    """A module of this package: the statements that define its top-level names, and where imported
    names come from."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        self.text = Path(spec.origin).read_text(encoding="utf-8")
        self.lines, self.tree = self.text.splitlines(), ast.parse(self.text)
        self.made: Found = {}
        self.ours: dict[str, tuple[str, str]] = {}  # name here -> module and name there
        self.others: dict[
            str, tuple[str, str]
        ] = {}  # name here -> module ("" for `import x`), and what is imported
        for node in self.tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._imports(node)
            for made in _makes(node):
                self.made.setdefault(made, []).append(node)

    def _imports(self, node: ast.Import | ast.ImportFrom) -> None:
        place = str(node.module) if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            if place.partition(".")[0] == PACKAGE:
                self.ours[name] = place, alias.name
            else:
                self.others[name] = place, ast.unparse(alias)

    def source(self, node: ast.stmt) -> str:
        """Source of a statement, with its decorators and the comment above it."""
        start = (
            min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]) - 1
        )
        while start and self.lines[start - 1].startswith("# "):
            start -= 1
        return "\n".join(self.lines[start : node.end_lineno])


def _makes(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [
            name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
        ]
    return []


_module = cache(_Module)


def one_file(name: str, header: str) -> str:
    """Source of a module and all it uses, with its docstring and `__main__` block. header: comment
    for the first line.

    Raises ValueError if two modules define the same name.
    """
    wanted: dict[str, set[ast.stmt]] = {}  # dependencies first
    imports: set[tuple[str, str]] = set()
    top = _module(name)
    _reach(name, list(top.made), wanted, imports)
    homes: dict[str, str] = {}
    parts = []
    for place, nodes in wanted.items():
        module = _module(place)
        for node in [node for node in module.tree.body if node in nodes]:
            if twice := [made for made in _makes(node) if homes.setdefault(made, place) != place]:
                raise ValueError(f"{place} and {homes[twice[0]]} both have {twice[0]}")
            parts.append(module.source(node))
    (end,) = [
        node
        for node in top.tree.body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    ]
    start = [
        f"# {header}",
        f'"""{ast.get_docstring(top.tree)}\n"""',
        "from __future__ import annotations",
    ]
    return "\n\n".join([*start, _import_lines(imports), *parts, top.source(end)]) + "\n"


def _import_lines(imports: set[tuple[str, str]]) -> str:
    lines = sorted(f"import {name}" for place, name in imports if not place)
    for place in sorted({place for place, _ in imports if place}):
        lines.append(
            f"from {place} import {', '.join(sorted(name for each, name in imports if each == place))}"
        )
    return "\n".join(lines)


def _reach(
    name: str, names: list[str], wanted: dict[str, set[ast.stmt]], imports: set[tuple[str, str]]
) -> None:
    """Add the statements that define names of a module, and all that those use."""
    module, nodes = _module(name), set()
    todo, seen = list(names), set(names)
    while todo:
        for node in module.made.get(todo.pop(), ()):
            nodes.add(node)
            for used in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}:
                if used in module.ours:
                    place, there = module.ours[used]
                    _reach(place, [there], wanted, imports)
                elif used in module.others:
                    imports.add(module.others[used])
                elif used in module.made and used not in seen:
                    seen.add(used)
                    todo.append(used)
    wanted.setdefault(name, set()).update(nodes)
