"""A module and everything it uses from this package, as one file that runs without the package.

Nothing is rewritten: definitions are copied verbatim, so that the code that runs elsewhere is the
code tested here.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection, Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = __name__.partition(".")[0]


class _Module:
    """A module of this package.

    definitions: top-level names with the statements that define them. imports: imported names,
    with their module ("" for `import x`) and what is imported.
    """

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        self.text = Path(spec.origin).read_text(encoding="utf-8")
        self.lines, self.tree = self.text.splitlines(), ast.parse(self.text)
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in self.tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._add_imports(node)
            for defined in _defined_names(node):
                self.definitions.setdefault(defined, []).append(node)

    def _add_imports(self, node: ast.Import | ast.ImportFrom) -> None:
        place = str(node.module) if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self.imports[name] = place, ast.unparse(alias)

    def source(self, node: ast.stmt) -> str:
        """Return the source of a statement, with its decorators and the comment above it."""
        decorators = getattr(node, "decorator_list", ())
        start = min([node.lineno, *(each.lineno for each in decorators)]) - 1
        while start and self.lines[start - 1].startswith("# "):
            start -= 1
        return "\n".join(self.lines[start : node.end_lineno])


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        parts = [part for target in targets for part in ast.walk(target)]
        return [part.id for part in parts if isinstance(part, ast.Name)]
    return []


_module = cache(_Module)


def one_file(name: str, header: str) -> str:
    """Return the source of a module and all it uses, with its docstring and `__main__` block.

    Args:
        name: Name of the module.
        header: Comment for the first line.

    Raises:
        ValueError: Two modules define the same name.
    """
    wanted: dict[str, set[ast.stmt]] = {}
    imports: set[tuple[str, str]] = set()
    top = _module(name)
    _reach(name, list(top.definitions), wanted, imports)
    homes: dict[str, str] = {}
    parts = []
    for place in _imported_first(wanted):
        module = _module(place)
        for node in [node for node in module.tree.body if node in wanted[place]]:
            for name_here in _defined_names(node):
                if homes.setdefault(name_here, place) != place:
                    raise ValueError(f"{place} and {homes[name_here]} both have {name_here}")
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


def _imported_first(names: Collection[str]) -> Iterable[str]:
    """Return modules so that each comes after those that it imports."""
    homes = {name: sorted({home for home, _ in _module(name).imports.values()}) for name in names}
    graph = {name: [home for home in homes[name] if home in names] for name in names}
    return TopologicalSorter(graph).static_order()


def _import_lines(imports: set[tuple[str, str]]) -> str:
    lines = sorted(f"import {name}" for place, name in imports if not place)
    for place in sorted({place for place, _ in imports if place}):
        names = sorted(name for each, name in imports if each == place)
        lines.append(f"from {place} import {', '.join(names)}")
    return "\n".join(lines)


def _reach(
    name: str, names: list[str], wanted: dict[str, set[ast.stmt]], imports: set[tuple[str, str]]
) -> None:
    """Add the statements that define names of a module, and all that those use."""
    module, nodes = _module(name), set()
    todo, seen = list(names), set(names)
    while todo:
        for node in module.definitions.get(todo.pop(), ()):
            nodes.add(node)
            for used in sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)}):
                place, original = module.imports.get(used, ("", ""))
                if place.partition(".")[0] == PACKAGE:
                    _reach(place, [original], wanted, imports)
                elif used in module.imports:
                    imports.add((place, original))
                elif used in module.definitions and used not in seen:
                    seen.add(used)
                    todo.append(used)
    wanted.setdefault(name, set()).update(nodes)
