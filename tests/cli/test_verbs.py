"""What the verbs of the command line do, for every method."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rmadapter.artifacts.record import parse_record, read_record
from rmadapter.backbones import Backbone
from rmadapter.methods import METHODS, load_method
from rmadapter.runs.request import Request
from rmadapter.settings import read_yaml, settings_of
from tests.helpers.shell import Command, backbone_option, refused, rmadapter
from tests.helpers.shots import REQUIRED_SETTINGS
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture

SMALL = {"first_block": 3, "rank": 4, "epochs": 2, "iterations": 2, "layer": 3, "n_ctx": 2}


def sets(method: str, **more: object) -> list[object]:
    """--set of what the method has, to be quick on four blocks."""
    own = settings_of(load_method(method))
    values: dict[str, object] = {
        name: value
        for name, value in SMALL.items()
        if name in own and (name != "iterations" or own[name])
    }
    return [
        word
        for name, value in {
            **values,
            **REQUIRED_SETTINGS.get(method, {}),
            "device": "cpu",
            **more,
        }.items()
        for word in ("--set", f"{name}={value}")
    ]


@pytest.mark.parametrize("method", slow_except(METHODS, "zero-shot", "coop", "rmadapter"))
def test_fit_eval_and_predict_with_every_method(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone, method: str
) -> None:
    out = tmp_path / "run"
    command = [
        "fit",
        colors,
        "--backbone",
        tiny_clip.name,
        "--method",
        method,
        "--shots",
        2,
        *sets(method),
    ]
    code, text, err = rmadapter(*command, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(text)
    assert list(found) == ["run", "report", "test, all classes", "judgement"]
    assert Path(found["report"]).is_file()
    figures, [*_, own] = found["test, all classes"], found["judgement"]["rows"]
    assert own["accuracy"] == figures["accuracy"]
    assert (
        json.loads(rmadapter("eval", out, colors, *backbone_option(out), "--json").out) == figures
    )
    image = colors / "test" / "red" / "0.png"
    [answer] = json.loads(rmadapter("predict", out, image, *backbone_option(out), "--json").out)
    assert {guess["class"] for guess in answer["classes"]} == {"blue", "green", "night_sky", "red"}
    assert sum(guess["probability"] for guess in answer["classes"]) == pytest.approx(1, abs=1e-5)
    assert "Repeat it" in (out / "report.html").read_text("utf-8")


def test_fit_then_eval_then_predict(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    out = tmp_path / "run"
    command = [
        "fit",
        colors,
        "--backbone",
        tiny_clip.name,
        "--method",
        "mma",
        "--shots",
        3,
        "--seed",
        2,
    ]
    command += ["--classes", "base", *sets("mma", templates="a {}."), "--out", out]
    code, text, err = rmadapter(*command, "--json")
    assert (code, err) == (0, "")
    assert list(json.loads(text)) == [
        "run",
        "report",
        "test, base classes",
        "test, novel classes",
        "harmonic_mean",
    ]
    values = read_yaml(out / "config.yaml")
    wanted = Request.make(values, values.pop("method"), data=str(colors))
    assert (wanted.task.shots, wanted.task.seed, wanted.task.classes, wanted.task.templates) == (
        3,
        2,
        "base",
        ("a {}.",),
    )
    assert wanted.method == load_method("mma", {"first_block": 3, "rank": 4, "epochs": 2})
    again = rmadapter(*command)  # a table this time, without training again
    assert again.code == 0
    for words in (
        "test, base classes",
        "harmonic mean",
        "zero-shot",
        f"report: {out / 'report.html'}",
    ):
        assert words in again.out
    refused(rmadapter(*command, "--set", "rank=5"), "holds another run: choose another --out")
    code, text, err = rmadapter(
        "eval", out, colors, *backbone_option(out), "--classes", "base", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(text)["accuracy"] == read_record(out / "run.json").metric("base")


@pytest.mark.slow
def test_a_runs_config_repeats_it(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    """And flags and --set go before the file."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    command = ["fit", colors, "--backbone", tiny_clip.name, "--method", "promptsrc", "--shots", 1]
    command += sets("promptsrc", **{"promptsrc.templates": "the {}."})
    assert rmadapter(*command, "--out", first).code == 0
    config = ["--config", first / "config.yaml", "--set", "device=cpu"]
    assert rmadapter("fit", colors, *config, "--out", second).code == 0
    one, two = (read_record(out / "run.json") for out in (first, second))
    assert (one.key, one.scores) == (two.key, two.scores)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (
        rmadapter("fit", colors, *config, "--seed", 5, "--set", "epochs=1", "--out", third).code
        == 0
    )
    other = read_record(third / "run.json")
    assert (other.task.seed, other.method.settings["epochs"], other.method.settings["n_text"]) == (
        5,
        1,
        4,
    )
    again = ["eval", third, colors, *backbone_option(third), "--config", third / "config.yaml"]
    found = json.loads(rmadapter(*again, "--json").out)
    assert found["accuracy"] == other.metric("all")
    data = [
        "--datasets",
        colors.name,
        "--root",
        colors.parent,
        "--shots",
        1,
        "--seeds",
        1,
        "--out",
        tmp_path / "bench",
    ]
    code, text, err = rmadapter("bench", "few-shot", *data, *config, "--json")
    assert code == 0, err
    [run] = json.loads(text)
    assert run["method"] == json.loads(one.line())["method"]
    assert parse_record(json.dumps(run), "").metric("all") == one.metric("all")


