"""The verbs serve, app and export."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmadapter.backbones import Backbone
from rmadapter.cli import deploy as cli
from rmadapter.cli.deploy import named
from rmadapter.conformal import Calibration
from rmadapter.curate.project import Project
from rmadapter.deploy.sockets import address
from rmadapter.errors import UserError
from tests.helpers.fake_hub import Hub, Repository, hub
from tests.helpers.serving import Process, colour_image, post
from tests.helpers.shell import Command, backbone_option, refused, rmadapter
from tests.helpers.slow import slow_except

__all__ = ["hub", "rmadapter"]  # fixtures


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # no shell reads what stands behind a =
    assert named(["birds=~/runs/x"]) == {"birds": tmp_path / "runs/x"}
    odd, birds = tmp_path / "a=b", tmp_path / "birds"
    odd.mkdir()
    assert named([str(birds), f"x.y-1={birds}/"]) == {"birds": birds, "x.y-1": birds}
    assert named([f"c={odd}"]) == {"c": odd}
    with pytest.raises(UserError, match=r"a=b: give it a name of .*, as in birds="):
        named([str(odd)])
    with pytest.raises(UserError, match=r"birds is already a/birds; .*NAME=b/birds"):
        named(["a/birds", "b/birds"])
    for name in ("a b", "ä", "a/b", ".a", ""):
        with pytest.raises(UserError, match="give it a name"):
            named([f"{name}=folder"])


def test_a_repository_is_served_by_its_name(hub: Hub) -> None:
    hub.repositories["anna/pets"] = Repository(**{"model.json": b"{}"})
    revision = hub.repositories["anna/pets"].log[-1][0]
    names = {"hf:anna/pets": "pets", f"hf:anna/pets@{revision}": "pets", "a=hf:anna/pets": "a"}
    for word, name in names.items():
        found = named([word])
        assert [*found] == [name]
        assert (found[name] / "model.json").read_bytes() == b"{}"


def test_mistakes_in_serve_are_named(rmadapter: Command, finished: Path, tmp_path: Path) -> None:
    for words, hint in (
        ([tmp_path, "--port", 0], "not a finished run"),
        ([finished, finished, "--port", 0], "give one of them another name"),
        ([finished, "--queue", 5], "--max-images 64: must not exceed --queue 5"),
        ([finished, "--host", "192.0.2.1"], "cannot listen there"),
        ([finished, "--port", 0, "--engine", "tpu"], "--engine tpu; known are"),
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


needs_extra = pytest.mark.skipif(
    any(cli.importlib.util.find_spec(name) is None for name in cli.NEEDED_BY_APP),
    reason="pip install 'rmadapter[app]'",
)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> list[Any]:
    """What would be served, and what would be opened."""
    found: list[Any] = []
    monkeypatch.setattr("rmadapter.backbones.choice.load_backbone", lambda _: tiny_clip)
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
    assert json.loads(done.out)["address"] == f"{served[0]}label"
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

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnxscript")),
    reason="pip install 'rmadapter[export]'",
)


@needs_onnx
@pytest.mark.slow
def test_export_prints_a_table_or_json(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    command = ["export", finished, "--data", colors, *backbone_option(finished)]
    done = rmadapter.done(*command, "--out", tmp_path / "a")
    assert done.err == ""
    assert f"test images of {colors.name}" in done.out
    assert done.out.splitlines()[-1].startswith(f"export: {tmp_path / 'a'}, ")
    facts = rmadapter.json(*command, "--out", tmp_path / "b", "--precision", "fp16")
    assert facts.pop("export") == str(tmp_path / "b")
    assert facts == json.loads((tmp_path / "b/export.json").read_text())
    assert facts["command"].startswith("rmadapter export ")
    assert facts["bytes"] < (tmp_path / "a/model.onnx").stat().st_size
    refused(rmadapter(*command, "--out", tmp_path / "a"), "a: already exists")


@needs_onnx
@pytest.mark.slow
def test_export_shows_what_it_changed_in_decisions(
    rmadapter: Command, finished: Path, colors: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    facts = json.loads((run / "model.json").read_text())
    shares = [*np.linspace(0.2, 0.9, 20).round(6).tolist()]
    calibration = Calibration((*shares,), (*range(4),) * 5, 4, "folds").json()
    (run / "model.json").write_text(json.dumps({**facts, "calibration": calibration}))
    (run / "SHA256SUMS").unlink()
    command = ["export", run, "--data", colors, *backbone_option(run)]
    shown = [
        rmadapter.done(*command, "--out", tmp_path / precision, "--precision", precision).out
        for precision in ("fp16", "fp32")
    ]
    assert ["sets without the right class, at 5 %" in text for text in shown] == [True, False]
    assert "sets without the right class, at 5 %" in (tmp_path / "fp32/README.md").read_text()


@needs_onnx
def test_mistakes_in_export_are_named(rmadapter: Command, finished: Path, tmp_path: Path) -> None:
    targets = "--to tflite: choose one of onnx, web, torch, litert, openvino"
    refused(rmadapter("export", finished, "--to", "tflite"), targets)
    gone = ["--data", tmp_path / "gone", *backbone_option(finished)]
    for words, hint in (
        ([finished, "--precision", "x"], "--precision x: choose one of"),
        ([tmp_path], "not a finished run"),
        ([finished, *gone], "gone: no such file or folder"),
    ):
        refused(rmadapter("export", *words, "--out", tmp_path / "a"), hint)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_called_by_a_dot_is_exported_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert cli.ExportOptions().folder(Path("."), Path(".")) == tmp_path / "run-onnx"
