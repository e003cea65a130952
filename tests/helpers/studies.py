"""What tests of the studies in tools/ share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import pytest

from rmadapter.backbones import Backbone

Study: TypeAlias = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def study(
    colors: Path, tmp_path: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> Study:
    """Runs the main of a tool, with words, on the set `colors` and a tiny backbone; returns all
    lines of its file."""
    monkeypatch.setattr("rmadapter.runs.lab.load_backbone", lambda name: tiny_clip)
    out = tmp_path / "lines.jsonl"

    def run(tool: ModuleType, *words: str) -> list[dict[str, Any]]:
        common = [
            f"{tool.__name__}.py",
            colors.name,
            "--root",
            str(colors.parent),
            "--out",
            str(out),
        ]
        monkeypatch.setattr(sys, "argv", [*common, *words])
        tool.main()
        return [json.loads(text) for text in out.read_text().splitlines()]

    return run
