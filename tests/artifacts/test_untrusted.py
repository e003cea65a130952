"""Copies of runs, also of those that somebody else sent."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.artifacts.checkpoint import copy_run
from rmadapter.artifacts.record import read_record
from rmadapter.errors import UserError
from rmadapter.support.files import check_sums
from rmadapter.task import Question


def test_copy_equals_the_run(finished: Path, tmp_path: Path) -> None:
    copy_run(finished, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in finished.iterdir()
    }


def test_untrusted_run_names_no_other_images(finished: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(finished, evil)
    (evil / "SHA256SUMS").unlink()
    (evil / "images.csv").write_text("path,label\n/etc/passwd,red\n")
    (evil / "run.py").write_text("")
    record = read_record(evil / "run.json")
    task = replace(record.task, data="/home", tests=(Question("all", "/etc"),))
    scores = (record.scores[0].model_copy(update={"data": "~/photos"}),)
    record.model_copy(update={"task": task, "scores": scores, "crops": True}).save(
        evil / "run.json"
    )
    copy_run(evil, tmp_path / "out", untrusted=True)
    found = read_record(tmp_path / "out/run.json")
    assert (found.task.data, found.task.tests, found.scores[0].data) == (
        "images.csv",
        (Question("all"),),
        "",
    )
    assert not found.crops  # which lie in the cache
    assert found.scores[0].accuracy == record.scores[0].accuracy
    check_sums(tmp_path / "out", ["run.json", "model.safetensors"])
    assert not {"images.csv", "run.py"} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("field", "values"),
    [("labels", [f"x{i}" for i in range(1001)]), ("templates", [f"{i} {{}}" for i in range(101)])],
)
def test_large_untrusted_run_is_refused(
    field: str, values: list[str], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "evil")
    (tmp_path / "evil/SHA256SUMS").unlink()
    model = json.loads((finished / "model.json").read_text()) | {field: values}
    names = {"names": values} if field == "labels" else {}
    (tmp_path / "evil/model.json").write_text(json.dumps(model | names))
    with pytest.raises(UserError, match="1,000 classes and 100 prompt"):
        copy_run(tmp_path / "evil", tmp_path / "out", untrusted=True)


def test_predictions_of_an_untrusted_run_are_limited(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(finished, tmp_path / "one", untrusted=True)
    monkeypatch.setattr("rmadapter.artifacts.checkpoint.MOST_ANSWERS", 50)
    with pytest.raises(UserError, match=r"predictions\.csv"):
        copy_run(finished, tmp_path / "two", untrusted=True)


def test_damaged_untrusted_run_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "evil")
    (tmp_path / "evil/predictions.csv").write_text("spoilt")
    with pytest.raises(UserError, match=r"predictions\.csv"):
        copy_run(tmp_path / "evil", tmp_path / "out", untrusted=True)
