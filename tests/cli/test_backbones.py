"""The verbs `backbones` and `convert` are there, and cost no import before they are asked; what
they do is tested in test_choice.py and test_convert.py."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


def test_help_names_both_without_torch(rmadapter: Command) -> None:
    text = rmadapter("--help").out
    assert "backbones" in text
    assert "convert" in text
    code = "import sys, rmadapter.cli.main; print('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_what_is_missing_is_asked_for(rmadapter: Command) -> None:
    assert rmadapter("convert", "a.pt", "--out", "b").code == 2
    refused(
        rmadapter("convert", "a.pt", "--architecture", "ViT-B-16", "--out", "b"),
        "a.pt: not a checkpoint",
    )
