"""Pages that the system had to fill anew, counted by the system itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from rmadapter.allocator import keep_freed_memory
kept = keep_freed_memory() if {keep} else False
def step():
    for _ in range(5):
        torch.zeros(12_000_000).add_(1)  # 48 MB, freed at once
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_freed_memory_is_used_again() -> None:
    counts = {}
    for keep in (False, True):
        out = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
        )
        faults, kept = out.stdout.split()
        if keep and kept == "False":
            pytest.skip("this C library has no mallopt")
        counts[keep] = int(faults)
    assert counts[True] < counts[False] / 10
