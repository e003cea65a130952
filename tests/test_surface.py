"""What the packages that stand on the library import from it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PUBLIC = (
    "rmadapter",
    *("rmadapter.answers", "rmadapter.artifacts", "rmadapter.bench", "rmadapter.cli"),
    *("rmadapter.data", "rmadapter.export", "rmadapter.runs"),
)
# Names that a package still takes from inside the library; a number only falls.
PACKAGES = {"rmadapter_studio": 0, "rmadapter_serve": 0, "rmadapter_research": 0}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of everything that a file imports from the library."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] == "rmadapter":
                yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from ((name, "") for name in names if name.partition(".")[0] == "rmadapter")


def exported(module: str) -> frozenset[str]:
    return frozenset(getattr(import_module(module), "__all__", ()))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_takes_few_names_but_public_ones(package: str) -> None:
    private = {
        f"from {module} import {name}"
        for path in (SOURCE / package).rglob("*.py")
        for module, name in imports(path)
        if module not in PUBLIC or name not in exported(module)
    }
    assert len(private) <= PACKAGES[package], sorted(private)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_there(module: str) -> None:
    home = import_module(module)
    assert all(getattr(home, name) is not None for name in exported(module))


def test_naming_the_public_modules_imports_no_torch() -> None:
    code = f"import sys, {', '.join(PUBLIC)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
