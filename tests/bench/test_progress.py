"""What counts as done, by the files alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmadapter.artifacts.record import BackboneName, MethodName, Record
from rmadapter.bench.plan import Plan
from rmadapter.bench.progress import Progress, finished_records
from rmadapter.bench.protocols import Job, expand
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.settings import configured, settings_of


@pytest.fixture
def job() -> Job:
    [job] = expand("base-to-novel", ["colors"], ["mma"], [1])
    return job


def write(out: Path, job: Job, status: Any, **more: Any) -> Path:
    method = MethodName(name=job.method, settings=settings_of(load_method(job.method)))
    backbone = BackboneName(name="pocket", digest="0")
    record = Record(
        format=2,
        task=job.task,
        method=method,
        backbone=backbone,
        status=status,
        key="k",
        **{"protocol": job.protocol, **more},
    )
    record.save(out / job.path)
    return out / job.path


@pytest.mark.parametrize(
    ("status", "done"), [("finished", True), ("not-applicable", True), ("failed", False)]
)
def test_what_is_done_when_we_start(job: Job, tmp_path: Path, status: str, done: bool) -> None:
    assert Progress(Plan((job,), tmp_path)).remaining() == [job]
    write(tmp_path, job, status)
    assert Progress(Plan((job,), tmp_path)).settled(job) == done


def test_a_damaged_record_is_none(job: Job, tmp_path: Path) -> None:
    path = write(tmp_path, job, "finished")
    for text in (path.read_text()[:20], "[]", "", "3"):
        path.write_text(text)
        assert Progress(Plan((job,), tmp_path)).remaining() == [job]
        Progress(Plan((job,), tmp_path)).check()


def test_a_record_of_another_version_is_not_written_over(job: Job, tmp_path: Path) -> None:
    path = write(tmp_path, job, "finished")
    path.write_text('{"protocol": "base-to-novel", "metrics": {"base": 1}}')
    with pytest.raises(UserError, match=r"not a run record of this version: choose another --out"):
        Progress(Plan((job,), tmp_path)).check()


def test_what_fails_while_we_are_here_is_not_tried_again(job: Job, tmp_path: Path) -> None:
    state = Progress(Plan((job,), tmp_path))
    path = write(tmp_path, job, "failed")
    assert state.remaining() == []
    os.utime(path, ns=(1, 1))
    state = Progress(Plan((job,), tmp_path))  # the next command does try it
    assert state.remaining() == [job]
    write(tmp_path, job, "failed")
    assert state.remaining() == []


def test_news_are_told_once(job: Job, tmp_path: Path) -> None:
    state = Progress(Plan((job,), tmp_path))
    assert list(state.new_records()) == []
    write(tmp_path, job, "finished", reason="mine")
    assert [record.reason for record in state.new_records()] == ["mine"]
    assert list(state.new_records()) == []


def test_an_answer_of_other_settings_is_refused(job: Job, tmp_path: Path) -> None:
    path = write(tmp_path, job, "finished")
    Progress(Plan((job,), tmp_path)).check()
    other = replace(job, task=configured(job.task, {"templates": ["a {}."]}))
    precise = configured(Plan((), tmp_path).machine, {"precision": "bf16"})
    for jobs, words, named in (
        (other, {}, "templates"),
        (job, {"values": {"mma": {"rank": 8}}}, "rank"),
        (job, {"machine": precise}, "precision"),
        (job, {"crops": True}, "--crops"),
    ):
        state = Progress(Plan((jobs,), tmp_path, **words))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"{path} .* value of {named}: .*--out"):
            state.check()
        write(tmp_path, job, "failed")  # what has no answer may be done otherwise
        state.check()
        write(tmp_path, job, "finished")


def test_answers_by_key(job: Job, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("no record")
    assert finished_records(tmp_path) == {}
    path = write(tmp_path, job, "finished")
    [(key, found)] = finished_records(tmp_path).items()
    assert (key, found.copied_from) == ("k", path.relative_to(tmp_path).as_posix())
    write(tmp_path, job, "failed")
    assert finished_records(tmp_path) == {}
    write(tmp_path, job, "finished", protocol="fit")  # its scores are of other questions
    assert finished_records(tmp_path) == {}
