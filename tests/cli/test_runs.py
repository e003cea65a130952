"""The verbs that make runs and judge them: fit, eval and tune, and what they refuse."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.record import parse_record, read_record
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot, read_split, split_digest
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods import METHODS, load_method
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.settings import read_yaml, settings_of
from tests.helpers.html import Page
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
    run_process,
)
from tests.helpers.shots import REQUIRED_SETTINGS, write_tiny_images
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture

QUICK = quick_options(1)
SMALL = {"first_block": 3, "rank": 4, "epochs": 2, "iterations": 2, "layer": 3, "n_ctx": 2}


def small_options(method: str, **more: object) -> list[object]:
    """Return --method, and --set of what the method has, to be quick on four blocks."""
    own = settings_of(load_method(method))
    values: dict[str, object] = {name: value for name, value in SMALL.items() if own.get(name)}
    values |= {**REQUIRED_SETTINGS.get(method, {}), "device": "cpu", **more}
    return ["--method", method, *(f"--set={name}={value}" for name, value in values.items())]


# Fit and eval


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="finds its compiler by another way than PATH")
def test_no_compiler_is_told_in_one_line(
    colors: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, since torch keeps what it found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    sets = ["--set=compile=default", "--set=batch_size=4", "--quiet"]
    words = fit_command(colors, tiny_clip, tmp_path / "run", *quick_options(4), *sets)
    refused(run_process(*words), "a C++ compiler", "compile=none")


@pytest.mark.parametrize(
    ("method", "setting"), [("rmadapter", "alpha=1e30"), ("linear-probe", "C=1e300")]
)
def test_a_setting_that_no_record_holds_is_refused_first(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone, method: str, setting: str
) -> None:
    """Not after the training, when the record is written."""
    options = [*small_options(method), "--set", setting]
    answer = rmadapter(*fit_command(colors, tiny_clip, tmp_path / "run", *options))
    refused(answer, setting.partition("=")[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
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


@pytest.mark.ci
def test_a_run_without_out_gets_a_folder_that_resumes(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors, "colors", copy_function=shutil.copy)
    words = ["fit", "colors", "--method", "zero-shot", "--backbone", tiny_clip.name, "--shots", 1]
    first = rmadapter.done(*words)
    assert "--out runs/colors-1" in first.err
    assert "rmadapter predict runs/colors-1" in first.out
    assert rmadapter.json(*words)["run"] == "runs/colors-2"
    assert rmadapter.done(*words, "-o", "runs/colors-1").out == first.out
    its = backbone_option(Path("runs/colors-1"))
    assert rmadapter.json("add", "runs/colors-1", "white", *its)["run"] == "runs/colors-3"
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        f"colors-{number}" for number in (1, 2, 3)
    ]


def test_options_of_fit_reach_the_run_and_its_config(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out = tmp_path / "run"
    options = ["--shots", 3, "--seed", 2, "--half", "base"]
    options += ["--device", "cuda:99", "--precision", "bf16"]  # --set device=cpu takes precedence
    options += small_options("mma", templates="a {}.")
    command = fit_command(colors, tiny_clip, out, *options)
    halves = ["test, base classes", "test, novel classes"]
    assert list(rmadapter.json(*command)) == ["run", "report", *halves, "harmonic_mean"]
    values = read_yaml(out / "config.yaml")
    wanted = Request.make(values, values.pop("method"), data=str(colors))
    task = wanted.task
    assert (task.shots, task.seed, task.classes, task.templates) == (3, 2, "base", ("a {}.",))
    assert read_record(out / "run.json").precision == "bf16"
    assert wanted.method == load_method("mma", {"first_block": 3, "rank": 4, "epochs": 2})
    again = rmadapter.done(*command).out  # a table this time, without training again
    for words in (halves[0], "harmonic mean", "zero-shot", f"report: {out / 'report.html'}"):
        assert words in again
    refused(rmadapter(*command, "--set", "rank=5"), "holds another run: choose another --out")
    found = rmadapter.json("eval", out, colors, *backbone_option(out), "--half", "base")
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
    small += ["--method", "rmadapter"]
    done = rmadapter.done(*fit_command(colors, tiny_clip, tmp_path, *small, "--effort", "fast"))
    assert "note: effort fast: rmadapter (" in done.err
    assert "epochs=3" in done.err
    assert read_record(tmp_path / "run.json").method.settings["epochs"] == 3


def test_eval_measures_a_split_some_classes_or_other_settings(
    rmadapter: Command, finished: Path, colors: Path
) -> None:
    command = ["eval", finished, colors, *backbone_option(finished)]
    found = rmadapter.json(*command)
    counts = ["n_images", "n_classes"]
    assert list(found) == [
        "accuracy", "zero_shot_accuracy", "chance", *counts, "balanced_accuracy"
    ]  # fmt: skip
    assert (found["chance"], found["n_images"], found["n_classes"]) == (25, 16, 4)
    assert found["accuracy"] > 90 > 50 > found["zero_shot_accuracy"]
    untouched = rmadapter.json(*command, "--set", "alpha=0")
    assert untouched["accuracy"] == untouched["zero_shot_accuracy"] == found["zero_shot_accuracy"]
    novel = rmadapter.json(*command, "--half", "novel", "--split=train")
    assert (novel["n_images"], novel["n_classes"]) == (12, 2)
    assert rmadapter.json(*command, "--split", "heldout")["n_images"] == 8
    table = rmadapter(*command)
    assert (table.code, table.err) == (0, "")
    assert f"{found['accuracy']:.1f}" in table.out
    train = rmadapter(*command, "--split", "train")
    assert "note: 16 of these 24 images were trained on" in train.err
    assert rmadapter(*command, "--split", "train", "--quiet").err == ""


@pytest.mark.ci
def test_eval_measures_promises(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    """As `fit` did on the same images; not of some classes, and not with other settings."""
    ridge = ["--method", "ridge", "--set", "device=cpu", "--folds", "4"]
    rmadapter.done(*fit_command(colors, tiny_clip, tmp_path / "run", *ridge))
    judgement = read_record(tmp_path / "run/run.json").judgement
    assert judgement
    command = ["eval", tmp_path / "run", colors, "--backbone", tiny_clip.name]
    found = rmadapter.json(*command)["promises"]
    assert found == [promise.model_dump(mode="json") for promise in judgement.promises]
    assert [promise["error"] for promise in found] == [10]
    assert "promised error" in rmadapter(*command).out
    for other in (["--half", "base"], ["--set", "head=1"]):
        assert "promises" not in rmadapter.json(*command, *other)


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
    ours = ["--method", "rmadapter"]
    for words, hint in (
        ([colors, "--backbone", "pokket"], "'pokket'"),
        ([colors, *ours, "--set", "rnak=3"], "unknown setting 'rnak'; did you mean 'rank'?"),
        ([colors, *ours, "--half", "base", "--set", "rnak=3"], "did you mean 'rank'?"),
        ([colors, "--set", "rank"], "write it as field=value"),
        ([colors, *ours, "--set", "rank=no"], "rank=False"),
        ([colors, "--method", "nma"], "unknown method 'nma'; did you mean 'mma'?"),
        ([colors, "--effort", "quick"], "effort='quick'"),
        ([colors, "--config", tmp_path / "none.yaml"], "not a readable config"),
        ([colors, "--half", "old"], "classes='old'"),
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
    strange = write_tiny_images(tmp_path / "new photos", "2024/1.png", "2025/1.png")
    for words, hint in (
        ([broken, colors], "model.safetensors: does not match model.json"),
        ([finished, colors], "name it yourself: --backbone '"),
        ([finished, colors, *its, "--set", "alfa=0"], "unknown field 'alfa'; did you mean 'alpha'"),
        ([tmp_path, colors], "name the run first"),
        ([finished, tmp_path / "gone", *its], "gone: no such file or folder"),
        ([finished, colors / "train", *its], "(--split takes all, heldout)"),
        ([finished, strange, *its], "classes ('2024', '2025') is one of the run's"),
        ([finished, colors, *its, "--split", "val"], "--split one of train, test, heldout"),
        ([finished, colors, "--half", "old"], "classes='old'"),
        ([finished, colors, "--workers", "2"], "is given as --set workers=VALUE"),
    ):
        refused(rmadapter("eval", *words), hint)


# Tune


@pytest.mark.real_plots
def test_the_best_settings_of_a_search_are_a_config_for_fit(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune: `make scale` installs it")
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
        (["--jobs", "2"], "--jobs needs --ray"),
        (["--address", "auto"], "--address needs --ray"),
        (["--search", "nought"], "unknown setting"),
        (["--method", "zero-shot"], "has no settings to try by default"),
    ],
)
def test_mistakes_in_tune_are_named(
    rmadapter: Command, more: list[str], words: str, colors: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="needs the extra tune: `make scale` installs it")
    refused(rmadapter("tune", colors, "--out", tmp_path / "out", *more), words)
    assert not (tmp_path / "out").exists()


# Repeated runs


@pytest.mark.ci
def test_a_run_is_repeated_by_its_report(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colors, tmp_path / "my photos")
    (tmp_path / "my photos/train/red/bad one.png").write_bytes(b"\x89PNG")
    (tmp_path / "names.csv").write_text('label,name\nred,the colour "red"\n')
    words = ["--skip-bad", "--names-from", "names.csv", "--set", "templates=a <{}> & more."]
    done = rmadapter.done(*fit_command(Path("my photos"), tiny_clip, Path("a run"), *QUICK, *words))
    assert "note: train/red/bad one.png: not an image" in done.err
    first = read_record(Path("a run/run.json"))
    page = Path("a run/report.html").read_text("utf-8")
    printed = re.search(r"<pre>(rmadapter fit .*?)</pre>", page, re.S)
    assert printed is not None
    assert html.unescape(printed[1]) == first.command
    weights = Path("a run/model.safetensors").read_bytes()
    shutil.rmtree("a run")
    program, *words = shlex.split(html.unescape(printed[1]))
    assert program == "rmadapter"
    rmadapter.done(*words)
    again = read_record(Path("a run/run.json"))
    assert (again.key, again.scores, again.command) == (first.key, first.scores, first.command)
    assert Path("a run/model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_columns_of_any_name_are_repeated_evaluated_and_extended(
    rmadapter: Command,
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(colors, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    images = [path.relative_to("data") for path in sorted(Path("data").glob("*/*/*.png"))]
    lines = [f"{one.as_posix()};{one.parts[1]};{one.parts[0]};p{one.stem}" for one in images]
    table = Path("data/all of it.csv")
    table.write_text("\n".join(["foto;class;part of;patient", *lines]), encoding="utf-8")
    columns = ["--image-column", "foto", "--split-column", "part of", "--group-column", "patient"]
    rmadapter.done(*fit_command(table, tiny_clip, Path("run"), *columns, *QUICK))
    first = read_record(Path("run/run.json"))
    assert first.judgement is not None
    assert "that share a group with training images" in first.judgement.how
    assert any(note.startswith("train and test share the group 'p") for note in first.notes)
    shutil.rmtree("run")
    rmadapter.done(*shlex.split(first.command)[1:])
    again = read_record(Path("run/run.json"))
    assert (again.key, again.judgement, again.notes) == (first.key, first.judgement, first.notes)

    its = ["--backbone", tiny_clip.name]
    found = rmadapter.json("eval", "run", table, *columns, *its)
    assert found["accuracy"] == first.scores[0].accuracy
    unnamed = rmadapter("eval", "run", table, *its)
    refused(unnamed, "(foto, class, part of, patient)", "--image-column")
    refused(rmadapter("eval", "run", "data", *its, "--label-column", "class"), "has no columns")
    header = "foto\tclass\tpart of\tpatient\n"
    Path("data/new.tsv").write_text(f"{header}train/red/5.png\tpink\ttrain\tq\n", encoding="utf-8")
    rmadapter.done("add", "run", "data/new.tsv", *columns, "--out", "grown", *its)
    grown = read_images("grown/images.csv", outside=True)
    assert grown["train"].groups[-1] == "q"
    old = grown["train"].subset(range(4))
    for part in (old, grown["test"]):  # the old ones are called p and their number
        assert part.groups == tuple(f"p{Path(str(image)).stem}" for image in part.images)
    Path("data/more.tsv").write_text(
        f"{header}train/red/4.png\tmauve\ttrain\tq\n", encoding="utf-8"
    )
    # the list of the grown run has the usual names
    more = ["data/more.tsv", *columns, "--allow-outside", "--out", "more"]
    rmadapter.done("add", "grown", *more, *its)
    assert read_images("more/images.csv", outside=True)["train"].groups[-2:] == ("q", "q")


@pytest.mark.ci
def test_columns_of_a_new_table_are_not_those_of_the_old_data(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    """Which was class folders."""
    (tmp_path / "pink").mkdir()
    for image in sorted(colors.glob("train/red/*.png")):
        # of another content, or they would be there already
        (tmp_path / "pink" / image.name).write_bytes(image.read_bytes() + b"more")
    lines = [f"pink/{image.name},pink" for image in sorted((tmp_path / "pink").iterdir())]
    (tmp_path / "new.csv").write_text("\n".join(["foto,species", *lines]))
    words = ["--image-column", "foto", "--label-column", "species", *backbone_option(finished)]
    words += ["--run-data", colors, "--out", tmp_path / "grown"]
    rmadapter.done("add", finished, tmp_path / "new.csv", *words)
    assert "pink" in read_images(tmp_path / "grown/images.csv", outside=True)["train"].written


@pytest.mark.ci
def test_fit_says_little_and_ends_with_what_comes_next(
    colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    code = "from rmadapter.cli.main import main; main()"
    small = (word for one in ("first_block=3", "rank=4", "device=cpu") for word in ("--set", one))
    command = fit_command(colors, tiny_clip, tmp_path / "run", "--method", "rmadapter", *small)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) <= 25
    assert lines[-1].startswith("next: rmadapter predict ")


def test_quiet_hides_all_but_results_and_errors(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out, bad = tmp_path / "run", tmp_path / "bad.png"
    done = rmadapter.done(*fit_command(colors, tiny_clip, out, *QUICK, "--effort", "fast", "-q"))
    assert done.err == ""
    assert "report: " in done.out
    its = ["--backbone", tiny_clip.name, "--quiet"]
    bad.write_bytes(b"x")
    assert rmadapter("predict", out, bad, *its, "--skip-bad", "--json") == (0, "[]\n", "")
    assert rmadapter("predict", out, colors, *its).err == ""
    refused(rmadapter("predict", tmp_path / "gone", colors, *its), "gone")


# Data of unusual sizes


def write(root: Path, seed: int = 0, **counts: int) -> Path:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_one_class_is_refused(rmadapter: Command, tmp_path: Path, tiny_clip: Backbone) -> None:
    one, three = write(tmp_path / "one", cat=3), write(tmp_path / "three", ant=2, bee=2, cat=2)
    command = fit_command(one, tiny_clip, tmp_path / "run", *quick_options(16))
    refused(rmadapter(*command), "'cat' is the only class: give at least two")
    novel = fit_command(three, tiny_clip, tmp_path / "run", *quick_options(16), "--half", "novel")
    refused(rmadapter(*novel), "novel classes: 'cat' is the only class")
    assert not (tmp_path / "run/run.json").exists()


def test_two_classes_of_one_image_each(
    rmadapter: Command, tmp_path: Path, tiny_clip: Backbone
) -> None:
    data, out = write(tmp_path / "data", cat=1, dog=1), tmp_path / "run"
    done = rmadapter.done(*fit_command(data, tiny_clip, out, *quick_options(16)))
    assert "no image was left to evaluate" in done.err
    assert "class 'cat' has 1 image, fewer than 16 shots" in done.err
    assert "report: " in done.out
    answers = rmadapter.json("predict", out, data, *backbone_option(out))
    assert [len(answer["classes"]) for answer in answers] == [2, 2]


@pytest.mark.ci
def test_very_uneven_classes(rmadapter: Command, tmp_path: Path, tiny_clip: Backbone) -> None:
    """60 images of one class and one of another: what is not drawn is of one class alone, and so
    the shots judge."""
    data, out = write(tmp_path / "data", cat=60, dog=1, owl=2), tmp_path / "run"
    err = rmadapter.done(*fit_command(data, tiny_clip, out, *quick_options(4), "--folds", "4")).err
    assert [re.sub(r",.*| from .* %", "", line) for line in err.splitlines()] == [
        "note: no full test split: judging by 3-fold cross-validation of the training images",
        "note: class 'dog' has 1 image", "note: class 'owl' has 2 images",
        "note: trained on 7 of 63 images: --shots 0 takes all",
        "note: an error of 31.9 % or more can be promised",
        "note: 6 images are too few to judge by: any accuracy is plausible; add images",
        "note: no images to judge these classes by: dog",
    ]  # fmt: skip
    own, score = read_record(out / "run.json").scores
    assert (own.split, own.images) == ("cross-validated", 6)
    assert (score.split, score.images, score.classes) == ("held out", 56, 3)
    assert "dog (0)" in Page(out / "report.html").text


@pytest.mark.ci
def test_a_natural_draw_from_fit_to_eval_and_bench(
    rmadapter: Command, tmp_path: Path, tiny_clip: Backbone
) -> None:
    """Validation images are not drawn, and unequal classes have a balanced accuracy beside."""
    data, out = tmp_path / "sets" / "data", tmp_path / "run"
    write(data / "train", seed=1, cat=40, dog=6, owl=2)
    write(data / "val", seed=2, cat=3, dog=3, owl=3)
    write(data / "test", seed=3, cat=12, dog=6, owl=3)
    options = ["--draw", "natural", "--method", "ridge", "--set=device=cpu", "--shots", 4]
    done = rmadapter.done(*fit_command(data, tiny_clip, out, *options), "--verbose")
    assert "note: natural draw: 12 images, " in done.err
    for words in ("balanced accuracy", "macro F1"):
        assert words in done.out
    split = read_split(out / "split.json")
    few = few_shot(read_images(data), 4, 1, "natural")
    assert (split.draw, split.val, split.digest) == ("natural", None, split_digest(few))
    assert read_yaml(out / "config.yaml")["draw"] == "natural"
    [score] = read_record(out / "run.json").scores
    balanced = score.balanced
    assert balanced is not None
    assert (balanced.fewest, balanced.most) == (3, 12)
    evaluated = [out, data, *backbone_option(out)]
    found = rmadapter.json("eval", *evaluated)
    assert found["balanced_accuracy"] == balanced.model_dump()
    assert f"balanced accuracy {balanced.text} %" in rmadapter.done("eval", *evaluated).out
    held_out = rmadapter.json("eval", *evaluated, "--split", "heldout")
    assert held_out["n_images"] == 48 - 12
    assert balanced.text in Page(out / "report.html").text

    words = ["bench", "few-shot", "--datasets", "data", "--root", data.parent, "--seeds", 1]
    words += ["--out", tmp_path / "bench", "--backbone", tiny_clip.name, "--methods", "ridge"]
    words += ["--shots", 4, "--set=device=cpu"]
    natural = rmadapter.done(*words, "--draw", "natural").out
    assert f"{balanced.accuracy:.2f}" in natural
    assert "balanced all" in natural
    rmadapter.done(*words)  # its record lies beside that of the natural draw
    names = sorted(path.name for path in (tmp_path / "bench").rglob("*.json"))
    assert names == ["default-4shots-natural-seed1.json", "default-4shots-seed1.json"]
    rmadapter.done("report", tmp_path / "bench", "--out", tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text("utf-8")
    assert "natural draw" in text
    assert text.count("data, balanced accuracy") == 2
    refused(rmadapter(*words, "--draw", "even"), "draw='even'")


@pytest.mark.ci
@pytest.mark.parametrize("method", ["rmadapter", "tip-adapter-f"])
def test_a_thousand_classes(tiny_clip: Backbone, method: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1000, 8, 8, 3), np.uint8)
    images = ImageSet.from_lists(
        list(pixels), list(range(1000)), [f"kind {i}" for i in range(1000)]
    )
    settings: dict[str, object] = {"epochs": 1, "device": "cpu"}
    if method == "rmadapter":
        settings |= {"first_block": 3, "rank": 4, "batch_size": 250}
    wanted = Request.make({**settings, "backbone": tiny_clip.name, "shots": 1}, method)
    lab = Lab(wanted.machine, progress=False)
    lab.add("", {"train": images, "test": images.subset(range(0, 1000, 50))})
    done = run_task(wanted.task, wanted.method, lab, method)
    assert done.record.scores[0].classes == 1000
    assert len(done.fitted.trained.history) >= 4


@pytest.mark.ci
def test_files_of_a_run_are_as_readable_as_the_umask_lets_them(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out, mask = tmp_path / "runs/first", 0o027  # neither private nor as usual
    before = os.umask(mask)
    try:
        rmadapter.done(*fit_command(colors, tiny_clip, out, *small_options("linear-probe")))
        answers = ["--out", tmp_path / "runs/answers.csv", *backbone_option(out)]
        rmadapter.done("predict", out, colors / "test/red", *answers)
    finally:
        os.umask(before)
    made = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert {"model.safetensors", "run.json", "answers.csv"} <= {path.name for path in made}
    for path in made:
        whole = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~mask, path
