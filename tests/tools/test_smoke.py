"""tools/smoke.py: commands that exist, images that can be read, a fault that is told; the real
thing is a release."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import smoke

from rmadapter.data.read import read_images
from tests.helpers.commands import assert_parses


def test_its_images_are_read(tmp_path: Path) -> None:
    images = read_images(smoke.draw(tmp_path / "images"))["all"]
    assert (images.classes, len(images)) == (("blue", "green", "red"), 12)


def test_its_commands_parse(tmp_path: Path) -> None:
    for words in smoke.steps(tmp_path / "images", tmp_path / "run", "pocket"):
        assert_parses(words)


def stand_in(tmp_path: Path, script: str) -> str:
    """A Python that is none."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


def test_it_ends_with_the_first_fault(tmp_path: Path) -> None:
    python = stand_in(
        tmp_path, '[ "$3" = fit ] || exit 0; echo a; echo "rmadapter: no room" >&2; exit 2'
    )
    found = [(step, fault) for step, _, fault in smoke.smoke(python, "pocket")]
    assert [step for step, _ in found] == ["--version", "--help", "doctor", "methods", "fit"]
    assert {fault for _, fault in found[:-1]} == {""}
    assert found[-1][1] == "rmadapter: no room"


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo /env/lib/rmadapter/__init__.py; echo /env", ""),
        ("echo /source/rmadapter/__init__.py; echo /env", "is not what was installed into /env"),
        ("echo 'ModuleNotFoundError: rmadapter' >&2; exit 1", "ModuleNotFoundError: rmadapter"),
    ],
)
def test_a_source_tree_is_no_installation(tmp_path: Path, script: str, fault: str) -> None:
    assert smoke.source_of(stand_in(tmp_path, script)).endswith(fault)
    assert bool(smoke.source_of(stand_in(tmp_path, script))) == bool(fault)


def test_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = 'if [ "$1" = -c ]; then echo /env/rmadapter; echo /env; exit; fi'
    monkeypatch.chdir(tmp_path)  # it runs its commands elsewhere, and the path is relative
    for script, code in (("exit 0", 0), ("exit 3", 1)):
        python = Path(stand_in(tmp_path, f"{where}; {script}"))
        monkeypatch.setattr(sys, "argv", ["smoke.py", f"./{python.name}"])
        monkeypatch.setenv("PYTHONPATH", "x")
        assert smoke.main() == code
        assert capsys.readouterr().out.count("ok") == (8 if not code else 0)
