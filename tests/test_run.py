"""A run from a folder of pictures to its report: once, twice, killed, and into folders that are not for it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import rmadapter.train
from rmadapter.backbone import Backbone
from rmadapter.checkpoint import load_adapter
from rmadapter.config import Config
from rmadapter.data.fewshot import few_shot
from rmadapter.data.images import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.evaluation import Evaluation, novelty_quantiles
from rmadapter.run import STATE, evaluate_run, fit, held_out, metrics

ADAPTER = "adapter.safetensors"
DONE = {ADAPTER, "classes.json", "config.yaml", "report.html", "run.json", "split.json"}


def config_of(run: Path, **fields: Any) -> Config:
    return Config.load(run / "config.yaml").replace(**fields)


def content(run: Path) -> bytes:
    return (run / ADAPTER).read_bytes()


def steps_saved(out: Path) -> int:
    with safe_open(out / STATE, "pt") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def test_a_run_leaves_these_files_and_learns(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == DONE
    run = json.loads((finished / "run.json").read_text("utf-8"))
    (title, row), *more = run["metrics"].items()
    assert (title, more) == ("test, all classes", [])
    assert (row["n_images"], row["n_classes"], row["chance"]) == (16, 4, 25)
    assert row["accuracy"] > 90  # colours are easy, and a random backbone does not know their names
    assert row["zero_shot_accuracy"] < 50
    assert [record["step"] for record in run["history"]] == list(range(1, 41))
    assert run["history"][-1]["loss"] < run["history"][0]["loss"]
    assert "test, all classes" in (finished / "report.html").read_text("utf-8")


def test_the_novelty_scale_is_that_of_the_drawn_images(finished: Path, colors: Path, tiny_clip: Backbone) -> None:
    model, _, run = load_adapter(finished, tiny_clip)
    drawn = few_shot(read_images(colors), model.config.shots, model.config.seed).train
    assert run["novelty_quantiles"] == pytest.approx(novelty_quantiles(model, drawn, progress=False))


def test_the_same_call_returns_the_finished_run(finished: Path, colors: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    run = fit(read_images(colors), config_of(finished), finished, progress=False)
    assert run == json.loads((finished / "run.json").read_text("utf-8"))
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_another_run_is_not_overwritten(finished: Path, colors: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    splits = read_images(colors)
    swapped = {"train": splits["test"], "test": splits["train"]}
    for data, config in ((splits, config_of(out, rank=5)), (splits, config_of(out, seed=2)), (swapped, config_of(out))):
        with pytest.raises(UserError, match="holds another run: choose another --out or delete that folder"):
            fit(data, config, out, progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_that_lost_its_adapter_is_made_again(finished: Path, colors: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / ADAPTER).unlink()
    fit(read_images(colors), config_of(out), out, progress=False)
    assert content(out) == content(finished)


@pytest.mark.parametrize("augmentation", ["none", "standard"])
def test_killed_and_started_again_it_ends_the_same(
    finished: Path, colors: Path, tmp_path: Path, augmentation: str
) -> None:
    """SIGKILL in the middle of the third epoch; the first process leaves nothing but its file of state."""
    config = config_of(finished, augmentation=augmentation, optimizer="adamw")
    config.save(tmp_path / "config.yaml")
    code = """
import os, signal, sys
from pathlib import Path
import rmadapter.train as train
from rmadapter.config import Config
from rmadapter.data.images import read_images
from rmadapter.run import fit
train.SAVE_SECONDS = -1.0
rate = train.learning_rate
def learning_rate(config, step, steps):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(config, step, steps)
train.learning_rate = learning_rate
data, config, out = map(Path, sys.argv[1:])
fit(read_images(data), Config.load(config), out, progress=False)
"""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run([sys.executable, "-c", code, colors, tmp_path / "config.yaml", out], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert {path.name for path in out.iterdir()} == {"split.json", STATE}
    assert steps_saved(out) == 5
    with pytest.raises(UserError, match="holds another, unfinished training"):
        fit(read_images(colors), config.replace(rank=5), out, progress=False)
    fit(read_images(colors), config, out, progress=False)
    fit(read_images(colors), config, whole, progress=False)
    assert content(out) == content(whole)
    assert {path.name for path in out.iterdir()} == DONE
    histories = [json.loads((run / "run.json").read_text())["history"] for run in (out, whole)]
    assert histories[0] == histories[1]


def test_training_never_opens_a_test_picture(
    finished: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test pictures vanish before the run: it trains to the last step and fails at the first one it evaluates."""
    data, out = Path(shutil.copytree(colors, tmp_path / "data")), tmp_path / "run"
    splits = read_images(data)
    shutil.rmtree(data / "test")
    monkeypatch.setattr(rmadapter.train, "SAVE_SECONDS", -1.0)
    with pytest.raises(UserError, match=r"test/blue/0\.png"):
        fit(splits, config_of(finished), out, progress=False)
    assert steps_saved(out) == 40
    shutil.copytree(colors / "test", data / "test")
    fit(splits, config_of(finished), out, progress=False)  # goes on with the evaluation
    assert content(out) == content(finished)


