"""Dockerfiles as tests read them, without docker."""

from __future__ import annotations

import re
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SPACE = "examples/space/Dockerfile"


def instructions(file: str) -> list[tuple[str, str]]:
    """Of a Dockerfile: ("RUN", "pip install ..."), lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    words = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, rest in words]


def arguments_of(file: str, name: str) -> list[str]:
    return [rest for kind, rest in instructions(file) if kind == name]