def test_effort_is_told(
    rmadapter: Command, colors: Path, tmp_path: Path, tiny_clip: Backbone
) -> None:
    small = ["--set", "first_block=3", "--set", "rank=4", "--set", "device=cpu"]
    command = [
        "fit",
        colors,
        "--backbone",
        tiny_clip.name,
        "--shots",
        1,
        *small,
        "--effort",
        "fast",
    ]
    code, _, err = rmadapter(*command, "--out", tmp_path)
    assert code == 0
    assert "note: effort fast: 3 epochs instead of 10" in err
    assert read_record(tmp_path / "run.json").method.settings["epochs"] == 3


def test_eval_prints_exactly_these_keys(rmadapter: Command, finished: Path, colors: Path) -> None:
    its = backbone_option(finished)
    code, out, err = rmadapter("eval", finished, colors, *its, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["accuracy", "zero_shot_accuracy", "chance", "n_images", "n_classes"]
    assert (found["chance"], found["n_images"], found["n_classes"]) == (25, 16, 4)
    assert found["accuracy"] > 90 > 50 > found["zero_shot_accuracy"]
    dialled = json.loads(
        rmadapter("eval", finished, colors, *its, "--set", "alpha=0", "--json").out
    )
    assert dialled["accuracy"] == dialled["zero_shot_accuracy"] == found["zero_shot_accuracy"]
    novel = json.loads(
        rmadapter(
            "eval", finished, colors, *its, "--classes", "novel", "--split=train", "--json"
        ).out
    )
    assert (novel["n_images"], novel["n_classes"]) == (12, 2)
    assert (
        json.loads(rmadapter("eval", finished, colors, *its, "--split", "heldout", "--json").out)[
            "n_images"
        ]
        == 8
    )
    table = rmadapter("eval", finished, colors, *its).out
    assert f"{found['accuracy']:.1f}" in table
    assert "zero-shot" in table


def test_report_of_a_run_makes_its_page_again(
    rmadapter: Command, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (run / "report.html").read_bytes()
    shown = rmadapter("report", run)
    assert (shown.code, shown.out.strip()) == (0, f"report: {run / 'report.html'}")
    assert (run / "report.html").read_bytes() == before
    refused(rmadapter("report", run, "--tolerance", "2"), "--tolerance: is for --check")
    shown = rmadapter("report", run, "--out", tmp_path / "else")
    assert (shown.code, shown.out) == (2, "")
    assert "a run's report is written into its own folder" in shown.err
    for damage in ("step,loss\n1,x\n", 'step,loss\n"1,2\n'):
        (run / "history.csv").write_text(damage)
        (run / "SHA256SUMS").unlink(missing_ok=True)
        refused(rmadapter("report", run), "history.csv: not the losses of a run")
    (run / "predictions.csv").unlink()
    shown = rmadapter("report", run)
    assert shown.code == 2
    assert "predictions.csv: missing" in shown.err
    assert "--out: give a folder for the report" in rmadapter("report", tmp_path).err


def test_predict(rmadapter: Command, finished: Path, colors: Path, tmp_path: Path) -> None:
    images, its = (
        [colors / "test" / name / "0.png" for name in ("red", "night_sky")],
        backbone_option(finished),
    )
    code, out, err = rmadapter("predict", finished, *its, *images, "--top", 2, "--json")
    assert (code, err) == (0, "")
    answers = json.loads(out)
    assert [answer["image"] for answer in answers] == [str(image) for image in images]
    assert [answer["classes"][0]["class"] for answer in answers] == ["red", "night_sky"]
    for answer in answers:
        first, second = (guess["probability"] for guess in answer["classes"])
        assert 1 >= first > second >= 0
    (answer,) = json.loads(
        rmadapter("predict", finished, *its, images[0], "--names", "zebra, 斑马,red ", "--json").out
    )
    assert {guess["class"] for guess in answer["classes"]} == {"zebra", "斑马", "red"}
    assert sum(guess["probability"] for guess in answer["classes"]) == pytest.approx(1, abs=1e-5)
    table = rmadapter("predict", finished, *its, images[0], "--names", "[/red],[bold]x,:cat:").out
    for name in ("[/red]", "[bold]x", ":cat:", str(images[0])):
        assert name in table
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))  # a name that is not UTF-8
    with open(strange, "wb") as file:
        Image.new("RGB", (9, 9)).save(file, "PNG")
    assert rmadapter("predict", finished, *its, strange).code == 0
    (answer,) = json.loads(rmadapter("predict", finished, *its, strange, "--json").out)
    assert answer["image"] == str(strange)


