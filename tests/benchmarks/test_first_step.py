"""benchmarks/first_step.py: only drawn images are decoded before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import first_step
import pytest

from rmadapter.backbones import Backbone


def test_only_drawn_images_are_decoded(
    tiny_clip: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "--images", "20", "--distinct", "8", "--classes", "2", "--shots", "2", "--pixels", "32",
        "24", "--json",
    ]  # fmt: skip
    folder = tmp_path / "data"
    monkeypatch.setattr(
        "sys.argv",
        [
            "first_step.py", "--backbone", tiny_clip.name, *words, "--folder", str(folder),
            "--set", "first_block=3",
        ],
    )  # fmt: skip
    first_step.main()
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["files_decoded"], result["decodes"]) == (20, 4, 4)
    assert len({path.stat().st_ino for path in folder.rglob("*.jpg")}) == 8
