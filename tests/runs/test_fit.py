"""A run from a folder of images to its report: once, twice, killed, and into folders that are not
for it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pytest
from safetensors import safe_open

import rmadapter.runs.fit
import rmadapter.training.loop
from rmadapter.artifacts.checkpoint import load
from rmadapter.artifacts.page import rewrite_page
from rmadapter.artifacts.record import Record, read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import few_shot
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.fit import Origin, fit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.settings import read_yaml
from rmadapter.support.locks import exclusive
from tests.helpers.decodes import count_decodes
from tests.helpers.labs import prepare
from tests.helpers.slow import slow_except

MODEL = "model.safetensors"
DONE = {MODEL, "model.json", "config.yaml", "history.csv", "report.html", "run.json", "split.json"}
DONE |= {"SHA256SUMS", "predictions.csv", "why.json"}


def again(finished: Path, splits: Mapping[str, ImageSet], out: Path, **settings: Any) -> Record:
    """The finished run into another folder, with other settings."""
    folds = settings.pop("folds", None)
    values = {**read_yaml(finished / "config.yaml"), "device": "cpu", **settings}
    wanted = Request.make(values, values.pop("method"), data="colors")
    lab = Lab(wanted.machine, progress=False)
    lab.add("colors", splits)
    names = {"label": "art"}
    return fit(
        wanted.task, wanted.method, out, lab, wanted.name, folds=folds, origin=Origin(columns=names)
    )


def content(run: Path) -> bytes:
    return (run / MODEL).read_bytes()


def steps_saved(out: Path) -> int:
    with safe_open(RunFolder(out).training, "pt") as file:
        return int(json.loads(file.metadata()["progress"])["step"])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_these_files_and_learns(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == DONE
    record = read_record(finished / "run.json")
    [score] = record.scores
    assert (score.title, score.images, score.classes) == ("test, all classes", 16, 4)
    # colours are easy, and a random backbone does not know their names
    assert (score.accuracy or 0) > 90 > 50 > (score.zero_shot or 100)
    history = (finished / "history.csv").read_text().splitlines()
    assert history[0].startswith("step,epoch,loss,ce,")
    assert [line.split(",")[0] for line in history[1:]] == [str(step) for step in range(1, 41)]
    assert float(history[-1].split(",")[2]) < float(history[1].split(",")[2])
    assert "test, all classes" in (finished / "report.html").read_text("utf-8")


def cut(image: Path) -> Path:
    """Remove the end of an image file; its header stays."""
    image.write_bytes(image.read_bytes()[:-30])
    return image


@pytest.mark.ci
def test_drawn_and_judged_images_are_decoded_once_and_others_never(
    finished: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_decodes(monkeypatch)
    before_page: dict[str, int] = {}

    def no_mistakes(*_: object) -> list[Any]:
        before_page.update(counts)
        return []

    monkeypatch.setattr(rmadapter.runs.fit, "find_mistakes", no_mistakes)
    splits = read_images(colors)
    again(finished, splits, tmp_path / "run", shots=2)
    few = few_shot(splits, 2, 1)
    assert len(few.heldout) > 0
    used = (*few.train.images, *splits["test"].images)
    assert before_page == {str(image): 1 for image in used}


def test_a_broken_image_is_refused_if_it_is_drawn_or_judged(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(colors, tmp_path / "data"))
    few = few_shot(read_images(data), 2, 1)
    undrawn = cut(Path(str(few.heldout.images[0])))
    assert again(finished, read_images(data), tmp_path / "good", shots=2).scores
    with pytest.raises(UserError, match=f"{undrawn.name}: .*--skip-bad"):
        read_images(data, check=True)
    drawn = cut(Path(str(few.train.images[0])))
    with pytest.raises(UserError, match=f"{drawn.name}: .*--skip-bad"):
        again(finished, read_images(data), tmp_path / "run", shots=2)
    assert not (tmp_path / "run").exists()
    shutil.copy(colors / drawn.relative_to(data), drawn)
    judged = cut(next((data / "test").glob("*/*")))
    with pytest.raises(UserError, match=f"{judged.name}: .*--skip-bad"):
        again(finished, read_images(data), tmp_path / "run", shots=2)


def test_the_same_call_returns_the_finished_run(finished: Path, colors: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert again(finished, read_images(colors), finished) == read_record(finished / "run.json")
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_another_run_is_not_overwritten(finished: Path, colors: Path, copy: Path) -> None:
    before, splits = files_of(copy), read_images(colors)
    swapped = {"train": splits["test"], "test": splits["train"]}
    others: list[dict[str, Any]] = [{"rank": 5}, {"seed": 2}, {"precision": "bf16"}, {"folds": 2}]
    for data, settings in ((swapped, {}), *((splits, settings) for settings in others)):
        with pytest.raises(UserError, match="holds another run: choose another --out"):
            again(finished, data, copy, **settings)
    assert files_of(copy) == before


@pytest.mark.ci
def test_a_finished_run_is_not_returned_for_another_test_split(
    finished: Path, colors: Path, copy: Path
) -> None:
    splits = read_images(colors)
    fewer = {**splits, "test": splits["test"].subset(range(1, len(splits["test"])))}
    for data in (fewer, {"train": splits["train"]}):
        with pytest.raises(UserError, match=r"was judged on different images \(all classes\)"):
            again(finished, data, copy)
    path, kept = copy / "run.json", again(finished, splits, copy)
    assert kept.scores[0].digest == splits["test"].digest
    # a record that does not say it
    path.write_text(path.read_text().replace(kept.scores[0].digest, ""))
    assert again(finished, fewer, copy).scores[0].digest == ""


def test_a_run_that_lost_its_model_is_made_again(finished: Path, colors: Path, copy: Path) -> None:
    (copy / MODEL).unlink()
    again(finished, read_images(colors), copy)
    assert content(copy) == content(finished)
    assert read_record(copy / "run.json").columns == {"label": "art"}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from statistics import harmonic_mean
import rmadapter.training.loop as train
from rmadapter.training.traits import Recipe
from rmadapter.data.read import read_images
from rmadapter.runs.request import Request
from rmadapter.runs.fit import Origin, fit
from rmadapter.runs.lab import Lab
train.SAVE_SECONDS = -1.0
rate = Recipe.rate
def dies(recipe, step, per_epoch, epochs):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(recipe, step, per_epoch, epochs)
Recipe.rate = dies
values = json.loads(sys.argv[1])
wanted = Request.make(values, values.pop("method"), data="colors")
lab = Lab(wanted.machine, progress=False)
lab.add("colors", read_images(sys.argv[2]))
fit(wanted.task, wanted.method, Path(sys.argv[3]), lab, wanted.name, folds=0)
"""