def test_params_of_the_paper(rmadapter: Command) -> None:
    code, out, err = rmadapter("params", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"trainable": 1_020_928, "inference": 666_112}


def test_params_of_mma_and_of_other_settings(
    rmadapter: Command, tiny_clip: Backbone, tmp_path: Path
) -> None:
    table = rmadapter("params", "--method", "mma").out
    assert table.count("674,560") == 2
    tiny = [
        "params",
        "--backbone",
        tiny_clip.name,
        "--json",
        "--set",
        "rank=2",
        "--set",
        "last_block=3",
    ]
    counts = json.loads(rmadapter(*tiny, "--set", "first_block=3", "--method", "mma").out)
    one = sum(2 * width * 2 + 2 + width for width in (64, 48))  # W_down and W_up with their biases
    assert counts == {"trainable": one + 2 * 2 + 2, "inference": one + 2 * 2 + 2}
    config = tmp_path / "c.yaml"
    config.write_text(
        f"method: mma\nbackbone: {tiny_clip.name}\nrank: 2\nlast_block: 3\nfirst_block: 3\n"
    )
    assert json.loads(rmadapter("params", "--config", config, "--json").out) == counts
    refused(rmadapter("params", "--set", "backbone=nonsense"), "nonsense")
    refused(rmadapter(*tiny, "--set", "first_block=4"), "last_block=3 is below first_block=4")
    keys = json.loads(
        rmadapter(
            "params",
            "--method",
            "tip-adapter-f",
            "--backbone",
            tiny_clip.name,
            "--classes",
            5,
            "--json",
        ).out
    )
    assert keys["trainable"] == 5 * 16 * 40


def test_predict_imports_nothing_that_only_others_need(finished: Path, colors: Path) -> None:
    code = """
import sys
from rmadapter.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
others = ["sklearn", "matplotlib", "pandas"]
others += ["rmadapter.artifacts.page", "rmadapter.support.html", "rmadapter.classifier"]
print([name for name in others if name in sys.modules], file=sys.stderr)
"""
    words = [
        "predict",
        finished,
        colors / "test" / "red" / "0.png",
        *backbone_option(finished),
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert json.loads(done.stdout)[0]["classes"][0]["class"] == "red"
