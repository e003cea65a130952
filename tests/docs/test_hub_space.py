"""examples/space, a Space of the Hugging Face hub, read without docker and without the hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import assert_parses
from tests.helpers.dockerfiles import PROJECT, ROOT, SPACE, arguments_of

README = (ROOT / "examples/space/README.md").read_text("utf-8")


def test_what_the_hub_reads() -> None:
    _, front, text = README.split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["sdk"], found["license"]) == ("docker", PROJECT["license"].casefold())
    assert [str(found["app_port"])] == arguments_of(SPACE, "EXPOSE")
    assert text.strip()


def test_nobody_is_root_and_the_user_is_the_hub_s() -> None:
    assert arguments_of(SPACE, "USER") == ["1000"]
    made = next(line for line in arguments_of(SPACE, "RUN") if "useradd" in line)
    name = re.search(r"useradd --uid 1000 --create-home (\w+)$", made)
    assert name
    assert f"HOME=/home/{name[1]}" in arguments_of(SPACE, "ENV")[0]


def test_what_is_installed_exists() -> None:
    [extras] = re.findall(r"rmadapter\[([\w,]+)\]", arguments_of(SPACE, "RUN")[0])
    assert "app" in extras.split(",")
    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}
    assert_parses(arguments_of(SPACE, "RUN")[1].split()[1:])


@pytest.mark.parametrize("host", ["anna-photos.hf.space", ""])
def test_the_command_by_the_name_that_the_hub_gives(tmp_path: Path, host: str) -> None:
    told = tmp_path / "rmadapter"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SPACE_HOST": host}
    [command] = arguments_of(SPACE, "CMD")
    words = subprocess.run(
        json.loads(command), env=environ, capture_output=True, text=True, check=True
    ).stdout.split()
    assert_parses(words)
    values = dict(zip(words[1::2], words[2::2], strict=True))
    assert [values["--host"], values["--port"]] == ["0.0.0.0", *arguments_of(SPACE, "EXPOSE")]
    assert values["--allow-host"] == (host or "localhost")
    assert values["--allow-frame"] == "https://huggingface.co"
