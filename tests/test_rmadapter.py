"""The package itself: its public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata

import pytest

import rmadapter

HEAVY = ("torch", "open_clip", "timm", "transformers", "matplotlib", "jinja2", "sklearn", "numpy", "PIL", "pydantic")


@pytest.mark.parametrize("name", rmadapter.__all__)
def test_public_names_resolve(name: str) -> None:
    found = getattr(rmadapter, name)
    if name != "__version__":
        assert found is getattr(import_module(found.__module__), name)
        assert found.__doc__


def test_version_is_the_installed_one() -> None:
    assert rmadapter.__version__ == metadata.version("rmadapter")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RMAdaptor'"):
        _ = rmadapter.RMAdaptor  # type: ignore[attr-defined]


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    code = f"import sys, rmadapter; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
