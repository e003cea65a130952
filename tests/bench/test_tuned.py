"""`bench --tune N`: rows whose settings were searched on folds of their own shots, found again, and
said so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="pip install 'rmadapter[ray]'")

from rmadapter.artifacts.record import parse_record
from rmadapter.backbones import Backbone
from rmadapter.bench import tuned as module
from rmadapter.bench.protocols import Job, expand
from rmadapter.bench.report.groups import group_records
from rmadapter.bench.report.uses import to_tables
from rmadapter.bench.runner import _with_search
from rmadapter.bench.search_space import Trial
from rmadapter.bench.tuned import as_tuned, tuned
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.run import Lab
from rmadapter.settings import Machine, settings_of
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import noisy_colors
from tests.helpers.synthetic_runs import record

__all__ = ["rmadapter"]  # a fixture


def test_a_second_row_where_there_is_something_to_try() -> None:
    jobs = expand("few-shot", ["a"], ["zero-shot", "clip-adapter"], [1], [4])
    found = list(as_tuned(jobs, 5, {}))
    assert [(job.method, job.variant, job.trials) for job in found] == [
        ("zero-shot", "", 0),
        ("clip-adapter", "", 0),
        ("clip-adapter", "CLIP-Adapter, tuned by 5 trials", 5),
    ]
    assert "learning_rate" in found[2].searched
    pinned = list(as_tuned(jobs[1:], 5, {"clip-adapter": {"weight_decay": 0.0}}))[1]
    assert {*found[2].searched} - {*pinned.searched} <= {"weight_decay"}
    ablation = expand("ablation-layers", ["a"], [], [1])
    assert list(as_tuned(ablation, 5, {})) == ablation


def test_the_best_trial_wins_and_the_first_is_the_method_as_given(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same seed the same trials; the images are those of the train split alone."""
    seen: list[dict[str, Any]] = []

    def judged(search: Any, folds: Any, number: int, params: dict[str, Any]) -> Trial:
        assert len(folds.rows) == 16
        seen.append(params)
        return Trial(number, params, "10" if number != 2 else "11", 2.5)

    monkeypatch.setattr(module, "judged", judged)
    lab = Lab(Machine(device="cpu"), progress=False)
    lab.add_backbone(tiny_clip)
    splits: dict[str, ImageSet] = {"train": noisy_colors(4), "test": noisy_colors(3, seed=1)}
    lab.add("colors", splits)
    [job] = expand("few-shot", ["colors"], ["clip-adapter"], [1], [4])
    job = list(as_tuned([replace(job, task=replace(job.task, backbone=tiny_clip.name))], 4, {}))[1]
    method: Any = load_method("clip-adapter")
    found, told, seconds = tuned(method, job, lab)
    assert seen[0] == {}
    assert {*seen[2]} == {*job.searched}
    assert settings_of(found) == settings_of(method) | seen[2]
    assert (
        told
        == "tuned by 4 trials on 4 folds of 16 training images, the best of which has 100.0 %, as given 50.0"
    )
    assert seconds == 4 * 2.5
    assert tuned(method, job, lab) == (found, told, seconds)
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
        tuned(load_method("clip-adapter"), job, lab)


def test_from_the_bench_to_the_rules_of_its_report(
    rmadapter: Command, colors: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    given = [
        "bench",
        "few-shot",
        "--datasets",
        colors.name,
        "--root",
        colors.parent,
        "--backbone",
        tiny_clip.name,
    ]
    given += [
        "--methods",
        "zero-shot,clip-adapter",
        "--seeds",
        "1",
        "--shots",
        "4",
        "--set",
        "device=cpu",
    ]
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
    [table] = to_tables(group, "method")
    cells = {row.label: row.cells[-1].text for row in table.rows}
    assert (
        cells["CLIP-Adapter, tuned by 2 trials"]
        == "as published for ImageNet; then 2 trials on folds of its shots"
    )
    assert cells["CLIP-Adapter"] == "as published for ImageNet"


def test_a_copy_has_its_own_search_and_no_other() -> None:
    plain = record("mma", "a", 1, {"all": 50.0}, protocol="few-shot")
    searched = _with_search(plain, "tuned by 2 trials, the best", 7.0)
    assert searched.seconds == {
        **plain.seconds,
        "search": 7.0,
        "total": plain.seconds["total"] + 7.0,
    }
    assert _with_search(searched, "", 0.0) == plain
    assert _with_search(searched, "tuned by 3 trials", 1.0).notes == ("tuned by 3 trials",)
    assert (
        _with_search(searched, "tuned by 3 trials", 1.0).seconds["total"]
        == plain.seconds["total"] + 1.0
    )
