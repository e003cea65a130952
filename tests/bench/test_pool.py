"""Workers on GPUs that this machine need not have: who sees which one, with how many threads."""

from __future__ import annotations

import os
import time

import pytest

from rmadapter.bench.pool import make_pool, shared_gpus, worker_count
from rmadapter.errors import UserError
from rmadapter.support.machine import VISIBLE, threads_each


def seen() -> tuple[int, str | None, int]:
    """In a worker, which takes its time so that each of them does one."""
    import torch

    time.sleep(2)
    return os.getpid(), os.environ.get(VISIBLE), torch.get_num_threads()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [["MIG-1", "GPU-2"], []])
def test_workers_share_gpu_and_threads(devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    with make_pool(devices, 3) as pool:
        futures = [pool.submit(seen) for _ in range(3)]
        found = {process: rest for process, *rest in (future.result() for future in futures)}
    names = ["GPU-2", "MIG-1", "MIG-1"] if devices else [None] * 3
    assert sorted(found.values(), key=str) == [[name, threads_each(3)] for name in names]


def test_a_device_that_is_named_is_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "3,1")
    expected = [["3", "1"], ["3", "1"], [], []]
    assert [shared_gpus(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == expected


def test_workers_are_counted_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "3,1")
    assert (worker_count("auto", 4), worker_count("auto", 1, per_gpu=3)) == (4, 6)
    with pytest.raises(UserError, match="--jobs-per-gpu: there is no GPU to share; give --jobs"):
        worker_count("cpu", 1, per_gpu=3)
