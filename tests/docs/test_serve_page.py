"""docs/serve.md: its defaults are those of the command, its Python runs, its paths exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from rmadapter.cli.main import app
from rmadapter.deploy.serve.routes import create_app
from tests.helpers.serving import Toy, colour_image, running_server, running_service

TEXT = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")


def test_defaults_are_those_of_the_command() -> None:
    group: Any = typer.main.get_command(app)
    options = {
        option.opts[0]: option.default for option in group.commands["serve"].params if option.opts
    }
    rows = re.findall(r"^\| `(--\w+)` \| (\S+) \|", TEXT, re.M)
    assert len(rows) > 9
    for name, told in rows:
        assert told in ("none", "off") or str(options[name]) == told, name
        assert told not in ("none", "off") or not options[name], name


def test_paths_exist() -> None:
    with running_service(Toy()) as service:
        paths = create_app(service).openapi()["paths"]
    told = re.findall(r"`(GET|POST) (/[\w/.]+)`", TEXT)
    assert len(told) > 8
    for verb, path in told:
        if path not in ("/openapi.json", "/docs"):
            assert verb.lower() in paths[path.replace("NAME", "{model}")], path


def test_its_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(colour_image(250, 5, 5, kind="JPEG"))
    [code] = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    with running_server(Toy()) as address:
        exec(compile(code.replace("http://127.0.0.1:8000", address), "serve.md", "exec"), {})
    assert capsys.readouterr().out == "red\n"
