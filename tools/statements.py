"""Count the statements of each package below src, without docstrings, and fail if one exceeds its
number in pyproject.toml: `python tools/statements.py`.

A feature names what it replaces; raising a number is a commit of its own with its reason.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which mypy and coverage need there, too

ROOT = Path(__file__).parents[1]


def count(path: Path) -> int:
    """Return the number of statements of a file, at any depth, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.stmt) and not _is_text(node) for node in ast.walk(tree))


def _is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a string alone."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def sums(source: Path) -> dict[str, int]:
    """Return the statements of each package below a folder, and of all as `src`."""
    packages = {
        folder.name: sum(map(count, folder.rglob("*.py")))
        for folder in sorted(source.iterdir())
        if (folder / "__init__.py").is_file()
    }
    return {**packages, "src": sum(packages.values())}


def main() -> None:
    found = sums(ROOT / "src")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    budgets: dict[str, int] = settings["tool"]["rmadapter"]["statements"]
    for name, number in found.items():
        most = budgets.get(name)
        print(f"{name}: {number:,} statements" + (f" of at most {most:,}" if most else ""))
    over = [name for name, most in budgets.items() if found[name] > most]
    if over:
        sys.exit(
            f"too many statements: {', '.join(over)}; take something out, or raise the number in "
            "pyproject.toml in a commit of its own that says why"
        )


if __name__ == "__main__":
    main()
