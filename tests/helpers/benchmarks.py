"""Run a benchmark script within the test process."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import pytest
import train_step

Printed = pytest.CaptureFixture[str]


def run(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Printed, *given: str) -> str:
    """What a benchmark prints; what it would run in fresh processes, whose start takes seconds,
    runs in this one."""

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
