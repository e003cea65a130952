"""The verb `tune`, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter.cli.main import main

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
    monkeypatch.setattr(sys, "argv", ["rmadapter", "fit", str(colors), "--out", str(run), "--config", found["config"],
                                      "--quiet"])  # fmt: skip
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
