"""The verbs serve and app."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter.cli import deploy as cli
from rmadapter.cli.deploy import named
from rmadapter.deploy.sockets import address
from rmadapter.errors import UserError
from tests.helpers.fake_hub import Hub, Repository, hub
from tests.helpers.serving import Process, colour_image, post
from tests.helpers.shell import Command, backbone_option, refused, rmadapter
from tests.helpers.slow import slow_except

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


needs_extra = pytest.mark.skipif(
    any(cli.importlib.util.find_spec(name) is None for name in cli.NEEDED_BY_APP),
    reason="pip install 'rmadapter[app]'",
)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> list[Any]:
    """What would be served, and what would be opened."""
    found: list[Any] = []
    monkeypatch.setattr("rmadapter.backbones.choice.load_backbone", lambda _: tiny_clip)
    monkeypatch.setattr(cli, "run_server", lambda site, door: found.append(f"{address(door)}/"))
    monkeypatch.setattr(cli.webbrowser, "open", found.append)
    return found


@needs_extra
def test_where_it_listens(rmadapter: Command, served: list[str]) -> None:
    done = rmadapter("app", "--port", 0, "--open", "--json")
    address = json.loads(done.out)["address"]
    assert (done.code, done.err) == (0, "")
    assert address.startswith("http://127.0.0.1:")
    assert served == [address, address]
    assert "Ctrl-C ends it" in rmadapter("app", "--port", 0).out


@needs_extra
def test_a_warning_where_others_come_in(rmadapter: Command, served: list[str]) -> None:
    assert (
        "anyone who reaches http://0.0.0.0:"
        in rmadapter("app", "--host", "0.0.0.0", "--port", 0).err
    )
    assert rmadapter("app", "--host", "localhost", "--port", 0).err == ""
    assert (
        " or anna.example can use"
        in rmadapter("app", "--port", 0, "--allow-host", "anna.example").err
    )


@needs_extra
def test_mistakes(rmadapter: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(
            rmadapter("app", "--port", port),
            f"--port {port}: cannot listen there",
            "choose another",
        )
    refused(rmadapter("app", "--host", "no.such.host.example", "--port", 0), "cannot listen there")
    refused(rmadapter("app", "--runs", tmp_path / "gone"), "gone: not a folder of runs")
    refused(rmadapter("app", "--port", 0, "--backbone", "pokket"), "'pokket'")


@needs_extra
@pytest.mark.parametrize(
    "word", ["", "https://a.example", "a.example:80", "a.example/", "*", "-a", "a\n"]
)
def test_what_is_no_name(rmadapter: Command, word: str) -> None:
    refused(rmadapter("app", "--allow-host", word), "--allow-host ", "anna-photos.hf.space")


@needs_extra
@pytest.mark.parametrize(
    "word", ["", "a.example", "https://*", "https://a.example/", "https://a; img-src *", "data:"]
)
def test_what_is_no_site(rmadapter: Command, word: str) -> None:
    refused(rmadapter("app", "--allow-frame", word), "--allow-frame ", "https://huggingface.co")


def test_the_extra_is_named(rmadapter: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "NEEDED_BY_APP", ("no_such_module",))
    refused(rmadapter("app"), "app needs no_such_module; run `pip install 'rmadapter[app]'`")


def test_what_others_can_reach() -> None:
    loopback = [
        cli.is_loopback(host)
        for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "studio", "10.0.0.7")
    ]
    assert loopback == [True, True, True, False, False, False]


@needs_extra
def test_names_and_sites_reach_the_page(
    rmadapter: Command, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    got: list[Any] = []
    monkeypatch.setattr(
        cli, "run_server", lambda site, door: got.append(TestClient(site, "https://anna.example"))
    )
    rmadapter(
        "app", "--port", 0, "--allow-host", "Anna.example", "--allow-frame", "https://b.example"
    )
    with got[0] as client:
        page = client.get("/")
        assert (
            page.status_code,
            client.get("/", headers={"host": "other.example"}).status_code,
        ) == (200, 403)
        assert "frame-ancestors https://b.example" in page.headers["content-security-policy"]
        assert page.headers["set-cookie"].endswith("; SameSite=None; Secure; Partitioned")


SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


@needs_extra
@pytest.mark.parametrize("number", slow_except(SIGNALS, signal.SIGINT))
def test_a_real_process_clears_up(tiny_clip: Backbone, tmp_path: Path, number: int) -> None:
    words = ["app", "--port", "0", "--backbone", tiny_clip.name, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rmadapter", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        address = json.loads(process.stdout.readline())["address"]
        with urllib.request.urlopen(address) as page:
            assert b"Make your own" in page.read()
        assert [*tmp_path.glob("rmadapter-app-*/*")]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert not [*tmp_path.glob("rmadapter-app-*")]
