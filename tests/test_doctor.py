from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rmadapter.backbone import Backbone
from rmadapter.doctor import diagnose
from rmadapter.towers import towers


def test_facts_of_this_machine(tiny_clip: Backbone) -> None:
    facts = diagnose(tiny_clip.name)
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
    assert not any(name.startswith("pocket ") for name in facts)
    assert list(tmp_path.iterdir()) == []


def test_tricks_of_a_backbone(tiny_clip: Backbone) -> None:
    facts = diagnose(tiny_clip.name)
    for tower in towers(tiny_clip.model):
        for trick, active in tower.tricks().items():
            assert facts[f"{tiny_clip.name} {tower.side}: {trick}"] == active
