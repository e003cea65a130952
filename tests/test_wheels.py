"""Where pip comes from; fetching by it is tested with what is fetched, in test_pocket.py."""

from __future__ import annotations

import importlib.util
import subprocess
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import wheels
from rmadapter.errors import UserError


def no_pip(name: str) -> Any:
    raise PackageNotFoundError(name)


def test_an_environment_without_pip_takes_pythons_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("ensurepip")
    folders = spec.submodule_search_locations if spec else None
    if not any(Path(folder, "_bundled").glob("pip-*.whl") for folder in folders or ()):
        pytest.skip("this Python was packed without a copy of pip")
    usual = wheels._pip("a==1")
    monkeypatch.setattr(wheels, "distribution", no_pip)
    bundled = wheels._pip("a==1")
    assert bundled != usual
    done = subprocess.run([*bundled, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pip ")
    assert ".whl" in done.stdout


def test_without_any_pip_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "distribution", no_pip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"a==1 cannot be fetched without pip; install it: python -m ensurepip"):
        wheels._pip("a==1")


def test_one_file_of_a_wheel_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.txt", b"content")
    assert wheels.unzip(tmp_path / "a.whl", "a/b.txt") == b"content"
