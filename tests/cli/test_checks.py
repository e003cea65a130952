"""A mistake in an argument is refused before torch, open_clip or a model is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import typer
from huggingface_hub import constants

from rmadapter.backbones.names import PRESETS
from rmadapter.cli import checks
from rmadapter.cli.checks import ask_for_backbone, check_backbones
from rmadapter.support.hub import Unreachable
from tests.helpers.fake_hub import Hub, hub
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["hub", "rmadapter"]  # fixtures

# Runs each command of a list in one process, and prints what was refused and what was loaded.
REFUSALS = """
import contextlib, io, json, sys
from rmadapter.cli.main import main

answers = []
for words in json.loads(sys.stdin.read()):
    sys.argv, err, code = ["rmadapter", *words], io.StringIO(), None
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    loaded = [name for name in ("torch", "open_clip", "transformers") if name in sys.modules]
    answers.append([code, err.getvalue(), loaded])
print(json.dumps(answers))
"""


def mistakes(run: Path, colors: Path, other: Path) -> list[tuple[list[object], str]]:
    """Return commands with one mistake, each with what its refusal must name. other: a folder with
    a file taken.csv, a table latin.csv and an empty page."""
    gone, web, image = other / "gone", "https://example.org/a.jpg", colors / "test/red/0.png"
    in_class = colors / "train/red"
    new, taken = other / "new", other / "taken.csv"
    backbone: list[object] = ["--backbone", "ViT-B/16"]
    return [
        (["predict", gone, image], "gone"),
        (["predict", web, image], "hf:OWNER/NAME"),
        (["predict", run, "nope.jpg"], "nope.jpg"),
        (["predict", run, web], web),
        (["predict", run, image, "--out", other / "a.xlsx"], "a.xlsx"),
        (["predict", run, image, "--out", taken], "taken.csv"),
        (["predict", run, image, "--sort-into", new, "--move", "--link"], "--link"),
        (["predict", run, image, *backbone], "'ViT-B'"),
        (["eval", gone, colors], "gone"),
        (["eval", run, gone], "gone"),
        (["eval", run, web], "web address"),
        (["eval", run, in_class], repr(str(colors))),
        (["eval", run, colors, *backbone], "'ViT-B'"),
        (["explain", gone, image], "gone"),
        (["explain", run, "nope.jpg"], "nope.jpg"),
        (["explain", run, web], web),
        (["explain", run, image, "--out", other / "why"], "explain.html"),
        (["explain", run, image, "--run-data", gone], "gone"),
        (["predict", run, image, "--ray", "--device", "cpu"], "--device"),
        (["explain", run, image, *backbone], "'ViT-B'"),
        (["fit", gone, "--out", new], "gone"),
        (["fit", web, "--out", new], web),
        (["fit", other / "latin.csv", "--out", new], "latin.csv, line 2"),
        (["fit", in_class, "--out", new], repr(str(colors))),
        (["fit", colors, "--out", taken], "taken.csv"),
        (["fit", colors, "--out", new, *backbone], "'ViT-B'"),
        (["fit", colors, "--out", new, "--set", "backbone=ViT-B/16"], "'ViT-B'"),
        (["fit", colors, "--out", new, "--backbone", "pokket"], "'pokket'"),
        (["fit", colors, "--out", new, "--backbone", "laptop"], "'laptop'"),
        (["predict", run, image, "--backbone", "timm:resnet18.a1_in1k"], "resnet18"),
        (["fit", colors, "--out", new, "--names-from", gone], "gone"),
        (["fit", colors, "--out", new, "--config", gone], "gone"),
        (["suspects", gone], "gone"),
        (["suspects", web], "web address"),
        (["suspects", in_class], repr(str(colors))),
        (["suspects", colors, "--out", taken], "taken.csv"),
        (["suspects", colors, "--apply", gone, "--out", new], "gone"),
        (["suspects", colors, *backbone], "'ViT-B'"),
        (["export", gone], "gone"),
        (["export", web], "hf:OWNER/NAME"),
        (["export", run, "--out", taken], "taken.csv"),
        (["export", run, "--to", "tflite"], "tflite"),
        (["export", run, "--out", new, "--data", gone], "gone"),
        (["export", run, "--out", new, *backbone], "'ViT-B'"),
        (["serve", gone], "gone"),
        (["serve", web], "hf:OWNER/NAME"),
        (["serve", run, *backbone], "'ViT-B'"),
        (["add", gone, "zebra", "--out", new], "gone"),
        (["add", run, web, "--out", new], web),
        (["add", run, "zebra", "--out", run], run.name),
        (["add", run, "zebra", "--out", taken], "taken.csv"),
        (["add", run, colors, "--out", new, "--run-data", gone], "gone"),
        (["add", run, "zebra", "--out", new, *backbone], "'ViT-B'"),
        (["compare", run, gone, "--data", colors], "gone"),
        (["compare", run, run, "--data", gone], "gone"),
        (["compare", run, run, "--data", web], "web address"),
        (["compare", run, run, "--data", in_class], repr(str(colors))),
        (["compare", run, run, "--data", colors, *backbone], "'ViT-B'"),
    ]


@pytest.mark.ci
def test_mistakes_are_refused_before_torch_is_loaded(
    finished: Path, colors: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken.csv").touch()
    (tmp_path / "latin.csv").write_bytes(b"path,label\na.png,h\xe4\n")
    (tmp_path / "why").mkdir()
    (tmp_path / "why/explain.html").touch()
    before = sorted(tmp_path.rglob("*"))
    expected = mistakes(finished, colors, tmp_path)
    commands = [[str(word) for word in words] for words, _ in expected]
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "nothing")}
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for words, (_, named), (code, err, loaded) in zip(commands, expected, answers, strict=True):
        assert (code, loaded) == (2, []), (words, err)
        assert err.count("\n") == 1, (words, err)
        assert named in err, (words, err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "asks"),
    [("laptop", True), ("hf-hub:anna/x", True), ("timm:a.b", True), ("ViT-B-16/none", False),
     ("ViT-B-16/{folder}/own.safetensors", False), ("timm:a/none", False), ("{folder}", False),
     ("pocket-3", False), ("laptop,pocket-3", False), ("auto", False)],
)  # fmt: skip
def test_the_hub_is_asked_at_once_only_for_a_model_that_must_come_from_it(
    name: str, asks: bool, empty_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "check_reachable", Mock(side_effect=TimeoutError))
    (tmp_path / "own.safetensors").touch()
    name = name.format(folder=tmp_path)
    with pytest.raises(Unreachable, match=name) if asks else contextlib.nullcontext():
        check_backbones(name, choosing=True)
    (empty_hub / ".locks/models--anna--x").mkdir(parents=True)
    (empty_hub / "models--anna--y").mkdir()
    unknown = asks and name == "hf-hub:anna/x"  # of the others, the repository is not known yet
    with pytest.raises(Unreachable) if unknown else contextlib.nullcontext():
        check_backbones(name, choosing=True)
    (empty_hub / "models--anna--x").mkdir()
    assert check_backbones(name, choosing=True) == name


def test_a_single_class_is_refused_before_a_backbone_is_loaded(
    rmadapter: Command, colors: Path, tmp_path: Path, empty_hub: Path
) -> None:
    (empty_hub / "models--nobody--nothing").mkdir(parents=True)  # the hub is not asked first
    (tmp_path / "set").mkdir()
    (tmp_path / "set/red").symlink_to(colors / "train/red")
    command = ["fit", tmp_path / "set", "--backbone", "hf-hub:nobody/nothing"]
    refused(rmadapter(*command, "--out", tmp_path / "run", "-q"), "'red'")


@pytest.fixture
def terminal(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub in reach, and a user who was never asked, at a terminal."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stream = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(checks, "sys", SimpleNamespace(stdin=stream, stderr=stream))
    return hub


@pytest.mark.parametrize(("answer", "found"), [(True, "laptop"), (False, None)])
def test_a_user_at_a_terminal_is_asked_once_for_a_backbone(
    answer: bool, found: str | None, terminal: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Mock(return_value=answer)
    monkeypatch.setattr(typer, "confirm", asked)
    assert ask_for_backbone() == found
    [question] = asked.call_args.args
    assert all(part in question for part in (PRESETS["laptop"], "605 MB", "MIT"))
    assert asked.call_args.kwargs["err"]  # stdout is what a command prints
    assert ask_for_backbone() is None
    assert asked.call_count == 1


@pytest.mark.parametrize("reason", ["script", "offline", "no answer", "torchrun"])
def test_nobody_is_asked_without_a_terminal_or_a_hub(
    reason: str, terminal: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Mock()
    monkeypatch.setattr(typer, "confirm", asked)
    if reason == "script":
        monkeypatch.setattr(checks, "sys", sys)
    elif reason == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif reason == "no answer":
        monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    else:
        monkeypatch.setattr(checks, "launched", lambda: True)
    assert ask_for_backbone() is None
    assert not asked.called


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize(
    ("words", "asked"),
    [([], True), (["--quiet"], False), (["--json"], False), (["--backbone", "pocket"], False)],
)
def test_fit_takes_the_backbone_that_a_user_at_a_terminal_agrees_to(
    words: list[str], asked: bool, terminal: Hub, colors: Path, tmp_path: Path
) -> None:
    """This hub has none. Where nobody is asked, a setting is refused before anything is trained."""
    import pty

    ours, theirs = pty.openpty()
    setting = "seed=1" if asked else "seed=-1"
    command = ["fit", str(colors), "--set", setting, *words, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "HF_ENDPOINT": terminal.url, "HF_HUB_OFFLINE": "0"}
    code = "from rmadapter.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        os.write(ours, b"y\n")
        shown = b""
        with contextlib.suppress(OSError):  # of Linux, once the command has ended
            while part := os.read(ours, 1000):
                shown += part
        os.close(ours)
    assert process.returncode == 2, shown.decode()
    assert (b"[Y/n]" in shown) == asked
    assert ("CLIP-ViT-B-32-DataComp" if asked else "seed") in shown.decode().splitlines()[-1]
