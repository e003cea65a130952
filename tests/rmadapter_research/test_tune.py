"""Searches are judged by training images alone, resume, and give the same result on a cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import add_tuned_rows
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.report.costs import uses_tables
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.runner import with_search
from rmadapter.data.read import read_images
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.folds import Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request, requested
from rmadapter.settings import Machine, read_yaml, settings_of
from rmadapter_research import tune as module
from rmadapter_research.search_space import make_space
from rmadapter_research.tune import (
    BEST,
    FILE,
    PICTURE,
    TUNER,
    Search,
    Study,
    Trial,
    Tuned,
    draw_trials,
    run_trial,
    tune,
    tune_job,
)
from tests.helpers.ray_cluster import ray_session
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import noisy_colors
from tests.helpers.synthetic_runs import record

__all__ = ["ray_session", "rmadapter"]  # fixtures
optuna = pytest.importorskip("optuna", reason="needs the extra tune: `make scale` installs it")

pytestmark = pytest.mark.real_plots
GIVEN = {"shots": 0, "device": "cpu", "epochs": 30}


def search_of(
    backbone: Backbone, data: Path, method: str = "clip-adapter",
    wanted: Sequence[str] = ("learning_rate=1e-5..1", "ratio"), **given: Any,
) -> tuple[Search, dict[str, Any]]:  # fmt: skip
    values = {**GIVEN, "backbone": backbone.name, **given}
    request = Request.make(values, method, data=str(data))
    return Search(request, values, folds=3), make_space(request.method, method, wanted)


@pytest.fixture(scope="module")
def tuned(
    tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tuned]:
    out = tmp_path_factory.mktemp("tuned")
    return out, tune(*search_of(tiny_clip, colors), 6, out, progress=False)


def figures(found: Tuned) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.params, trial.right) for trial in found.trials]


def test_trials_are_judged_by_folds_of_the_train_split(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path
) -> None:
    out, found = tuned
    assert [trial.number for trial in found.trials] == [*range(6)]
    assert (found.trials[0].params, len(found.trials[1].params)) == ({}, 2)
    values = {**GIVEN, **found.best.params, "backbone": tiny_clip.name}
    best = Request.make(values, "clip-adapter", data="x")
    lab = Lab(best.machine, progress=False)
    lab.add("x", {"all": read_images(colors)["train"]})
    folds = Folds.make(best.task, lab.draw(best.task), lab, 3)
    answers = folds.answers(best.method, "clip-adapter").table.argmax(1)
    accuracies = [trial.accuracy for trial in found.trials]
    hits = answers == np.array(folds.judged.labels)
    assert found.best.accuracy == pytest.approx(100 * hits.mean())
    assert found.best.accuracy == max(accuracy or 0 for accuracy in accuracies)
    file = json.loads((out / FILE).read_text())
    assert [trial["accuracy"] for trial in file["trials"]] == accuracies
    assert {"optuna", "torch", "rmadapter"} <= {*file["versions"]}
    assert "<svg" in (out / PICTURE).read_text()
    assert {path.name for path in out.iterdir()} == {FILE, BEST, PICTURE}


def test_the_best_settings_are_a_config(tuned: tuple[Path, Tuned]) -> None:
    out, found = tuned
    wanted = requested("", out / BEST, {}, None)
    assert (wanted.name, wanted.task.shots) == ("clip-adapter", 0)
    assert read_yaml(out / BEST)["epochs"] == 30
    for name, value in found.best.params.items():
        owner = wanted.method.recipe if hasattr(wanted.method.recipe, name) else wanted.method
        assert getattr(owner, name, value) == value


def test_test_images_are_never_seen(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    """With other images in the test split, and without one, the result is the same; and no fold
    holds a test image."""
    others = Path(shutil.copytree(colors, tmp_path / colors.name))
    for path in (others / "test").rglob("*.png"):
        Image.new("RGB", (32, 32), "white").save(path)
    folds = search_of(tiny_clip, others)[0].make_folds()
    assert {*folds.lab.splits(str(others))} == {"train"}
    paths = [path for path in folds.images.images if isinstance(path, Path)]
    assert all(others / "train" in path.parents for path in paths)
    for name in ("other", "none"):
        found = tune(*search_of(tiny_clip, others), 3, tmp_path / name, progress=False)
        assert figures(found) == figures(tuned[1])[:3]
        shutil.rmtree(others / "test", ignore_errors=True)


def test_a_stopped_search_resumes_with_the_same_result(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    search, space = search_of(tiny_clip, colors)
    calls = []

    def stopped(*given: Any) -> Trial:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_trial(*given)

    monkeypatch.setattr(module, "run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune(search, space, 6, tmp_path, progress=False)
    assert len(json.loads((tmp_path / FILE).read_text())["trials"]) == 3
    for count in (6, 4):  # the second has nothing left to do
        assert figures(tune(search, space, count, tmp_path, progress=False)) == figures(tuned[1])
        assert len(calls) == 4 + 3


def test_another_search_in_the_same_folder_is_refused(
    tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tuned[0], tmp_path / "out"))
    for given in ({"epochs": 31}, {"seed": 2}, {"shots": 3}):
        with pytest.raises(UserError, match="a different search"):
            tune(*search_of(tiny_clip, colors, **given), 6, out, progress=False)
    search, ranges = search_of(tiny_clip, colors)
    with pytest.raises(UserError, match="a different search"):
        tune(search, {"ratio": ranges["ratio"]}, 6, out, progress=False)
    (out / FILE).write_text((out / FILE).read_text().replace('"right"', '"wrong"'))
    with pytest.raises(UserError, match="damaged"):
        tune(search, ranges, 6, out, progress=False)


def test_a_failed_trial_has_its_reason(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    search, space = search_of(tiny_clip, colors, "mma", ["first_block=8,9"], epochs=1, rank=4)
    with pytest.raises(UserError, match="4 and 4 blocks"):
        tune(search, space, 2, tmp_path, progress=False)
    trials = json.loads((tmp_path / FILE).read_text())["trials"]
    assert ["4 blocks" in trial["reason"] for trial in trials] == [True, True]


def test_the_gain_has_a_paired_standard_error() -> None:
    trials = (Trial(0, {}, "1100"), Trial(1, {"a": 1}, "1111"), Trial(2, {"a": 2}, reason="no"))
    assert Tuned(trials).best.number == 1
    # differences 0, 0, 1, 1: a deviation of a half, over the root of four
    assert Tuned(trials).gain == (50, 25)
    assert Tuned((Trial(0, {}, reason="no"), Trial(1, {}, "1"))).gain is None


def test_one_worker_of_a_cluster_gives_the_same_result(
    ray_session: None, tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    search, ranges = search_of(tiny_clip, colors)
    found = tune(search, ranges, 4, tmp_path / "one", 1, "", progress=False)
    assert figures(found) == figures(tuned[1])[:4]
    # which propose by what they know by then
    two = tune(search, ranges, 5, tmp_path / "two", 2, "", progress=False)
    assert [trial.number for trial in two.trials] == [*range(5)]
    assert two.trials[0].right == found.trials[0].right


def test_methods_with_something_to_try_get_a_second_row() -> None:
    jobs = expand("few-shot", ["a"], ["zero-shot", "clip-adapter"], [1], [4])
    *plain, searched = add_tuned_rows(jobs, 5, {}, TUNER)
    assert [(job.method, job.variant, job.trials) for job in (*plain, searched)] == [
        ("zero-shot", "", 0),
        ("clip-adapter", "", 0),
        ("clip-adapter", "CLIP-Adapter, tuned by 5 trials", 5),
    ]
    assert "learning_rate" in searched.searched
    _, pinned = add_tuned_rows(jobs[1:], 5, {"clip-adapter": {"weight_decay": 0.0}}, TUNER)
    assert {*searched.searched} - {*pinned.searched} <= {"weight_decay"}
    assert pinned.variant == "CLIP-Adapter (weight_decay=0.0), tuned by 5 trials"
    ablation = expand("ablation-layers", ["a"], [], [1])
    assert list(add_tuned_rows(ablation, 5, {}, TUNER)) == ablation


def colors_lab(backbone: Backbone, train: int) -> Lab:
    lab = Lab(Machine(device="cpu"), progress=False)
    lab.add_backbone(backbone)
    lab.add("colors", {"train": noisy_colors(train), "test": noisy_colors(3, seed=1)})
    return lab


def searching_job(backbone: Backbone, shots: int) -> Job:
    [job] = expand("few-shot", ["colors"], ["clip-adapter"], [1], [shots])
    _, job = add_tuned_rows(
        [replace(job, task=replace(job.task, backbone=backbone.name))], 4, {}, TUNER
    )
    return job


def test_a_run_gets_the_settings_of_its_best_trial(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same seed the same trials; the images are those of the train split alone."""
    seen: list[dict[str, Any]] = []

    def judged(search: Any, folds: Any, number: int, params: dict[str, Any], *rest: Any) -> Trial:
        assert len(folds.rows) == 16
        seen.append(params)
        return Trial(number, params, "10" if number != 2 else "11", 2.5)

    monkeypatch.setattr(module, "run_trial", judged)
    lab, job = colors_lab(tiny_clip, 4), searching_job(tiny_clip, 4)
    method: Any = load_method("clip-adapter")
    found, note, seconds = tune_job(method, job, lab)
    assert seen[0] == {}
    assert {*seen[2]} == {*job.searched}
    assert settings_of(found) == settings_of(method) | seen[2]
    for word in ("4 folds of 16 training images", "100.0 %", "given 50.0"):
        assert word in note
    assert seconds == 4 * 2.5
    assert tune_job(method, job, lab) == (found, note, seconds)
    assert seen[:4] == seen[4:]


