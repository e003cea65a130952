"""label_walk.py: the walk on small images, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import label_walk
import pytest

from rmadapter.backbones import Backbone
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine
from tests.helpers.web_pages import engine, needs_browser

LINE: dict[str, Any] = {
    "data": "sports", "images": 200, "labels": 66, "keys": 90, "clicks": 4,
    "seconds": {"encode": 20.4, "label": 31.0, "train": 65.6, "export": 9.2}, "test": 71.26,
    "method": "ridge", "same": 99, "asked": 100,
}  # fmt: skip


def test_the_table_has_a_row_for_each_walk() -> None:
    [row] = label_walk.table([LINE]).splitlines()[2:]
    assert row == "| sports | 66 of 200 | 90 | 4 | 20 | 31 | 66 | 9 | ridge | 99 of 100 | 71.3 |"


@pytest.mark.slow
@needs_browser
def test_a_walk_from_a_heap_to_a_page(
    tiny_clip: Backbone, colors: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="pip install 'rmadapter[app]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    engine()
    monkeypatch.setattr(label_walk, "LABELS", 12)
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "cache"))
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    # the other method of the page adapts blocks that this backbone does not have
    line = label_walk.walk(lab, colors.name, tiny_clip.name, "linear-probe-pair")
    assert line["labels"] >= 12
    assert line["keys"] > line["labels"]
    assert set(line["seconds"]) == {*label_walk.STEPS}
    assert line["same"] == line["asked"] > 0