@pytest.mark.ci
@pytest.mark.parametrize("augmentation", slow_except(["none", "standard"], "none"))
def test_killed_and_started_again_it_ends_the_same(
    finished: Path, colors: Path, tmp_path: Path, augmentation: str
) -> None:
    """SIGKILL in the middle of the third epoch; the first process leaves nothing but its file of
    state."""
    values = {"augmentation": augmentation, "optimizer": "adamw", "device": "cpu"}
    given = json.dumps({**read_yaml(finished / "config.yaml"), **values})
    out, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run([sys.executable, "-c", KILLED, given, colors, out], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert {path.name for path in out.iterdir()} == {".lock", "split.json", "training.safetensors"}
    assert steps_saved(out) == 5
    splits = read_images(colors)
    with pytest.raises(UserError, match="holds another, unfinished training"):
        again(finished, splits, out, **values, rank=5, folds=0)
    again(finished, splits, out, **values, folds=0)
    again(finished, splits, whole, **values, folds=0)
    assert content(out) == content(whole)
    assert {path.name for path in out.iterdir()} == DONE
    assert (out / "history.csv").read_text() == (whole / "history.csv").read_text()


LEFT = (
    ".run.json.abcd_123.part",
    ".training.safetensors.12345678.part",
    ".activations/train/.frozen.bin.abcdefgh.part",
)


@pytest.mark.ci
@pytest.mark.parametrize("when", ["before its record", "between its record and its clean-up"])
def test_what_killed_runs_left_is_removed_by_the_next(
    finished: Path, colors: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "run"
    if when == "before its record":
        out.mkdir()
    else:
        shutil.copytree(finished, out)
        RunFolder(out).training.write_bytes(b"of a training that is done")
    for name in (*LEFT, ".lock", ".notes.settings"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    again(finished, read_images(colors), out)
    assert {path.name for path in out.iterdir()} == {*DONE, ".notes.settings"}  # the user's own
    assert content(out) == content(finished)


def test_two_runs_never_mix_in_one_folder(finished: Path, colors: Path, tmp_path: Path) -> None:
    splits = read_images(colors)
    with exclusive(tmp_path), pytest.raises(UserError, match="another process is at work"):
        again(finished, splits, tmp_path, backbone="/not/there")  # would be the next complaint
    again(finished, splits, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == DONE


def test_training_never_opens_a_test_image(
    finished: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images vanish before the run: it trains to the last step and fails at the first one
    it evaluates."""
    data, out = Path(shutil.copytree(colors, tmp_path / "data")), tmp_path / "run"
    splits = read_images(data)
    shutil.rmtree(data / "test")
    monkeypatch.setattr(rmadapter.training.loop, "SAVE_SECONDS", -1.0)
    with pytest.raises(UserError, match=r"test/blue/0\.png"):
        again(finished, splits, out)
    assert steps_saved(out) == 40
    shutil.copytree(colors / "test", data / "test")
    again(finished, splits, out)  # goes on with the evaluation
    assert content(out) == content(finished)


def test_base_classes_train_and_both_halves_are_evaluated(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    record = again(finished, read_images(colors), tmp_path, classes="base", epochs=2, shots=8)
    base, novel = record.scores
    assert (base.title, novel.title) == ("test, base classes", "test, novel classes")
    assert base.classes == novel.classes == 2
    for zero_shot in (False, True):
        halves = [record.metric(half, zero_shot) or 0 for half in ("base", "novel")]
        assert record.metric("hm", zero_shot) == pytest.approx(harmonic_mean(halves))
    assert load(tmp_path, record.backbone.name).fitted.classes == ("blue", "green")
    assert record.notes[0] == "class 'blue' has 6 images, fewer than 8 shots"


@pytest.mark.ci
def test_bars_count_the_steps_of_all_trainings(
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rmadapter.support.progress_lines.LINE_SECONDS", 0.0)
    wanted, lab = prepare(tiny_clip, {"all": read_images(colors)["train"]}, epochs=1)
    lab.progress = True
    fit(wanted.task, wanted.method, tmp_path, lab, wanted.name, folds=2)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("training")]
    # 12 of 24 images make 2 steps in each of 2 folds, and all of them 3
    assert [re.sub(r",.*model", ", model", line).split(", loss")[0] for line in lines] == [
        *[f"training: {step} of 6, model {1 + (step > 2)} of 3" for step in (1, 2, 3, 4)],
        *[f"training: {step} of 9, model 3 of 3" for step in (7, 8, 9)],
    ]


@pytest.mark.slow
def test_without_a_test_split(finished: Path, colors: Path, tmp_path: Path) -> None:
    """What was not drawn is evaluated; where that is less than what was drawn, or nothing, the
    shots judge in turn."""
    splits = {"all": read_images(colors)["train"]}

    def titles(out: str, images: Mapping[str, ImageSet], **settings: int) -> list[tuple[str, int]]:
        record = again(finished, images, tmp_path / out, epochs=2, **settings)
        return [(score.title, score.images) for score in record.scores]

    judged, held_out = "cross-validated, all classes", "held out, all classes"
    assert titles("a", splits, shots=3) == [(held_out, 12)]
    assert titles("b", splits) == [(judged, 16), (held_out, 8)]
    assert titles("c", splits, shots=0) == [(judged, 24)]
    page = (tmp_path / "c/report.html").read_text("utf-8")
    assert "Is it good?" in page
    assert "are too few to judge by" in page
    assert titles("d", {"all": splits["all"].subset([0, 6, 12, 18])}) == []
    record = read_record(tmp_path / "d/run.json")
    assert record.judgement is None
    assert "no image was left to evaluate on" in record.notes[-1]


@pytest.mark.ci
def test_a_run_says_how_small_an_error_it_can_promise(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    """By all of its shots, where it knows its answers without each; else by a quarter of them."""

    def run(method: str, **settings: int) -> tuple[int, str]:
        wanted, lab = prepare(tiny_clip, read_images(colors), method, shots=6, **settings)
        record = fit(wanted.task, wanted.method, tmp_path / method, lab, wanted.name)
        calibration = load(tmp_path / method, tiny_clip).fitted.calibration
        return len(calibration.shares) if calibration else 0, record.notes[-1]

    images, text = run("block-ridge")
    assert images == 24
    assert text.startswith("an error of 9.2 % or more can be promised, by 24 training images, each")
    assert text.endswith("had not seen it: predict --error 9.2%")
    for method, settings in (("linear-probe", {}), ("rmadapter", {"epochs": 1})):
        images, text = run(method, **settings)
        assert images in (4, 5, 6, 7, 8)
        assert f"by {images} training images, each" in text


@pytest.mark.ci
def test_a_run_whose_promise_is_not_kept_says_so_and_keeps_it_in_mind(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    splits = read_images(colors)
    wrong = tuple((label + 1) % 4 for label in splits["test"].labels)
    splits["test"] = replace(splits["test"], labels=wrong)
    wanted, lab = prepare(tiny_clip, splits, "linear-probe", shots=6)
    record = fit(wanted.task, wanted.method, tmp_path / "run", lab, wanted.name, folds=4)
    assert "an error of 10 %" in record.notes[-1]
    assert "not kept" in record.notes[-1]
    calibration = load(tmp_path / "run", tiny_clip).fitted.calibration
    assert calibration is not None
    assert calibration.broken == (0.1,)
    assert record.judgement is not None
    [measured] = record.judgement.promises
    assert calibration.missed == (pytest.approx(measured.missed / 100),)


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
    with pytest.raises(UserError, match=r"cannot be written to .+: choose another folder"):
        # the backbone would be the next complaint
        again(finished, read_images(colors), out, backbone="/not/there")


def test_the_page_says_how_many_images_the_classes_had(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    splits = read_images(colors)
    train = splits["train"]
    few = train.subset(i for i, label in enumerate(train.labels) if label or i % 2)
    again(finished, {**splits, "train": few}, tmp_path / "run", shots=6, epochs=1)
    assert "given 3 to 6 images per class" in (tmp_path / "run/report.html").read_text()


def test_the_page_is_made_again_from_the_folder_alone(copy: Path) -> None:
    """Byte for byte, though the data, of which the record has a name alone, is not there."""
    before = files_of(copy)
    assert rewrite_page(copy) == copy / "report.html"
    assert files_of(copy) == before
    (copy / "predictions.csv").write_text("another")
    with pytest.raises(UserError, match="does not match SHA256SUMS"):
        rewrite_page(copy)
    assert (copy / "report.html").read_bytes() == before["report.html"]
