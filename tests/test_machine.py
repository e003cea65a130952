"""What a run cost is what it cost, not what an earlier one did."""

from __future__ import annotations

import os
import sys

import numpy as np
import psutil
import pytest
import torch

from rmadapter.allocator import keep_freed_memory
from rmadapter.bench.machine import machine, peak, reset_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a part of a process' life")
def test_peak_is_of_the_time_since_it_was_reset() -> None:
    keep_freed_memory()  # as training does
    reset_peak(CPU)
    before = peak(CPU)["peak_mb"]
    assert before == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.1)
    block = np.ones(25_000_000)  # 200 MB
    grown = peak(CPU)["peak_mb"]
    del block
    assert before is not None
    assert grown is not None
    assert grown - before == pytest.approx(200, abs=30)
    assert peak(CPU)["peak_mb"] == pytest.approx(grown, abs=5)  # a peak stays
    reset_peak(CPU)
    after = peak(CPU)["peak_mb"]
    assert after == pytest.approx(before, abs=60)


def test_machine() -> None:
    found = machine(CPU)
    assert found["device"] == "cpu"
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert isinstance(found["cpu"], str)
