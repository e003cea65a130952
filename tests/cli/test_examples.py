"""Below every verb's --help: examples that could be given. And shells that complete what somebody
types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from rmadapter.cli.main import EXAMPLES, app
from tests.helpers.commands import assert_parses
from tests.helpers.shell import Command, rmadapter

__all__ = ["rmadapter"]  # a fixture

GROUP: Any = typer.main.get_command(app)
WIDTH = 78  # what a terminal of 80 columns shows in a line


@pytest.mark.parametrize("verb", GROUP.commands)
def test_help_ends_with_examples_that_parse(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in rmadapter(verb, "--help").out.splitlines() if line.strip()]
    shown = lines[lines.index("Examples:") + 1 :]
    assert shown == [*EXAMPLES[verb]]
    assert 1 <= len(shown) <= 3
    for line in shown:
        assert len(line) <= WIDTH
        program, *words = line.split()
        assert (program, words[0]) == ("rmadapter", verb)
        assert_parses(words)


def test_no_example_is_of_a_verb_that_is_gone() -> None:
    assert {*EXAMPLES} == {*GROUP.commands}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("_RMADAPTER_COMPLETE", f"source_{shell}")
    done = rmadapter()
    assert done.code == 0
    assert f"_RMADAPTER_COMPLETE=complete_{shell}" in done.out
    assert {
        "bash": "complete -o default -F",
        "zsh": "compdef",
        "fish": "complete --command rmadapter",
    }[shell] in done.out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pre", "predict"),
        ("ex", "explain export"),
        ("fit --eff", "--effort"),
        ("--ver", "--version"),
    ],
)
def test_bash_completes(
    rmadapter: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, offered: str
) -> None:
    """By the script itself, in a real bash."""
    program = Path(sys.executable).with_name("rmadapter")
    if not program.is_file():
        pytest.skip("the command is not installed beside this Python")
    monkeypatch.setenv("_RMADAPTER_COMPLETE", "source_bash")
    (tmp_path / "script").write_text(rmadapter().out)
    monkeypatch.delenv("_RMADAPTER_COMPLETE")
    words = f"source {tmp_path / 'script'}; COMP_WORDS=(rmadapter {typed})"
    words += f"; COMP_CWORD={len(typed.split())}"
    asked = f'{words}; _rmadapter_completion {program}; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert sorted(done.stdout.split()) == offered.split(), done.stderr


def test_completion_is_offered(rmadapter: Command) -> None:
    out = rmadapter("--help").out
    assert "--install-completion" in out
    assert "--show-completion" in out
