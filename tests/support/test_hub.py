"""`hf:OWNER/NAME` as a run: fetched from a hub on loopback, and one sentence for whatever goes
wrong."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

import pytest

from rmadapter.backbones.hub import fetch
from rmadapter.errors import UserError
from rmadapter.support.hub import check_repository, run_folder
from tests.helpers.fake_hub import Hub, Repository, hub, point_to

__all__ = ["hub"]  # a fixture

RUN = {
    "model.json": b"{}",
    "model.safetensors": b"\0" * 99,
    "evil.py": b"raise SystemExit",
    "x.pkl": b"\x80",
}


def test_a_folder_is_itself() -> None:
    assert run_folder("runs/first") == Path("runs/first")
    assert run_folder(Path("/a")) == Path("/a")
    assert run_folder("~/a") == Path.home() / "a"


def test_a_path_of_windows_still_names_a_repository(hub: Hub) -> None:
    hub.repositories["anna/birds"] = Repository(**RUN)
    assert run_folder(PureWindowsPath("hf:anna/birds")) == run_folder("hf:anna/birds")  # type: ignore[arg-type]


def test_only_files_of_a_run_are_fetched(hub: Hub) -> None:
    hub.repositories["anna/pets"] = Repository(**RUN)
    folder = run_folder("hf:anna/pets")
    assert {file.name for file in folder.iterdir()} == {"model.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == RUN["model.safetensors"]
    assert not [line for line in hub.asked if "evil" in line or "pkl" in line]


def test_a_revision_stays_and_the_name_moves_on(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = hub.repositories["anna/pets"] = Repository(**RUN)
    first = repository.log[-1][0]
    repository.commit({**RUN, "model.json": b"[]"}, "second")
    assert (run_folder(f"hf:anna/pets@{first}") / "model.json").read_bytes() == b"{}"
    assert (run_folder("hf:anna/pets") / "model.json").read_bytes() == b"[]"
    with pytest.raises(UserError, match="anna/pets on the Hugging Face hub has no such revision"):
        run_folder("hf:anna/pets@v9")


def test_what_was_fetched_is_there_without_a_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    hub.repositories["anna/pets"] = Repository(**RUN)
    folder = run_folder("hf:anna/pets")
    point_to(
        "http://127.0.0.1:1", Path(constants.HF_HUB_CACHE), monkeypatch
    )  # where nobody listens
    assert run_folder("hf:anna/pets") == folder
    with pytest.raises(
        UserError, match=r"cannot be reached for 'anna/cats' \(.+\); check the connection"
    ):
        run_folder("hf:anna/cats")


def test_what_is_not_there_or_private_or_no_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["bert/own"] = Repository(private=True, **RUN)
    for name in ("bert/own", "anna/none"):
        with pytest.raises(
            UserError, match=f"hub has no '{name}', or it is private: use `hf auth login`"
        ):
            run_folder(f"hf:{name}")
    gate = (403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
    with monkeypatch.context() as gated:
        gated.setattr(hub, "answer", lambda *given: gate)
        with pytest.raises(
            UserError, match="anna/cats: accept its conditions on its hub page first"
        ):
            run_folder("hf:anna/cats")
        with pytest.raises(
            UserError, match="anna/cats: accept its conditions on its hub page first"
        ):
            fetch("anna/cats", "model.safetensors")
    hub.repositories["anna/text"] = Repository(**{"config.json": b"{}"})
    with pytest.raises(
        UserError, match=r"hf:anna/text: holds no rmadapter model: model\.json is missing"
    ):
        run_folder("hf:anna/text")


@pytest.mark.parametrize(
    "name", ["pets", "a/b/c", "../a", "a/..", "/a", "a/", "a b/c", "a/b--c", "a/" + "b" * 96, ""]
)
def test_names_that_none_has(name: str) -> None:
    with pytest.raises(UserError, match="not a repository name; write OWNER/NAME"):
        check_repository(name)
    with pytest.raises(UserError, match=re.escape("not a repository name")):
        run_folder(f"hf:{name}")
