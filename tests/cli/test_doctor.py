from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rmadapter.backbones.pocket import TEXT, VISION
from rmadapter.cli.machine import diagnose


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
    assert facts["pocket"] == "not built yet; built on first use"
    assert list(tmp_path.iterdir()) == []


def test_licences_and_files_that_would_run_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = {
        name: tmp_path / f"models--{name.replace('/', '--')}" for name in ("a/card", "b/code")
    }
    for place in places.values():
        (place / "snapshots" / "0").mkdir(parents=True)
    rows = [
        {"name": f"hf-hub:{name}", "mb": 1, "folder": str(place)} for name, place in places.items()
    ]
    rows.append({"name": "ViT-L-14/openai", "mb": None, "folder": ""})
    monkeypatch.setattr("rmadapter.backbones.listing.listed", lambda: rows)
    (places["a/card"] / "snapshots" / "0" / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n"
    )
    facts = diagnose()
    assert facts["files that would run code"] == "none"
    read_it = "its publisher's; read it at https://huggingface.co"
    assert facts["licence of hf-hub:a/card"] == f"{read_it}/a/card (its card here says apache-2.0)"
    assert facts["licence of hf-hub:b/code"] == f"{read_it}/b/code"
    for part in (VISION, TEXT):
        assert f"{part.project} {part.version} " in facts["licence of pocket"]
    assert "licence of ViT-L-14/openai" not in facts
    (places["b/code"] / "snapshots" / "0" / "README.md").mkdir()  # no card
    (places["b/code"] / "snapshots" / "0" / "model.py").write_text("")
    assert "model.py is code" in diagnose()["files that would run code"]
