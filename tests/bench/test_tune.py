"""Searches are judged by training images alone, resume, and give the same result on a cluster."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.bench import tune as module
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.tables import uses_tables
from rmadapter.bench.runner import with_search
from rmadapter.bench.search_space import make_space
from rmadapter.bench.tune import (
    BEST,
    FILE,
    PICTURE,
    Search,
    Trial,
    Tuned,
    add_tuned_rows,
    draw_trials,
    heights,
    run_trial,
    tune,
    tune_job,
)
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.folds import Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request, requested
from rmadapter.settings import Machine, read_yaml, settings_of
from tests.helpers.ray_cluster import ray_session
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import noisy_colors
from tests.helpers.synthetic_runs import record

__all__ = ["ray_session", "rmadapter"]  # fixtures
optuna = pytest.importorskip("optuna", reason="needs the extra ray: `make scale` installs it")

pytestmark = pytest.mark.real_plots
GIVEN = {"shots": 0, "device": "cpu", "epochs": 30}


def search_of(
    backbone: Backbone, data: Path, method: str = "clip-adapter", **given: Any
) -> tuple[Search, Any]:
    values = {**GIVEN, "backbone": backbone.name, **given}
    request = Request.make(values, method, data=str(data))
    return Search(request, values, folds=3), make_space(
        request.method, method, ["learning_rate=1e-5..1", "ratio"]
    )


@pytest.fixture(scope="module")
def tuned(
    tiny_clip: Backbone, colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tuned]:
    out = tmp_path_factory.mktemp("tuned")
    return out, tune(*search_of(tiny_clip, colors), 6, out, progress=False)


def figures(found: Tuned) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.params, trial.right) for trial in found.trials]


def test_trials_are_judged(tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path) -> None:
    """By folds of the train split, made and asked by hand."""
    from rmadapter.data.read import read_images
    from rmadapter.runs.lab import Lab

    out, found = tuned
    assert [trial.number for trial in found.trials] == [*range(6)]
    assert (found.trials[0].params, len(found.trials[1].params)) == ({}, 2)
    best = found.best
    wanted = Request.make(
        {**GIVEN, **best.params, "backbone": tiny_clip.name}, "clip-adapter", data="x"
    )
    lab = Lab(wanted.machine, progress=False)
    lab.add("x", {"all": read_images(colors)["train"]})
    folds = Folds.make(wanted.task, lab.draw(wanted.task), lab, 3)
    hits = folds.answers(wanted.method, "clip-adapter").table.argmax(1) == np.array(
        folds.judged.labels
    )
    assert best.accuracy == pytest.approx(100 * hits.mean())
    assert best.accuracy == max(trial.accuracy or 0 for trial in found.trials)
    file = json.loads((out / FILE).read_text())
    assert [trial["accuracy"] for trial in file["trials"]] == [
        trial.accuracy for trial in found.trials
    ]
    assert {"optuna", "torch", "rmadapter"} <= {*file["versions"]}
    assert "<svg" in (out / PICTURE).read_text()
    assert {path.name for path in out.iterdir()} == {FILE, BEST, PICTURE}


def test_the_best_is_a_config(tuned: tuple[Path, Tuned]) -> None:
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
    """With others in the test split, and with none, the same is found; and no fold holds one."""
    others = Path(shutil.copytree(colors, tmp_path / colors.name))
    for path in (others / "test").rglob("*.png"):
        Image.new("RGB", (32, 32), "white").save(path)
    search, ranges = search_of(tiny_clip, others)
    folds = search.make_folds()
    assert {*folds.lab.splits(str(others))} == {"train"}
    assert all(
        others / "train" in path.parents for path in folds.images.images if isinstance(path, Path)
    )
    assert (
        figures(tune(search, ranges, 3, tmp_path / "out", progress=False)) == figures(tuned[1])[:3]
    )
    shutil.rmtree(others / "test")
    found = tune(*search_of(tiny_clip, others), 3, tmp_path / "without", progress=False)
    assert figures(found) == figures(tuned[1])[:3]


def test_a_stopped_search_finds_what_one_that_was_not_does(
    tuned: tuple[Path, Tuned],
    tiny_clip: Backbone,
    colors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search, ranges = search_of(tiny_clip, colors)
    calls = []

    def stopped(*given: Any) -> Trial:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run_trial(*given)

    monkeypatch.setattr("rmadapter.bench.tune.run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune(search, ranges, 6, tmp_path, progress=False)
    assert len(json.loads((tmp_path / FILE).read_text())["trials"]) == 3
    assert figures(tune(search, ranges, 6, tmp_path, progress=False)) == figures(tuned[1])
    assert len(calls) == 4 + 3
    # nothing is left to do
    assert figures(tune(search, ranges, 4, tmp_path, progress=False)) == figures(tuned[1])
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


def test_invalid_settings_give_a_reason(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    request = Request.make(
        {**GIVEN, "epochs": 1, "rank": 4, "backbone": tiny_clip.name}, "mma", data=str(colors)
    )
    search = Search(request, folds=2)
    with pytest.raises(UserError, match="4 and 4 blocks"):
        tune(
            search,
            make_space(request.method, "mma", ["first_block=8,9"]),
            2,
            tmp_path,
            progress=False,
        )
    trials = json.loads((tmp_path / FILE).read_text())["trials"]
    assert ["4 blocks" in trial["reason"] for trial in trials] == [True, True]


def test_the_gain_is_paired() -> None:
    found = Tuned(
        (Trial(0, {}, "1100"), Trial(1, {"a": 1}, "1111"), Trial(2, {"a": 2}, "", reason="no"))
    )
    assert found.best.number == 1
    # differences 0, 0, 1, 1: a deviation of a half, over the root of four
    assert found.gain == (50, 25)
    assert Tuned((Trial(0, {}, "", reason="no"), Trial(1, {}, "1"))).gain is None


def test_too_few_images_for_folds(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few images per class for the folds"):
        tune(*search_of(tiny_clip, colors, shots=1), 3, tmp_path, progress=False)


def test_one_worker_of_a_cluster_finds_the_same(
    ray_session: None, tuned: tuple[Path, Tuned], tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    search, ranges = search_of(tiny_clip, colors)
    found = tune(search, ranges, 4, tmp_path / "one", 1, "", progress=False)
    assert figures(found) == figures(tuned[1])[:4]
    # which propose by what they know by then
    two = tune(search, ranges, 5, tmp_path / "two", 2, "", progress=False)
    assert [trial.number for trial in two.trials] == [*range(5)]
    assert two.trials[0].right == found.trials[0].right


def test_a_second_row_where_there_is_something_to_try() -> None:
    jobs = expand("few-shot", ["a"], ["zero-shot", "clip-adapter"], [1], [4])
    found = list(add_tuned_rows(jobs, 5, {}))
    assert [(job.method, job.variant, job.trials) for job in found] == [
        ("zero-shot", "", 0),
        ("clip-adapter", "", 0),
        ("clip-adapter", "CLIP-Adapter, tuned by 5 trials", 5),
    ]
    assert "learning_rate" in found[2].searched
    pinned = list(add_tuned_rows(jobs[1:], 5, {"clip-adapter": {"weight_decay": 0.0}}))[1]
    assert {*found[2].searched} - {*pinned.searched} <= {"weight_decay"}
    ablation = expand("ablation-layers", ["a"], [], [1])
    assert list(add_tuned_rows(ablation, 5, {})) == ablation


def test_the_best_trial_wins(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same seed the same trials; the images are those of the train split alone."""
    seen: list[dict[str, Any]] = []

    def judged(search: Any, folds: Any, number: int, params: dict[str, Any]) -> Trial:
        assert len(folds.rows) == 16
        seen.append(params)
        return Trial(number, params, "10" if number != 2 else "11", 2.5)

    monkeypatch.setattr(module, "run_trial", judged)
    lab = Lab(Machine(device="cpu"), progress=False)
    lab.add_backbone(tiny_clip)
    splits: dict[str, ImageSet] = {"train": noisy_colors(4), "test": noisy_colors(3, seed=1)}
    lab.add("colors", splits)
    [job] = expand("few-shot", ["colors"], ["clip-adapter"], [1], [4])
    job = list(
        add_tuned_rows([replace(job, task=replace(job.task, backbone=tiny_clip.name))], 4, {})
    )[1]
    method: Any = load_method("clip-adapter")
    found, told, seconds = tune_job(method, job, lab)
    assert seen[0] == {}
    assert {*seen[2]} == {*job.searched}
    assert settings_of(found) == settings_of(method) | seen[2]
    assert (
        told == "tuned by 4 trials on 4 folds of 16 training images, "
        "the best of which has 100.0 %, as given 50.0"
    )
    assert seconds == 4 * 2.5
    assert tune_job(method, job, lab) == (found, told, seconds)
    assert seen[:4] == seen[4:]


