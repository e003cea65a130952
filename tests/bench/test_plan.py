"""The plan of a bench, its rows as published, the parts of a job array, and which jobs are done."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import BackboneName, MethodName, Record, parse_record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import (
    Plan,
    Progress,
    add_published_rows,
    dataset_constants,
    finished_records,
    parse_shard,
    published_settings,
    select_shard,
    worker_count,
)
from rmadapter.bench.protocols import Job, expand
from rmadapter.data.catalog.sets import CATALOG
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.settings import Machine, configured, settings_of
from rmadapter.support.machine import VISIBLE_GPUS
from tests.helpers.shell import Command, rmadapter

__all__ = ["rmadapter"]  # fixtures


def test_settings_of_the_protocol_override_those_of_set(tmp_path: Path) -> None:
    values = {"rmadapter": {"rank": 3, "reconstruction_layers": 3}}
    plan = Plan(tuple(expand("ablation-layers", ["a"], seeds=[1])), tmp_path, values=values)
    assert pickle.loads(pickle.dumps(plan)) == plan  # it is sent to other processes
    expected = [{"rank": 3, "reconstruction_layers": layers} for layers in (1, 2, 3)]
    methods = [load_method("rmadapter", own) for own in expected]
    assert [plan.method(job) for job in plan.jobs] == methods


def test_the_lab_keeps_activations_in_the_results_folder(tmp_path: Path) -> None:
    lab = Plan((), tmp_path, Path("data"), crops=True).lab()
    assert (lab.folder, lab.root, lab.keep) == (tmp_path / ".activations", Path("data"), True)
    assert (lab.outside, lab.crops) == (False, True)


PAPER = list(CATALOG)[:11]


@pytest.mark.parametrize("method", published_settings())
def test_published_settings_name_existing_data_sets_and_settings(method: str) -> None:
    row = published_settings()[method]
    assert "github.com/" in row["source"]
    assert set(row["sets"]) <= set(PAPER)
    plain = load_method(method)
    for dataset in row["sets"]:
        own = dataset_constants(method, f"below/{dataset}")
        assert settings_of(load_method(method, own)) == settings_of(plain) | own


def test_published_settings_are_found_by_the_name_of_the_data_set() -> None:
    assert dataset_constants("mmrl", "eurosat") == {"regularisation": 0.01, "width": 2048}
    assert dataset_constants("mmrl", "my-images") == dataset_constants("mma", "eurosat") == {}
    assert dataset_constants("mma", "imagenet") == {"batch_size": 128}


def test_methods_with_published_settings_get_a_second_row() -> None:
    jobs = expand("base-to-novel", ["dtd", "sun397", "my-images"], ["maple", "prompt-kd"], [1])
    assert dataset_constants("prompt-kd", "sun397") == {}
    found = list(add_published_rows(jobs, {}))
    own = "PromptKD, as published for each set"
    rows = [("maple", ""), ("prompt-kd", ""), ("prompt-kd", own)]
    expected = [(data, *row) for data in ("dtd", "sun397") for row in rows]  # in the same sets
    expected += [("my-images", *row) for row in rows[:2]]
    assert [(job.task.data, job.method, job.variant) for job in found] == expected
    assert (found[2].values, found[5].values) == ((("weight", 200.0),), ())
    assert found[2].path != found[1].path
    changed = list(add_published_rows(jobs, {"prompt-kd": {"weight_decay": 0.125}}))[2]
    assert changed.variant == own.replace(",", " (weight_decay=0.125),", 1)
    assert list(add_published_rows(jobs[2:], {})) == jobs[2:]  # nothing but equal rows
    ablation = expand("ablation-layers", ["dtd"], [], [1])
    assert list(add_published_rows(ablation, {})) == ablation


@pytest.mark.ci
def test_per_set_runs_both_rows(
    rmadapter: Command, tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    shutil.copytree(colors, tmp_path / "dtd")
    data = ["--datasets", "dtd", "--root", tmp_path, "--backbone", tiny_clip.name]
    which = ["--methods", "tip-adapter", "--seeds", "1", "--shots", "1", "--per-set"]
    given = ["bench", "few-shot", *data, *which, "--set", "device=cpu", "--out", tmp_path / "out"]
    code, out, _ = rmadapter(*given, "--json")
    assert code == 0
    plain, own = (parse_record(json.dumps(record), "") for record in json.loads(out))
    assert (plain.variant, own.variant) == ("", "Tip-Adapter, as published for each set")
    assert (plain.method.settings["alpha"], own.method.settings["alpha"]) == (1.17, 2.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shards_are_disjoint_and_complete_with_about_equal_work(count: int) -> None:
    jobs = expand("few-shot", ["a", "b", "c"], ["mma", "coop"], [1, 2, 3], [1, 2, 4, 8, 16])
    parts = [select_shard(jobs, number, count) for number in range(1, count + 1)]
    assert sorted(str(job) for one in parts for job in one) == sorted(map(str, jobs))
    for one in parts:
        assert one == [job for job in jobs if job in one]  # in their order
        others = {job.images for other in parts for job in other if other != one}
        assert {job.images for job in one}.isdisjoint(others)
    work = [sum(16 + job.task.shots for job in one) for one in parts]
    assert max(work) - min(work) <= 2 * (16 + 16)  # one group


def test_more_shards_than_groups_leave_some_empty() -> None:
    jobs = expand("base-to-novel", ["a", "b"], seeds=[1])
    assert [len(select_shard(jobs, number, 3)) for number in (1, 2, 3)] == [3, 3, 0]


def array(place: int, numbers: str) -> dict[str, str]:
    """What Slurm 23 sets for a task of sbatch --array=..., as its documents have it."""
    found: list[int] = []
    step = 1
    for word in numbers.split(","):
        span, _, given = word.partition(":")
        first, _, last = span.partition("-")
        step = int(given or 1)
        found += range(int(first), int(last or first) + 1, step)
    values = {"ID": place, "MIN": min(found), "MAX": max(found), "STEP": step, "COUNT": len(found)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("2/8", {}, (2, 8)),
        ("1/1", array(3, "0-7"), (1, 1)),
        ("auto", array(0, "0-7"), (1, 8)),
        ("auto", array(7, "0-7"), (8, 8)),
        ("auto", array(3, "1-4"), (3, 4)),
        ("auto", array(14, "10-20:4"), (2, 3)),
        ("auto", array(6, "6"), (1, 1)),
    ],
)
def test_the_shard_is_read_from_the_option_or_from_slurm(
    text: str, environment: dict[str, str], found: tuple[int, int]
) -> None:
    assert parse_shard(text, environment) == found


@pytest.mark.parametrize(
    ("text", "environment", "named"),
    [
        ("0/8", {}, "'0/8'"),
        ("9/8", {}, "'9/8'"),
        ("first", {}, "'first'"),
        ("auto", {}, "Slurm array"),
        ("auto", array(3, "3,5,6"), "gaps"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "place in its array"),
    ],
)
def test_an_invalid_shard_is_refused(text: str, environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=f"--shard.*{named}"):
        parse_shard(text, environment)


def test_workers_are_counted_by_process_or_by_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_GPUS, "3,1")
    assert (worker_count("auto", 4), worker_count("auto", 1, per_gpu=3)) == (4, 6)
    with pytest.raises(UserError, match="--jobs-per-gpu"):
        worker_count("cpu", 1, per_gpu=3)


@pytest.fixture
def job() -> Job:
    [job] = expand("base-to-novel", ["colors"], ["mma"], [1])
    return job


def write(out: Path, job: Job, status: Any, **more: Any) -> Path:
    method = MethodName(name=job.method, settings=settings_of(load_method(job.method)))
    fields = {"format": 2, "key": "k", "protocol": job.protocol, **more}
    backbone = BackboneName(name="pocket", digest="0")
    record = Record(task=job.task, method=method, backbone=backbone, status=status, **fields)
    record.save(out / job.path)
    return out / job.path


@pytest.mark.parametrize(
    ("status", "done"), [("finished", True), ("not-applicable", True), ("failed", False)]
)
def test_finished_and_not_applicable_runs_are_done_at_the_start_and_failed_ones_are_not(
    job: Job, tmp_path: Path, status: str, done: bool
) -> None:
    assert Progress(Plan((job,), tmp_path)).remaining() == [job]
    write(tmp_path, job, status)
    assert Progress(Plan((job,), tmp_path)).settled(job) == done


def test_a_damaged_record_is_ignored(job: Job, tmp_path: Path) -> None:
    path = write(tmp_path, job, "finished")
    for text in (path.read_text()[:20], "[]", "", "3"):
        path.write_text(text)
        assert Progress(Plan((job,), tmp_path)).remaining() == [job]
        Progress(Plan((job,), tmp_path)).check()


def test_a_record_of_another_version_is_refused(job: Job, tmp_path: Path) -> None:
    path = write(tmp_path, job, "finished")
    path.write_text('{"protocol": "base-to-novel", "metrics": {"base": 1}}')
    with pytest.raises(UserError, match=r"not a run record of this version: choose another --out"):
        Progress(Plan((job,), tmp_path)).check()


def test_a_run_that_failed_during_this_command_is_not_repeated(job: Job, tmp_path: Path) -> None:
    state = Progress(Plan((job,), tmp_path))
    path = write(tmp_path, job, "failed")
    assert state.remaining() == []
    os.utime(path, ns=(1, 1))
    state = Progress(Plan((job,), tmp_path))  # the next command does try it
    assert state.remaining() == [job]


def test_new_records_are_reported_once(job: Job, tmp_path: Path) -> None:
    state = Progress(Plan((job,), tmp_path))
    assert list(state.new_records()) == []
    write(tmp_path, job, "finished", reason="mine")
    assert [(new, record.reason) for new, record in state.new_records()] == [(job, "mine")]
    assert list(state.new_records()) == []


@pytest.mark.parametrize(
    ("task", "words", "named"),
    [
        ({"templates": ("a {}.",)}, {}, "templates"),
        ({}, {"values": {"mma": {"rank": 8}}}, "rank"),
        ({}, {"machine": configured(Machine(), {"precision": "bf16"})}, "precision"),
        ({}, {"crops": True}, "--crops"),
    ],
)
def test_a_record_with_other_settings_is_refused(
    task: dict[str, object], words: dict[str, Any], named: str, job: Job, tmp_path: Path
) -> None:
    path = write(tmp_path, job, "finished")
    Progress(Plan((job,), tmp_path)).check()
    changed = replace(job, task=configured(job.task, task))
    with pytest.raises(UserError, match=f"{path} .* value of {named}: .*--out"):
        Progress(Plan((changed,), tmp_path, **words)).check()
    write(tmp_path, job, "failed")  # a run without an answer may be done with other settings
    Progress(Plan((changed,), tmp_path, **words)).check()


def test_finished_records_by_key(job: Job, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("no record")
    assert finished_records(tmp_path) == {}
    path = write(tmp_path, job, "finished")
    [(key, found)] = finished_records(tmp_path).items()
    assert (key, found.copied_from) == ("k", path.relative_to(tmp_path).as_posix())
    write(tmp_path, job, "failed")
    assert finished_records(tmp_path) == {}
    write(tmp_path, job, "finished", protocol="fit")  # its scores are of other questions
    assert finished_records(tmp_path) == {}


def test_an_impossible_folder_of_records_is_refused() -> None:
    with pytest.raises(UserError, match=r"xxx.*path"):
        finished_records(Path("x" * 300))
