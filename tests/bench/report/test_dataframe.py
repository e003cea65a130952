"""Records as a tidy data frame."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import rmadapter
from rmadapter.artifacts.record import BackboneName, MethodName, Record, Score
from rmadapter.errors import UserError
from rmadapter.task import Task

pandas = pytest.importorskip("pandas")


def record(method: str = "mma", seed: int = 1, **more: object) -> Record:
    scores = (
        Score(name="base", images=10, classes=2, accuracy=80, zero_shot=50),
        Score(name="novel", images=20, classes=3, reason="knows its own classes alone"),
    )
    found = {"scores": scores, "seconds": {"train": 1.5}, "step_seconds": 0.1, **more}
    task = Task(data="colors", seed=seed, classes="base")
    name = MethodName(name=method, settings={"rank": 4})
    return Record(
        format=2, task=task, method=name, backbone=BackboneName(name="tiny", digest="0"), **found
    )  # type: ignore[arg-type]


def test_a_row_is_a_score(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    record().save(tmp_path / "run" / "run.json")
    (tmp_path / "run" / "model.json").write_text("{}")  # no record, and no matter
    lines = [
        record(seed=2),
        record(),
        record("coop", status="failed", reason="no memory", scores=()),
    ]
    (tmp_path / "lines.jsonl").write_text("".join(one.line() for one in lines), encoding="utf-8")
    frame = rmadapter.records(tmp_path)
    assert (
        len(frame) == 5
    )  # two scores of each seed, although one record is there twice, and a failure
    assert sorted(set(frame["file"])) == [
        "lines.jsonl, line 1",
        "lines.jsonl, line 2",
        "lines.jsonl, line 3",
    ]
    row = frame[(frame.seed == 2) & (frame.tested == "base")].iloc[0]
    assert (row["method"], row["data"], row["shots"], row["accuracy"], row["gain"]) == (
        "mma",
        "colors",
        16,
        80,
        30,
    )
    assert (row["set.rank"], row["seconds.train"], row["step_seconds"], row["n_classes"]) == (
        4,
        1.5,
        0.1,
        2,
    )
    novel = frame[(frame.seed == 2) & (frame.tested == "novel")].iloc[0]
    assert pandas.isna(novel["accuracy"])
    assert novel["reason"] == "knows its own classes alone"
    failed = frame[frame.method == "coop"].iloc[0]
    assert (failed["status"], failed["reason"]) == ("failed", "no memory")
    assert frame[frame.tested == "base"].groupby("method").accuracy.mean().to_dict() == {"mma": 80}


def test_a_file_will_do_and_nothing_is_an_error(tmp_path: Path) -> None:
    record().save(tmp_path / "run.json")
    assert len(rmadapter.records(str(tmp_path / "run.json"))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run records found"):
        rmadapter.records(tmp_path / "empty")
    with pytest.raises(UserError, match="not found"):
        rmadapter.records(tmp_path / "nowhere")


def test_without_pandas_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[report\]'"):
        rmadapter.records(tmp_path)
