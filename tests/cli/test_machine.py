"""The verbs of cli/machine.py: lists, backbones, and what this machine has."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.backbones.pocket import TEXT, VISION
from rmadapter.cli.machine import diagnose
from rmadapter.data.catalog.sets import CATALOG
from rmadapter.methods import METHODS
from rmadapter.methods.uses import ABOUT
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


def test_methods_lists_all_with_the_papers_counts(rmadapter: Command) -> None:
    code, out, _ = rmadapter("methods", "--json")
    assert code == 0
    found: dict[str, Any] = {method["name"]: method for method in json.loads(out)}
    assert list(found) == list(METHODS)
    assert found["mma"]["parameters"] == 674_560  # as its paper has it, ViT-B/16
    assert found["zero-shot"]["parameters"] == 0
    assert found["rmadapter"]["settings"]["rank"] == 32
    assert all(method["source"] and method["title"] for method in found.values())
    apart = {
        name: method["uses"]["track"]
        for name, method in found.items()
        if method["uses"]["track"] != "ranked"
    }
    assert apart == {
        "zero-shot-descriptions": "extra data",
        "tda": "test time",
        "prompt-kd": "teacher",
    }


def test_methods_fits_80_columns_and_names_all(rmadapter: Command) -> None:
    code, out, _ = rmadapter("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert {*ABOUT} == {*METHODS}
    for name in METHODS:
        assert f" {name} " in out


def test_data_lists_all_and_says_what_one_lacks(rmadapter: Command, tmp_path: Path) -> None:
    code, out, _ = rmadapter("data", "--json")
    assert (code, [row["key"] for row in json.loads(out)]) == (0, list(CATALOG))
    code, out, _ = rmadapter("data", "dtd", "--check", tmp_path, "--json")
    [row] = json.loads(out)
    assert (code, row["name"], row["status"]) == (0, "dtd", "absent")
    refused(rmadapter("data", "--download"), "--download needs the name of one data set")


def test_help_names_both_without_torch(rmadapter: Command) -> None:
    text = rmadapter("--help").out
    assert "backbones" in text
    assert "convert" in text
    code = "import sys, rmadapter.cli.main; print(bool({'torch', 'open_clip'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_what_is_missing_is_asked_for(rmadapter: Command) -> None:
    assert rmadapter("convert", "a.pt", "--out", "b").code == 2
    refused(
        rmadapter("convert", "a.pt", "--architecture", "ViT-B-16", "--out", "b"),
        "a.pt: not a checkpoint",
    )


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
    monkeypatch.setattr("rmadapter.backbones.choice.listed", lambda: rows)
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
