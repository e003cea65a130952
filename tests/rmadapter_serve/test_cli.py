"""The verb serve."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rmadapter.errors import UserError
from rmadapter_serve import cli
from tests.helpers.fake_hub import Hub, Repository, hub
from tests.helpers.serving import Process, colour_image, post
from tests.helpers.shell import Command, backbone_option, refused, rmadapter

__all__ = ["hub", "rmadapter"]  # fixtures


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # no shell reads what stands behind a =
    assert cli.named(["birds=~/runs/x"]) == {"birds": tmp_path / "runs/x"}
    odd, birds = tmp_path / "a=b", tmp_path / "birds"
    odd.mkdir()
    assert cli.named([str(birds), f"x.y-1={birds}/"]) == {"birds": birds, "x.y-1": birds}
    assert cli.named([f"c={odd}"]) == {"c": odd}
    with pytest.raises(UserError, match=r"a=b: give it a name of .*, as in birds="):
        cli.named([str(odd)])
    with pytest.raises(UserError, match=r"birds is already a/birds; .*NAME=b/birds"):
        cli.named(["a/birds", "b/birds"])
    for name in ("a b", "ä", "a/b", ".a", ""):
        with pytest.raises(UserError, match="give it a name"):
            cli.named([f"{name}=folder"])


def test_a_repository_is_served_by_its_name(hub: Hub) -> None:
    hub.repositories["anna/pets"] = Repository(**{"model.json": b"{}"})
    revision = hub.repositories["anna/pets"].log[-1][0]
    names = {"hf:anna/pets": "pets", f"hf:anna/pets@{revision}": "pets", "a=hf:anna/pets": "a"}
    for word, name in names.items():
        found = cli.named([word])
        assert [*found] == [name]
        assert (found[name] / "model.json").read_bytes() == b"{}"


def test_mistakes_in_serve_are_named(rmadapter: Command, finished: Path, tmp_path: Path) -> None:
    for words, hint in (
        ([tmp_path, "--port", 0], "not a finished run"),
        ([finished, finished, "--port", 0], "give one of them another name"),
        ([finished, "--queue", 5], "--max-images 64: must not exceed --queue 5"),
        ([finished, "--host", "192.0.2.1"], "cannot listen there"),
        ([finished, "--port", 0, "--engine", "tpu"], "--engine tpu: choose one of"),
    ):
        refused(rmadapter("serve", *words), hint)


@pytest.mark.parametrize("verb", ["serve", "app"])
def test_a_missing_extra_is_named(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    before = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "uvicorn" else before(name, *more),
    )
    hint = f"{verb} needs uvicorn; run `pip install 'rmadapter[{verb}]'`"
    refused(rmadapter(verb, *["run"] * (verb == "serve")), hint)


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
