"""Runs that come from anybody, and zips that go."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from rmadapter.artifacts.record import read_record
from rmadapter.deploy.app.zips import bare_paths, copy_run, pack
from rmadapter.errors import UserError
from rmadapter.support.checksums import check_sums
from rmadapter.task import Question


def test_a_copy_is_the_run(finished: Path, tmp_path: Path) -> None:
    copy_run(finished, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in finished.iterdir()
    }


def test_a_foreign_run_names_no_images_but_its_own(finished: Path, tmp_path: Path) -> None:
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
    copy_run(evil, tmp_path / "out", foreign=True)
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
def test_a_foreign_run_does_not_keep_the_server_busy(
    field: str, values: list[str], finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "evil")
    (tmp_path / "evil/SHA256SUMS").unlink()
    model = json.loads((finished / "model.json").read_text()) | {field: values}
    names = {"names": values} if field == "labels" else {}
    (tmp_path / "evil/model.json").write_text(json.dumps(model | names))
    with pytest.raises(
        UserError, match="this page takes at most 1,000 classes and 100 prompt templates"
    ):
        copy_run(tmp_path / "evil", tmp_path / "out", foreign=True)


def test_a_foreign_list_of_answers_is_bounded(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(finished, tmp_path / "one", foreign=True)
    monkeypatch.setattr("rmadapter.deploy.app.zips.MOST_ANSWERS", 50)
    with pytest.raises(UserError, match=r"predictions\.csv: larger than the 50 bytes"):
        copy_run(finished, tmp_path / "two", foreign=True)


def test_no_path_of_this_machine_is_told(tmp_path: Path) -> None:
    told = f"{tmp_path}/model.json: of {tmp_path}, but /home/anna/clip has other weights"
    why = r"^model\.json: of the run, but clip has other weights$"
    with pytest.raises(UserError, match=why), bare_paths(tmp_path, "/home/anna/clip"):
        raise UserError(told)


def test_a_damaged_one_is_refused_before_its_sums_are_written_anew(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "evil")
    (tmp_path / "evil/predictions.csv").write_text("spoilt")
    with pytest.raises(UserError, match=r"predictions\.csv: does not match SHA256SUMS"):
        copy_run(tmp_path / "evil", tmp_path / "out", foreign=True)


def test_a_zip_of_plain_names(tmp_path: Path) -> None:
    (tmp_path / "folder/inner").mkdir(parents=True)
    for name in ("a.txt", ".hidden"):
        (tmp_path / "folder" / name).write_text(name)
    pack(tmp_path / "x.zip", tmp_path / "folder", "model", {"files/b": tmp_path / "folder/a.txt"})
    with zipfile.ZipFile(tmp_path / "x.zip") as file:
        assert {name: file.read(name) for name in file.namelist()} == {
            "model/a.txt": b"a.txt",
            "files/b": b"a.txt",
        }
