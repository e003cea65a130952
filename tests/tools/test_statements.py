"""The count of statements that `make lint` holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import statements

FILE = '''"""A module."""

import os


def one() -> int:
    """Return one."""
    if os:
        return 1
    return 2
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    package = tmp_path / "src/some"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "room/file.py").write_text(FILE)
    (tmp_path / "src/no_package").mkdir()
    return tmp_path / "src"


def test_docstrings_do_not_count(source: Path) -> None:
    assert statements.count(source / "some/room/file.py") == 5
    assert statements.sums(source) == {"some": 5, "src": 5}


@pytest.mark.parametrize(("most", "fails"), [(5, False), (4, True)])
def test_a_package_over_its_number_fails(
    source: Path, monkeypatch: pytest.MonkeyPatch, most: int, fails: bool
) -> None:
    (source.parent / "pyproject.toml").write_text(f"[tool.rmadapter.statements]\nsome = {most}\n")
    monkeypatch.setattr(statements, "ROOT", source.parent)
    if fails:
        with pytest.raises(SystemExit, match="some"):
            statements.main()
    else:
        statements.main()