def test_too_few_images_are_named(tiny_clip: Backbone) -> None:
    lab = Lab(Machine(device="cpu"), progress=False)
    lab.add_backbone(tiny_clip)
    lab.add("colors", {"train": noisy_colors(1), "test": noisy_colors(1, seed=1)})
    [job] = expand("few-shot", ["colors"], ["clip-adapter"], [1], [1])
    job = Job(
        job.protocol,
        replace(job.task, backbone=tiny_clip.name),
        job.method,
        trials=2,
        searched=("ratio",),
    )
    with pytest.raises(UserError, match="colors: too few images per class for the folds"):
        tune_job(load_method("clip-adapter"), job, lab)


def test_tuned_bench(rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    given = [
        "bench", "few-shot", "--datasets", colors.name, "--root", colors.parent, "--backbone",
        tiny_clip.name,
    ]  # fmt: skip
    given += [
        "--methods", "zero-shot,clip-adapter", "--seeds", "1", "--shots", "4", "--set",
        "device=cpu",
    ]  # fmt: skip
    given += ["--set", "clip-adapter.epochs=1", "--tune", "2"]
    refused(
        rmadapter("plan", *given[1:], "--out", tmp_path / "runs"),
        "plan cannot tell what a search costs",
    )
    code, out, err = rmadapter(*given, "--out", tmp_path / "runs", "--json")
    assert code == 0, err
    records = [parse_record(json.dumps(line), "") for line in json.loads(out)]
    plain, searched = records[1:]
    assert [one.variant for one in records] == ["", "", "CLIP-Adapter, tuned by 2 trials"]
    assert searched.notes[-1].startswith("tuned by 2 trials on 4 folds of 16 training images")
    assert searched.method.settings["epochs"] == plain.method.settings["epochs"] == 1
    assert searched.seconds["search"] > 0
    assert searched.seconds["total"] == pytest.approx(
        sum(searched.seconds[w] for w in ("frozen", "train", "evaluate", "search")),
        abs=0.0025,  # five figures of three decimals
    )
    assert "search" not in plain.seconds
    again = rmadapter(*given, "--out", tmp_path / "runs", "--json")
    assert again.out == out  # nothing is searched twice
    refused(
        rmadapter(*given, "--set", "clip-adapter.epochs=2", "--out", tmp_path / "runs"),
        "a different value of epochs",
    )
    [group] = group_records(records)
    [table] = uses_tables(group)
    cells = {row.label: row.cells[-1].text for row in table.rows}
    assert (
        cells["CLIP-Adapter, tuned by 2 trials"]
        == "as published for ImageNet; then 2 trials on folds of its shots"
    )
    assert cells["CLIP-Adapter"] == "as published for ImageNet"


def test_a_copy_has_its_own_search_and_no_other() -> None:
    plain = record("mma", "a", 1, {"all": 50.0}, protocol="few-shot")
    searched = with_search(plain, "tuned by 2 trials, the best", 7.0)
    expected = {**plain.seconds, "search": 7.0, "total": plain.seconds["total"] + 7.0}
    assert searched.seconds == expected
    assert with_search(searched, "", 0.0) == plain
    assert with_search(searched, "tuned by 3 trials", 1.0).notes == ("tuned by 3 trials",)
    assert (
        with_search(searched, "tuned by 3 trials", 1.0).seconds["total"]
        == plain.seconds["total"] + 1.0
    )


SPACE = {
    "rate": optuna.distributions.FloatDistribution(0.01, 1, log=True),
    "share": optuna.distributions.CategoricalDistribution(("down", "up", "none")),
}


def test_heights() -> None:
    assert np.allclose(heights([0.01, 0.1, 1], SPACE["rate"]), [0, 0.5, 1])
    assert np.allclose(heights(["none", "down", "up"], SPACE["share"]), [1, 0, 0.5])
    assert np.allclose(heights([2, 3], optuna.distributions.IntDistribution(1, 3)), [0.5, 1])
    assert heights([7], optuna.distributions.IntDistribution(7, 7)).tolist() == [0]


def test_a_line_for_each_trial_that_chose_its_settings() -> None:
    trials = [
        Trial(0, {}, "11"),
        Trial(1, {"rate": 0.1, "share": "up"}, "10"),
        Trial(2, {"rate": 1.0, "share": "up"}),
    ]
    picture = draw_trials(trials, SPACE)
    ElementTree.fromstring(picture)
    assert all(
        f">{word}<" in picture for word in ("rate", "share", "accuracy, %", "down", "none", "50.0")
    )
    more = draw_trials([*trials, Trial(3, {"rate": 0.5, "share": "down"}, "11")], SPACE)
    assert more.count("<path") > picture.count("<path")
    ElementTree.fromstring(draw_trials(trials[:1], SPACE))  # nothing to draw yet
