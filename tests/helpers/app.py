"""Start `rmadapter app` as a separate process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rmadapter.backbones import Backbone


@contextmanager
def running_app(tiny_clip: Backbone, *words: str) -> Iterator[str]:
    """The address of a real server."""
    words = ("app", "--port", "0", "--backbone", tiny_clip.name, "--json", *words)
    process = subprocess.Popen(
        [sys.executable, "-m", "rmadapter", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
