from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rmadapter.doctor import diagnose


def test_facts_of_this_machine() -> None:
    facts = diagnose()
    assert json.loads(json.dumps(facts)) == facts  # what --json prints
    assert facts["rmadapter"] == metadata.version("rmadapter")
    assert facts["torch"] == metadata.version("torch")
    assert facts["python"] == platform.python_version()
    assert facts["cpu count"] == os.cpu_count()
    assert facts["cpu threads"] == torch.get_num_threads()
    assert (facts["gpu"] == "none") == (not torch.cuda.is_available())


def test_it_builds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache folder is there, pocket is not: to look must not mean to fetch it."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    facts = diagnose()
    assert facts["pocket"] == "not built yet; it is built when first used"
    assert list(tmp_path.iterdir()) == []
