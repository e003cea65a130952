"""A release: one version everywhere, and a complete source archive."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BY_ITSELF = {"README.md", "LICENSE", "pyproject.toml", "src"}  # included by setuptools itself
NEVER = {".gitignore"}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    [own] = re.findall(r'^version = "(.+)"$', text("pyproject.toml"), re.M)
    assert re.findall(r"^version: (.+)$", text("CITATION.cff"), re.M) == [own]


def test_the_source_archive_has_every_file_of_the_repository() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("no git repository")
    named = {word for line in text("MANIFEST.in").splitlines() for word in line.split()[1:]}
    tops = {line.partition("/")[0] for line in done.stdout.splitlines()}
    assert tops - BY_ITSELF - NEVER == {
        name for name in named if not name.startswith(("*", "__pycache__", ".DS"))
    }


def test_make_dist_runs_what_the_extra_brings() -> None:
    [extra] = re.findall(r"^release = \[(.+)\]$", text("pyproject.toml"), re.M)
    names = re.findall(r'"([a-z-]+)', extra)
    [target] = re.findall(r"^dist:.*\n((?:\t.*\n)+)", text("Makefile"), re.M)
    assert names == ["build", "twine", "check-wheel-contents"]
    assert all(re.search(rf"(-m |/){name}\b", target) for name in names)
    assert '".[release]"' in target
