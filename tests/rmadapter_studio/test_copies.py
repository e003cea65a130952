"""A copy of a stranger's run names no image of this machine, and keeps no server busy."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.errors import UserError
from rmadapter.support.files import check_sums
from rmadapter.task import Question
from rmadapter_studio.copies import copy_run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_copy_equals_the_run(finished: Path, tmp_path: Path) -> None:
    copy_run(finished, tmp_path / "out")
    copied, files = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (tmp_path / "out", finished)
    )
    assert copied == files


def test_untrusted_run_names_no_other_images(copy: Path, tmp_path: Path) -> None:
    (copy / "SHA256SUMS").unlink()
    (copy / "images.csv").write_text("path,label\n/etc/passwd,red\n")
    (copy / "run.py").write_text("")
    record = read_record(copy / "run.json")
    task = replace(record.task, data="/home", tests=(Question("all", "/etc"),))
    scores = (record.scores[0].model_copy(update={"data": "~/photos"}),)
    evil = record.model_copy(update={"task": task, "scores": scores, "crops": True})
    evil.save(copy / "run.json")
    copy_run(copy, tmp_path / "out", untrusted=True)
    found = read_record(tmp_path / "out/run.json")
    assert (found.task.data, found.task.tests) == ("images.csv", (Question("all"),))
    assert found.scores[0].data == ""
    assert not found.crops  # which lie in the cache
    assert found.scores[0].accuracy == record.scores[0].accuracy
    check_sums(tmp_path / "out", ["run.json", "model.safetensors"])
    assert not {"images.csv", "run.py"} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("labels", [f"x{i}" for i in range(1001)]),
        ("templates", ["{}" + "x" * 200]),
        ("parents", {f"x{i}": "y" for i in range(2001)}),
    ],
)
def test_large_untrusted_run_is_refused(
    field: str, values: object, copy: Path, tmp_path: Path
) -> None:
    names = {"names": values} if field == "labels" else {}
    (copy / "SHA256SUMS").unlink()
    content = json.loads((copy / "model.json").read_text("utf-8"))
    (copy / "model.json").write_text(json.dumps({**content, field: values, **names}), "utf-8")
    with pytest.raises(UserError, match=r"1,000 classes|200 characters|2,000 classes"):
        copy_run(copy, tmp_path / "out", untrusted=True)


def test_predictions_of_an_untrusted_run_are_limited(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(finished, tmp_path / "one", untrusted=True)
    monkeypatch.setattr("rmadapter_studio.copies.MAX_ANSWER_BYTES", 50)
    with pytest.raises(UserError, match=r"predictions\.csv"):
        copy_run(finished, tmp_path / "two", untrusted=True)


def test_damaged_untrusted_run_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "predictions.csv").write_text("spoilt")
    with pytest.raises(UserError, match=r"predictions\.csv"):
        copy_run(copy, tmp_path / "out", untrusted=True)
