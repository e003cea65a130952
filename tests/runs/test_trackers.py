"""The trackers themselves, where they are installed: what they hold in the end."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from rmadapter import Tracking
from rmadapter.artifacts.record import read_record
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.runs.trackers import TRACKERS, MLflow
from tests.helpers.bench_runs import Bench, bench, bench_command
from tests.helpers.shell import fit_command, quick_options

__all__ = ["bench"]  # a fixture


class Stopped(BaseException):
    pass


def installed(name: str) -> None:
    pytest.importorskip(name, reason=f"needs the extra {name}: `make trackers`")


def track_in_two_parts(name: str, finished: Path, folder: Path) -> None:
    """Track a run that is stopped at step 3 and resumes at step 2, up to 5. Steps that both parts
    log, a tracker may show twice."""
    words: dict[str, Any] = {
        "folder": folder / "board", "settings": {"method": {"rank": 4}, "task": "x"},
        "state": folder / "state.json",
    }  # fmt: skip
    with suppress(Stopped), Tracking(name, "first", **words) as tracked:
        for step in (1, 2, 3):
            tracked.callbacks[0].on_step({"step": step, "epoch": 1, "loss": 1 / step})
        raise Stopped
    with Tracking(name, "first", **words) as tracked:
        for step in (2, 3, 4, 5):
            tracked.callbacks[0].on_step({"step": step, "epoch": 1, "loss": 1 / step})
        tracked.callbacks[0].on_epoch({"step": 5, "epoch": 1, "loss": 0.5, "lr": 0.1})
        tracked.add_record(read_record(RunFolder(finished).record), RunFolder(finished).page)


def test_tensorboard(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installed("tensorboard")
    track_in_two_parts("tensorboard", finished, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == {step: pytest.approx(1 / step) for step in (1, 2, 3, 4, 5)}
    record = read_record(RunFolder(finished).record)
    assert events.Scalars("accuracy/all")[0].value == pytest.approx(record.metrics["all"])
    assert [event.step for event in events.Scalars("epoch/loss")] == [5]

    def text(tag: str) -> str:
        event = events.Tensors(f"{tag}/text_summary")[-1]
        return str(event.tensor_proto.string_val[0].decode())

    assert "| method.rank | 4 |" in text("settings")
    assert text("page") == str(RunFolder(finished).page)
    assert capsys.readouterr() == ("", "")


def test_mlflow(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    installed("mlflow")
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    track_in_two_parts("mlflow", finished, tmp_path)
    assert capsys.readouterr() == ("", "")
    client, experiment = MLflow.connect()
    assert client.get_experiment(experiment).name == "rmadapter"
    assert (tmp_path / "mlflow.db").exists()
    [run] = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params == {"method.rank": "4", "task": "x"}
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert {one.step for one in losses} == {1, 2, 3, 4, 5}
    record = read_record(RunFolder(finished).record)
    assert run.data.metrics["accuracy/all"] == record.metrics["all"]
    [page] = client.list_artifacts(run.info.run_id)
    assert page.path == "report.html"


def records_in(file: Path) -> list[Any]:
    """Read the records of an offline run of Weights & Biases, which are in a log of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts, found = file.read_bytes(), 7, b"", []
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the end of one
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def test_wandb(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    installed("wandb")
    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    track_in_two_parts("wandb", finished, tmp_path)
    assert capsys.readouterr() == ("", "")
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # the number of the run, which both parts have
    records = [record for file in files for record in records_in(file)]
    rows = [{step_key(item): item.value_json for item in one.history.item} for one in records]
    assert {row["step"] for row in rows if "train/loss" in row} == {"1", "2", "3", "4", "5"}
    runs = [one.run for one in records if one.HasField("run")]
    assert {(run.project, run.display_name) for run in runs} == {("rmadapter", "first")}
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert config["method.rank"] == "4"
    record = read_record(RunFolder(finished).record)
    [accuracy] = [row["accuracy/all"] for row in rows if "accuracy/all" in row]
    assert json.loads(accuracy) == record.metrics["all"]
    [page] = tmp_path.glob("wandb/offline-run-*/files/media/html/page_*.html")
    assert page.read_text("utf-8") == RunFolder(finished).page.read_text("utf-8")
    assert [one.exit.exit_code for one in records if one.HasField("exit")] == [1, 0]


def step_key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def test_a_server_that_is_gone_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Tracking("mlflow", "first") as tracked:
        tracked.log({"accuracy": 1})
    [note] = capsys.readouterr().err.splitlines()
    assert "mlflow failed, and the run goes on without it" in note


@pytest.mark.slow
def test_workers_of_a_bench_track_their_own_runs(bench: Bench, tmp_path: Path) -> None:
    names = [name for name in TRACKERS if find_spec(name)]
    if not names:
        pytest.skip("needs the extra track: `make trackers` installs it")
    out = tmp_path / "out"
    words = bench_command(bench, out, "--jobs", "2", "--track", ",".join(names))
    words[words.index("--methods") + 1] = "mma"
    words = [word for word in words if not word.startswith("--set=rmadapter")]
    own = ("WANDB_", "MLFLOW_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on without" not in done.stderr
    counts = {
        "tensorboard": len([*out.glob("tensorboard/base-to-novel/*/mma/*/events.*")]),
        "wandb": len([*tmp_path.glob("wandb/offline-run-*")]),
    }
    if "mlflow" in names:
        query = "select count(*) from runs where status = 'FINISHED'"
        [counts["mlflow"]] = sqlite3.connect(tmp_path / "mlflow.db").execute(query).fetchone()
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 3)


@pytest.mark.slow
def test_the_first_of_several_processes_tracks(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    installed("tensorboard")
    if not dist.is_available():
        pytest.skip("this torch was built without torch.distributed")
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [*quick_options(2), "--folds", "0", "--track", "tensorboard"]
    words = ["-m", "rmadapter", *fit_command(colors, tiny_clip, out, *options)]
    done = subprocess.run([*launch, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([*out.glob("tensorboard/events.*")]) == 1
