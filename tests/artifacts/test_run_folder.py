"""Names of a run's files, folders without a model, and runs downloaded from a hub on loopback."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath

import pytest
from huggingface_hub import constants

from rmadapter.artifacts.run_folder import RunFolder, find_run, run_folder, without_model
from rmadapter.backbones.load import fetch
from rmadapter.errors import UserError
from rmadapter.support.hub import check_repository
from tests.helpers.fake_hub import Hub, Repository, hub, point_to

__all__ = ["hub"]  # a fixture

RUN = {"model.json": b"{}", "model.safetensors": b"\0" * 99}
RUN |= {"evil.py": b"raise SystemExit", "x.pkl": b"\x80"}


def test_a_path_is_returned_as_it_is() -> None:
    assert find_run("runs/first") == Path("runs/first")
    assert find_run(Path("/a")) == Path("/a")
    assert find_run("~/a") == Path.home() / "a"


def test_a_path_of_windows_still_names_a_repository(hub: Hub) -> None:
    hub.repositories["anna/birds"] = Repository(**RUN)
    assert find_run(PureWindowsPath("hf:anna/birds")) == find_run("hf:anna/birds")  # type: ignore[arg-type]


def test_only_files_of_a_run_are_fetched(hub: Hub) -> None:
    hub.repositories["anna/pets"] = Repository(**RUN)
    folder = find_run("hf:anna/pets")
    assert {file.name for file in folder.iterdir()} == {"model.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == RUN["model.safetensors"]
    assert not [line for line in hub.asked if "evil" in line or "pkl" in line]


def test_a_revision_is_fixed_and_the_name_alone_is_updated(hub: Hub) -> None:
    repository = hub.repositories["anna/pets"] = Repository(**RUN)
    first = repository.log[-1][0]
    repository.commit({**RUN, "model.json": b"[]"}, "second")
    assert (find_run(f"hf:anna/pets@{first}") / "model.json").read_bytes() == b"{}"
    assert (find_run("hf:anna/pets") / "model.json").read_bytes() == b"[]"
    with pytest.raises(UserError, match=r"anna/pets .* no such revision"):
        find_run("hf:anna/pets@v9")


def test_a_downloaded_run_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["anna/pets"] = Repository(**RUN)
    folder = find_run("hf:anna/pets")
    # where nobody listens
    point_to("http://127.0.0.1:1", Path(constants.HF_HUB_CACHE), monkeypatch)
    assert find_run("hf:anna/pets") == folder
    with pytest.raises(UserError, match=r"anna/cats.* cannot be reached"):
        find_run("hf:anna/cats")


def test_missing_private_and_gated_repositories_and_other_content_are_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["bert/own"] = Repository(private=True, **RUN)
    for name in ("bert/own", "anna/none"):
        with pytest.raises(UserError, match=f"hub has no '{name}', or it is private"):
            find_run(f"hf:{name}")
    gate = (403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
    with monkeypatch.context() as gated:
        gated.setattr(hub, "answer", lambda *given: gate)
        with pytest.raises(UserError, match="anna/cats: accept its conditions"):
            find_run("hf:anna/cats")
        with pytest.raises(UserError, match="anna/cats: accept its conditions"):
            fetch("anna/cats", "model.safetensors")
    hub.repositories["anna/text"] = Repository(**{"config.json": b"{}"})
    with pytest.raises(UserError, match=r"hf:anna/text: .*model\.json is missing"):
        find_run("hf:anna/text")


@pytest.mark.parametrize(
    "name", ["pets", "a/b/c", "../a", "a/..", "/a", "a/", "a b/c", "a/b--c", "a/" + "b" * 96, ""]
)
def test_impossible_repository_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="not a repository name; write OWNER/NAME"):
        check_repository(name)
    with pytest.raises(UserError, match=re.escape("not a repository name")):
        find_run(f"hf:{name}")


def test_every_file_of_a_run_has_its_name_here(finished: Path) -> None:
    run = RunFolder(finished)
    written = {file for file in (*run.saved, run.sums) if file.is_file()}
    assert {*finished.iterdir()} == written == {*run.saved, run.sums} - {run.images}
    listed = [line.split()[1] for line in run.sums.read_text().splitlines()]
    assert listed == sorted(file.name for file in written - {run.sums})


def test_a_folder_without_a_model_is_explained(tmp_path: Path) -> None:
    for name in ("first", "empty", "photos", "export", "killed"):
        (tmp_path / name).mkdir()
    for name in ("first/model.json", "photos/a.png", "export/export.json", "killed/split.json"):
        (tmp_path / name).touch()
    for name, words in {
        "frist": "no such folder; did you mean 'first'?",
        "empty": "not a finished run; `rmadapter fit DATA --out",
        "killed": "not a finished run; `rmadapter fit DATA --out",
        "photos": "not a run but another folder",
        "export": "an export; ask it with `python ",
        "photos/gone": "no such folder; `rmadapter fit DATA --out ",
    }.items():
        assert without_model(tmp_path / name).startswith(words), name


def _new(source: str | Path) -> Path:
    with run_folder(None, Path(source)) as folder:
        (folder / "split.json").touch()
    return folder


def test_a_new_run_is_named_after_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "photos-2", ".hidden", "e" * 250):
        Path(name).mkdir()
    for name in ("birds.csv", "cats.tar.gz"):
        Path(name).touch()
    assert _new("photos") == Path("runs/photos-1")
    assert _new(tmp_path / "photos") == Path("runs/photos-2")
    assert [_new(name).name for name in ("photos-2", "birds.csv", "cats.tar.gz", ".hidden")] == [
        *("photos-2-1", "birds-1", "cats-1", "hidden-1"),
    ]
    assert len(_new("e" * 250).name) < 250
    Path("runs/photos-1/model.json").touch()
    assert _new("runs/photos-1") == Path("runs/photos-3")  # made of a run
    assert _new("hf:anna/sea-horses@main") == Path("runs/sea-horses-1")
    Path("runs/photos-11").mkdir()
    assert _new("photos") == Path("runs/photos-12")
    monkeypatch.chdir("photos")
    assert _new(".") == Path("runs/photos-1")


def test_new_runs_of_one_moment_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = [*pool.map(_new, ["photos"] * 40)]
    assert {folder.name for folder in folders} == {f"photos-{i}" for i in range(1, 41)}


@pytest.mark.parametrize("written", [False, True])
def test_a_new_run_that_stops_says_how_to_resume_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    written: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/photos-1")

    def stop() -> None:
        with run_folder(None, Path("photos")) as made:
            assert made == folder
            assert f"--out {folder}" in capsys.readouterr().err
            if written:
                (folder / "split.json").touch()
            raise SystemExit(130)

    with pytest.raises(SystemExit):
        stop()
    assert (f"--out {folder}" in capsys.readouterr().err) == written
    assert folder.exists() == written


def test_a_named_folder_is_taken_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_folder(tmp_path / "run", Path("photos")) as folder:
        assert folder == tmp_path / "run"
        assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_where_no_run_can_be_made_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    with pytest.raises(UserError, match="--out"):
        _new("photos")