def test_base_classes_train_and_both_halves_are_evaluated(finished: Path, colors: Path, tmp_path: Path) -> None:
    splits = read_images(colors)
    fields = {"classes": "base", "epochs": 2, "shots": 8}
    run = fit(splits, config_of(finished, **fields), tmp_path, progress=False, notes=("a word",))
    assert list(run["metrics"]) == ["test, base classes", "test, novel classes", "harmonic_mean"]
    base, novel, mean = run["metrics"].values()
    assert base["n_classes"] == novel["n_classes"] == 2
    for name in ("accuracy", "zero_shot_accuracy"):
        both = base[name] + novel[name]
        assert mean[name] == pytest.approx(2 * base[name] * novel[name] / both if both else 0)
    assert load_adapter(tmp_path)[1] == ("blue", "green")
    assert run["notes"][0] == "class 'blue' has 6 images, fewer than 8 shots"
    assert run["notes"][-1] == "a word"


def test_without_a_test_split_what_was_not_drawn_is_evaluated(finished: Path, colors: Path, tmp_path: Path) -> None:
    splits = {"all": read_images(colors)["train"]}
    run = fit(splits, config_of(finished, epochs=2), tmp_path / "a", progress=False)
    assert {title: row["n_images"] for title, row in run["metrics"].items()} == {"held out, all classes": 4 * (6 - 4)}
    run = fit(splits, config_of(finished, epochs=2, shots=0), tmp_path / "b", progress=False)
    assert run["metrics"] == {}
    assert run["notes"] == ["no image was left to evaluate: add a test split, or draw fewer shots"]


def test_titles_of_what_is_held_out() -> None:
    def images(*labels: int) -> ImageSet:
        return ImageSet(tuple(np.full((2, 2, 3), label, np.uint8) for label in labels), labels, ("a", "b", "c"))

    def lengths(splits: dict[str, ImageSet], classes: Any) -> dict[str, int]:
        found = held_out(splits, few_shot(splits, 1, 1), classes)
        return {title: len(part) for title, part in found.items()}

    splits = {"train": images(0, 1, 2, 2), "test": images(0, 1, 1, 2)}
    assert lengths(splits, "all") == {"test, all classes": 4}
    assert lengths(splits, "base") == {"test, base classes": 3, "test, novel classes": 1}
    assert lengths(splits, "novel") == {"test, novel classes": 1}
    assert lengths({**splits, "test": images()}, "all") == {"held out, all classes": 1}
    assert lengths({"train": images(0, 1, 2, 2)}, "base") == {"held out, novel classes": 1}
    assert lengths({"train": images(0, 1, 2)}, "base") == {}


def test_metrics_take_the_harmonic_mean_of_the_first_base_and_novel_set() -> None:
    def answers(title: str, right: int) -> Evaluation:
        good = np.array([[0.9, 0.1]] * right + [[0.1, 0.9]] * (10 - right))
        return Evaluation(title, ("a", "b"), np.zeros(10, int), good, good[:, ::-1], np.empty(0))

    sets = [answers("test, base classes", 6), answers("test, novel classes", 3), answers("lines, base classes", 1)]
    table = metrics(sets)
    assert list(table) == ["test, base classes", "test, novel classes", "lines, base classes", "harmonic_mean"]
    assert table["harmonic_mean"] == pytest.approx({"accuracy": 40, "zero_shot_accuracy": 2 * 40 * 70 / 110})
    assert "harmonic_mean" not in metrics(sets[:1])


@pytest.mark.parametrize("kind", ["file", "below a file", "read only"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    finished: Path, colors: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "read only":
        out = Path("/proc/run")  # not even root can write there
        if not out.parent.exists():
            pytest.skip("no /proc on this system")
    else:
        (tmp_path / "taken").write_text("x")
        out = tmp_path / "taken" / ("run" if kind == "below a file" else "")
    config = config_of(finished, backbone="/not/there")  # would be the next complaint
    with pytest.raises(UserError, match=r"no folder to write a run to .+: choose another --out"):
        fit(read_images(colors), config, out, progress=False)


def test_evaluating_a_saved_run(finished: Path, colors: Path) -> None:
    splits = read_images(colors)
    recorded = json.loads((finished / "run.json").read_text("utf-8"))["metrics"]["test, all classes"]
    assert evaluate_run(finished, splits, "test", "all", None, progress=False).summary() == recorded
    untouched = evaluate_run(finished, splits, "test", "all", 0, progress=False)
    assert untouched.summary()["accuracy"] == recorded["zero_shot_accuracy"]
    novel = evaluate_run(finished, splits, "test", "novel", None, progress=False)
    assert novel.classes == ("night sky", "red")
    assert len(novel.novelty) == len(novel.labels) == 8
    assert evaluate_run(finished, splits, "heldout", "all", None, progress=False).summary()["n_images"] == 8


def test_evaluating_what_is_not_there_is_refused(finished: Path, colors: Path, tiny_clip: Backbone) -> None:
    splits = read_images(colors)
    with pytest.raises(UserError, match="there is no val split in the data: give --split one of train, test, heldout"):
        evaluate_run(finished, splits, "val", "all", None, progress=False)
    with pytest.raises(UserError, match="was trained on other images: --split heldout needs the data it was fitted to"):
        evaluate_run(finished, {"train": splits["test"]}, "heldout", "all", None, progress=False)
