"""The verb app."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import Backbone
from rmadapter_serve.sockets import address
from rmadapter_studio import cli
from rmadapter_studio.project import Project
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.slow import slow_except

__all__ = ["rmadapter"]  # a fixture

needs_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in cli.NEEDED_BY_APP),
    reason="pip install 'rmadapter[app]'",
)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> list[Any]:
    """What would be served, and what would be opened."""
    found: list[Any] = []
    monkeypatch.setattr("rmadapter.backbones.load.load_backbone", lambda _: tiny_clip)
    monkeypatch.setattr(
        cli, "run_server", lambda site, listening: found.append(f"{address(listening)}/")
    )
    monkeypatch.setattr(cli.webbrowser, "open", found.append)
    return found


@needs_extra
def test_app_prints_and_opens_its_address(rmadapter: Command, served: list[str]) -> None:
    done = rmadapter.done("app", "--port", 0, "--open", "--json")
    address = json.loads(done.out)["address"]
    assert done.err == ""
    assert address.startswith("http://127.0.0.1:")
    assert served == [address, address]
    assert "Ctrl-C ends it" in rmadapter("app", "--port", 0).out


@needs_extra
def test_app_opens_a_folder_to_label(rmadapter: Command, served: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    done = rmadapter.done("app", tmp_path / "photos", "--port", 0, "--json")
    where = json.loads(done.out)["address"]
    assert re.fullmatch(re.escape(f"{served[0]}label?key=") + r"[\w-]{22}", where)  # 128 bits
    assert not [*(tmp_path / "photos").iterdir()]
    with Project(tmp_path / "photos").alone():
        refused(rmadapter("app", tmp_path / "photos", "--port", 0), "photos: another process")
    refused(rmadapter("app", tmp_path / "gone", "--port", 0), "gone: not a folder of images")
    for words in (["--host", "0.0.0.0"], ["--allow-host", "anna.example"]):
        refused(rmadapter("app", tmp_path / "photos", "--port", 0, *words), "this machine alone")


@needs_extra
@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["--host", "0.0.0.0"], "anyone who reaches http://0.0.0.0:"),
        (["--host", "localhost"], ""),
        (["--allow-host", "anna.example"], " or anna.example can use"),
    ],
)
def test_app_warns_where_others_can_reach_it(
    rmadapter: Command, served: list[str], words: list[str], warning: str
) -> None:
    err = rmadapter.done("app", "--port", 0, *words).err
    assert warning in err
    assert bool(err) == bool(warning)


@needs_extra
def test_mistakes_in_app_are_named(rmadapter: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(rmadapter("app", "--port", port), f"--port {port}: cannot listen there")
    for words, hint in (
        (["--host", "no.such.host.example"], "cannot listen there"),
        (["--runs", tmp_path / "gone"], "gone: not a folder of runs"),
        (["--backbone", "pokket"], "'pokket'"),
    ):
        refused(rmadapter("app", "--port", 0, *words), hint)


HOSTS = ["", "https://a.example", "a.example:80", "a.example/", "*", "-a", "a\n"]
SITES = ["", "a.example", "https://*", "https://a.example/", "https://a; img-src *", "data:"]


@needs_extra
@pytest.mark.parametrize(
    ("option", "word", "example"),
    [
        *(("--allow-host", word, "anna-photos.hf.space") for word in HOSTS),
        *(("--allow-frame", word, "https://huggingface.co") for word in SITES),
    ],
)
def test_a_malformed_host_or_site_is_refused(
    rmadapter: Command, option: str, word: str, example: str
) -> None:
    refused(rmadapter("app", option, word), f"{option} ", example)


def test_loopback_hosts() -> None:
    hosts = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "studio", "10.0.0.7")
    assert [host for host in hosts if cli.is_loopback(host)] == [*hosts[:3]]


@needs_extra
def test_names_and_sites_reach_the_page(
    rmadapter: Command, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    clients: list[Any] = []

    def visit(site: Any, listening: object) -> None:
        clients.append(TestClient(site, "https://anna.example"))

    monkeypatch.setattr(cli, "run_server", visit)
    names = ["--allow-host", "Anna.example", "--allow-frame", "https://b.example"]
    rmadapter("app", "--port", 0, *names)
    with clients[0] as client:
        page, other = client.get("/"), client.get("/", headers={"host": "other.example"})
        assert (page.status_code, other.status_code) == (200, 403)
        assert "frame-ancestors https://b.example" in page.headers["content-security-policy"]
        assert page.headers["set-cookie"].endswith("; SameSite=None; Secure; Partitioned")


SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


@pytest.mark.ci
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


# Export
