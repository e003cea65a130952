"""The lower bounds of pyproject.toml against tools/advisories.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
ADVISORIES: list[dict[str, str]] = json.loads((ROOT / "tools/advisories.json").read_text())


def requirements() -> list[Requirement]:
    """Read what any part of the package needs, without a reader of TOML, which 3.10 lacks."""
    text = (ROOT / "pyproject.toml").read_text()
    start, end = text.index("\ndependencies = ["), text.index("[project.scripts]")
    lines = (line.partition("  # ")[0] for line in text[start:end].splitlines())
    words = [word for line in lines for word in re.findall(r'"([^"]+)"', line)]
    return [Requirement(word) for word in words if not word.startswith("rmadapter[")]


def applies(needed: Requirement, python: str) -> bool:
    place: dict[str, Any] = {"python_version": python}
    return needed.marker is None or needed.marker.evaluate(place)


@pytest.mark.parametrize("one", ADVISORIES, ids=lambda one: f"{one['package']} {one['id']}")
def test_no_bound_lets_in_a_known_hole(one: dict[str, str]) -> None:
    assert one["why"]
    pythons = ["3.11", "3.14"] if one.get("python") == ">=3.11" else ["3.10", "3.11", "3.14"]
    for python in pythons:
        bounds = [
            Version(part.version)
            for needed in requirements()
            if canonicalize_name(needed.name) == one["package"] and applies(needed, python)
            for part in needed.specifier
            if part.operator in (">=", "==")
        ]
        assert bounds
        assert min(bounds) >= Version(one["fixed"])


def test_each_advisory_named_beside_a_bound_is_in_the_list() -> None:
    named = set(re.findall(r"CVE-\d+-\d+", (ROOT / "pyproject.toml").read_text()))
    assert named <= {one["id"] for one in ADVISORIES} | {"CVE-2026-48710"}  # of an earlier one
