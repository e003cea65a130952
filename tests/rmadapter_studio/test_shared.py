"""Runs that are kept in the folder of a project: names, order, what is copied, mistakes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from rmadapter import load
from rmadapter.artifacts.run_folder import RunFolder
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter_studio.copies import copy_run
from rmadapter_studio.jobs import Jobs
from rmadapter_studio.project import Project
from rmadapter_studio.shared import RUNS_FOLDER, Shared
from rmadapter_studio.visitors import PREFIX, visitors_folder


@pytest.fixture
def shared(tiny_clip: Backbone, tmp_path: Path) -> Shared:
    (tmp_path / "photos").mkdir()
    return Shared(tiny_clip, Jobs(), project=Project(tmp_path / "photos"))


def test_a_start_removes_what_killed_servers_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = time.time() - 3600
    for name in ("dead", "fresh"):
        (tmp_path / f"{PREFIX}{name}" / "visitor").mkdir(parents=True)
    (tmp_path / "of another program").mkdir()
    for path in (tmp_path / f"{PREFIX}dead", tmp_path / "of another program"):
        os.utime(path, (old, old))
    with visitors_folder() as running:
        os.utime(running, (old, old))
        with visitors_folder() as second:
            names = {path.name for path in tmp_path.iterdir()}
    kept = {"of another program", f"{PREFIX}fresh"}
    assert names == {running.name, second.name, *kept}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_kept_runs_are_copies_the_newest_first(
    shared: Shared, finished: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    home = tmp_path / "photos" / RUNS_FOLDER
    assert shared.run_folders() == {}
    shared.keep(finished)
    (home / "rmadapter-1").rename(home / "rmadapter-9")
    shared.keep(finished)
    (home / "notes").mkdir()
    copy_run(finished, home / "mine")
    assert [*shared.kept()] == ["rmadapter-10", "rmadapter-9", "mine"]
    again = Shared(tiny_clip, Jobs(), project=Project(tmp_path / "photos"))
    assert again.run_folders() == shared.run_folders() == shared.kept()
    RunFolder(home / "rmadapter-10").check_sums()
    assert load(home / "rmadapter-10", tiny_clip).labels == load(finished, tiny_clip).labels
    assert not [*home.glob(".*")]
    assert again.project is not None
    assert again.project.images == ()


def test_other_runs_come_after_the_kept_ones(
    finished: Path, tiny_clip: Backbone, tmp_path: Path
) -> None:
    for name in ("colours", "rmadapter-1"):
        shutil.copytree(finished, tmp_path / "others" / name)
    (tmp_path / "photos").mkdir()
    alone = Shared(tiny_clip, Jobs(), tmp_path / "others")
    assert [*alone.run_folders()] == ["colours", "rmadapter-1"]
    assert alone.kept() == {}
    both = Shared(tiny_clip, Jobs(), tmp_path / "others", Project(tmp_path / "photos"))
    both.keep(finished)
    assert [*both.run_folders()] == ["rmadapter-1", "colours"]
    assert both.run_folders()["rmadapter-1"] == tmp_path / "photos" / RUNS_FOLDER / "rmadapter-1"


def test_a_run_that_cannot_be_kept_leaves_nothing(
    shared: Shared, finished: Path, tmp_path: Path
) -> None:
    home = tmp_path / "photos" / RUNS_FOLDER
    home.write_text("a file of the user's")
    with pytest.raises(UserError, match=f"{RUNS_FOLDER} of the folder"):
        shared.keep(finished)
    assert home.read_text() == "a file of the user's"
    assert [path.name for path in (tmp_path / "photos").iterdir()] == [RUNS_FOLDER]