def test_too_few_images_for_folds_are_refused(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="too few images per class"):
        tune(*search_of(tiny_clip, colors, shots=1), 3, tmp_path, progress=False)
    with pytest.raises(UserError, match="colors: too few images per class"):
        tune_job(load_method("clip-adapter"), searching_job(tiny_clip, 1), colors_lab(tiny_clip, 1))


def test_a_bench_searches_for_each_run_once(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    data = ["--datasets", colors.name, "--root", colors.parent, "--backbone", tiny_clip.name]
    which = ["--methods", "zero-shot,clip-adapter", "--seeds", "1", "--shots", "4", "--tune", "2"]
    sets = ["--set", "device=cpu", "--set", "clip-adapter.epochs=1"]
    given = ["few-shot", *data, *which, *sets, "--out", tmp_path / "runs"]
    planned = rmadapter.json("bench", *given, "--plan")
    assert [line["variant"] for line in planned["lines"]].count("") == 2
    assert planned["left"] == 3
    code, out, err = rmadapter("bench", *given, "--json")
    assert code == 0, err
    records = [parse_record(json.dumps(line), "") for line in json.loads(out)]
    _, plain, searched = records
    label = "CLIP-Adapter (epochs=1), tuned by 2 trials"
    assert [one.variant for one in records] == ["", "", label]
    assert searched.notes[-1].startswith("tuned by 2 trials on 4 folds of 16 training images")
    assert searched.method.settings["epochs"] == plain.method.settings["epochs"] == 1
    assert searched.seconds["search"] > 0
    parts = sum(searched.seconds[name] for name in ("frozen", "train", "evaluate", "search"))
    assert searched.seconds["total"] == pytest.approx(parts, abs=0.0025)  # of three decimals each
    assert "search" not in plain.seconds
    assert rmadapter("bench", *given, "--json").out == out  # nothing is searched twice
    refused(rmadapter("bench", *given, "--set", "clip-adapter.epochs=2"), "epochs")
    [table] = uses_tables(group_records(records)[0])
    tuned_on = {row.label: row.cells[-1].text for row in table.rows}
    published = "as published for ImageNet"
    assert tuned_on["CLIP-Adapter (epochs=1)"] == published
    assert tuned_on[label] == f"{published}; then 2 trials on folds of its shots"


def test_a_copied_record_has_its_own_search_only() -> None:
    plain = record("mma", "a", 1, {"all": 50.0}, protocol="few-shot")
    searched = with_search(plain, "tuned by 2 trials, the best", 7.0)
    expected = {**plain.seconds, "search": 7.0, "total": plain.seconds["total"] + 7.0}
    assert searched.seconds == expected
    assert with_search(searched, "", 0.0) == plain
    again = with_search(searched, "tuned by 3 trials", 1.0)
    assert again.notes == ("tuned by 3 trials",)
    assert again.seconds["total"] == plain.seconds["total"] + 1.0


def test_the_picture_has_an_axis_for_each_setting() -> None:
    space = make_space(load_method("rmadapter"), "rmadapter", ["alpha", "share"])
    trials = [
        Trial(1, {"alpha": 0.05, "share": "up"}, "10"),
        Trial(2, {"alpha": 0.5, "share": "none"}),
        Trial(3, {"alpha": 0.3, "share": "down"}, "11"),
    ]
    picture = draw_trials(Study(space, 1, trials, 1))
    ElementTree.fromstring(picture)
    for word in ("alpha", "share", "down", "up", "100"):
        assert f">{word}<" in picture
    ElementTree.fromstring(draw_trials(Study(space, 1, (), 1)))  # nothing to draw yet
