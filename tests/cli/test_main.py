"""`python -m rmadapter`."""

from __future__ import annotations

import subprocess
import sys

from rmadapter import __version__


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rmadapter", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"rmadapter {__version__}")
