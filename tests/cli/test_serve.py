"""`rmadapter serve` on the command line: names, and what is refused before anything is served."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rmadapter.cli.deploy import named
from rmadapter.errors import UserError
from tests.helpers.fake_hub import Hub, Repository, hub
from tests.helpers.serving import Process, colour_image, post
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["hub", "rmadapter"]  # fixtures


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named(["birds=~/runs/x"]) == {
        "birds": tmp_path / "runs/x"
    }  # no shell reads what stands behind a =
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert named([f"{tmp_path}/birds", f"x.y-1={tmp_path}/birds/"]) == {
        "birds": tmp_path / "birds",
        "x.y-1": tmp_path / "birds",
    }
    assert named([f"c={odd}"]) == {"c": odd}
    with pytest.raises(
        UserError, match="a=b: give it a name of letters, digits, dots, _ and -, as in birds="
    ):
        named([str(odd)])
    with pytest.raises(
        UserError, match="birds is already a/birds; give one of them another name: NAME=b/birds"
    ):
        named(["a/birds", "b/birds"])
    for name in ("a b", "ä", "a/b", ".a", ""):
        with pytest.raises(UserError, match="give it a name"):
            named([f"{name}=folder"])


def test_a_repository_is_served_by_its_name(hub: Hub) -> None:
    hub.repositories["anna/pets"] = Repository(**{"model.json": b"{}"})
    revision = hub.repositories["anna/pets"].log[-1][0]
    for word, name in (
        ("hf:anna/pets", "pets"),
        (f"hf:anna/pets@{revision}", "pets"),
        ("a=hf:anna/pets", "a"),
    ):
        found = named([word])
        assert [*found] == [name]
        assert (found[name] / "model.json").read_bytes() == b"{}"


def test_what_is_refused(
    rmadapter: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(rmadapter("serve", tmp_path, "--port", "0"), "not a finished run")
    refused(rmadapter("serve", finished, finished, "--port", "0"), "give one of them another name")
    refused(rmadapter("serve", finished, "--queue", "5"), "--images 64: must not exceed --queue 5")
    refused(rmadapter("serve", finished, "--host", "192.0.2.1"), "cannot listen there")
    refused(
        rmadapter("serve", finished, "--port", "0", "--engine", "tpu"), "--engine tpu; known are"
    )
    before = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return None if name == "uvicorn" else before(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    refused(
        rmadapter("serve", finished), "serve needs uvicorn; run `pip install 'rmadapter[serve]'`"
    )


@pytest.mark.slow
def test_two_models_and_a_key(finished: Path) -> None:
    image = [("a.png", colour_image(1, 2, 3))]
    with Process(
        f"one={finished}", f"two={finished}", *backbone_option(finished), key="secret"
    ) as server:
        address = server.address
        assert server.said == [f"rmadapter: one, two at {address}"]
        assert post(address, "/models/two/predict", image)[0] == 401
        status, answer = post(address, "/models/two/predict", image, **{"X-API-Key": "secret"})
        assert (status, answer["model"]) == (200, "two")
        status, answer = post(address, "/predict", image, Authorization="Bearer secret")
        assert (status, answer["error"].startswith("several models are served")) == (400, True)
        assert server.end() == 0
