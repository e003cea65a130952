"""Run a benchmark script within the test process."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import train_step

from tests.helpers.models import CLIP_TEXT, write_model

Printed = pytest.CaptureFixture[str]
ONCE = ("--repeat", "1", "--seed", "3", "--allocator", "default")


def tiny_model(folder: Path, layers: int = 5) -> str:
    """Write a backbone of few blocks; five are the fewest of which one is adapted by default."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": layers}
    text = {**CLIP_TEXT, "layers": layers}
    return str(write_model(folder / "model", {"vision_cfg": vision, "text_cfg": text}))


def run(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Printed, *given: str) -> str:
    """Run a benchmark and return what it prints; its fresh processes, whose start takes seconds,
    run in this one."""

    def here(script: str, options: argparse.Namespace, *more: str) -> Any:
        assert script == module.__file__
        monkeypatch.setattr(sys, "argv", [script, *given, *more])
        module.main()
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(module, "in_fresh_process", here, raising=False)
    monkeypatch.setattr(train_step, "SQUARES", (16,))
    monkeypatch.setattr(sys, "argv", [module.__file__, *given])
    module.main()
    return capsys.readouterr().out
