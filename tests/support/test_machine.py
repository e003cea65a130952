"""What a run cost is what it cost, not what an earlier one did."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from rmadapter.errors import UserError
from rmadapter.support.machine import (
    VISIBLE,
    all_seeded,
    describe,
    end_with_parent,
    fastest_precision,
    find_device,
    gpus,
    keep_freed_memory,
    make_pool,
    peak,
    reset_peak,
    shared_gpus,
    threads_each,
    version_of,
    versions,
)

CPU = torch.device("cpu")


FORKS = """
import multiprocessing, os, signal, time
from rmadapter.support.machine import end_with_parent

def work():
    end_with_parent()
    time.sleep(60)

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")
def test_a_worker_ends_with_whoever_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        worker = int(process.stdout.readline())
        process.wait()
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(worker).wait(10)
    end_with_parent()  # whoever was started by nobody goes on


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the peak of a part of a process' life"
)
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


def test_what_it_is() -> None:
    found = describe(CPU)
    assert found["device"] == "cpu"
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert isinstance(found["cpu"], str)


FAULTS = """
import resource, torch
from rmadapter.support.machine import keep_freed_memory
kept = keep_freed_memory() if {keep} else False
def step():
    for _ in range(5):
        torch.zeros(12_000_000).add_(1)  # 48 MB, freed at once
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_freed_memory_is_used_again() -> None:
    counts = {}
    for keep in (False, True):
        out = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)],
            capture_output=True,
            text=True,
            check=True,
        )
        faults, kept = out.stdout.split()
        if keep and kept == "False":
            pytest.skip("this C library has no mallopt")
        counts[keep] = int(faults)
    assert counts[True] < counts[False] / 10


def test_devices() -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="write auto"):
        find_device("toaster")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so none can be missed")
    assert find_device().type == "cpu"
    with pytest.raises(UserError, match="no usable GPU"):
        find_device("cuda")
    with pytest.raises(UserError, match="no usable GPU of that name"):
        find_device("mps")
    with pytest.raises(UserError, match="write auto, cpu, cuda or cuda:0"):
        find_device("meta")


def test_apples_gpu_is_taken_where_it_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for cuda, kind in ((True, "cuda"), (False, "mps")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert find_device().type == kind


def test_gpus_are_those_that_the_system_lets_us_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA reads the list: up to the first that is none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv(VISIBLE, raising=False)
    assert gpus() == ["0", "1", "2"]
    for given, found in (
        ("2", ["2"]),
        ("GPU-8c1a, MIG-77/1/0", ["GPU-8c1a", "MIG-77/1/0"]),
        ("1,-1,0", ["1"]),
        ("", []),
        ("NoDevFiles", []),
    ):
        monkeypatch.setenv(VISIBLE, given)
        assert gpus() == found


def test_threads_are_those_of_the_cores_that_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5, 6, 7}, raising=False)
    assert [threads_each(processes) for processes in (1, 2, 9)] == [5, 2, 1]


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["torch"] == metadata.version("torch")
    assert {"python", "platform", "rmadapter", "open_clip_torch", "timm", "numpy", "pillow"} <= set(
        found
    )


def test_a_module_that_another_package_brings_has_a_version_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert version_of("numpy") == metadata.version("numpy")
    monkeypatch.setitem(sys.modules, "of_another_wheel", SimpleNamespace(__version__="1.2"))
    assert version_of("of-another-wheel") == "1.2"
    assert version_of("no-such-thing") == "unknown"


def test_every_global_generator_starts_at_the_seed_and_goes_on_as_before() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    drawn()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with all_seeded(3):
        first = drawn()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    with all_seeded(3):
        assert drawn() == first
    with all_seeded(4):
        assert not {*drawn()} & {*first}


def test_the_faster_number_format_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {torch.float32: 8.0, torch.bfloat16: 4.0, torch.float16: 2.0}
    clock, running, ones, sides = [0.0], torch.Tensor.__matmul__, torch.ones, list[int]()

    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        clock[0] += times[x.dtype]
        sides.append(len(x))
        return x[:2, :2]

    monkeypatch.setattr("rmadapter.support.machine.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert fastest_precision(CPU) == ("bf16", 2.0)
    times[torch.bfloat16] = 7.0
    assert fastest_precision(CPU) == ("fp32", 8 / 7)
    times[torch.bfloat16] = 80.0
    sides.clear()
    assert fastest_precision(CPU) == ("fp32", 0.1)
    assert {*sides} == {256}  # larger ones would take seconds each
    monkeypatch.setattr(torch, "ones", lambda *size, dtype, device: ones(*size, dtype=dtype))
    gpu = torch.device("cuda")
    assert fastest_precision(gpu) == ("fp16", 4.0)  # a card without bfloat16
    times[torch.bfloat16] = 3.0
    assert fastest_precision(gpu) == ("bf16", 8 / 3)  # which needs no scaling of the loss
    times |= {torch.bfloat16: 7.0, torch.float16: 7.0}
    assert fastest_precision(gpu) == ("fp32", 8 / 7)
    monkeypatch.setattr(torch.Tensor, "__matmul__", running)
    monkeypatch.undo()
    assert fastest_precision(CPU)[1] > 0


def seen() -> tuple[int, str | None, int]:
    """What a worker sees, which takes its time so that each of them does one."""
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


def test_only_unnamed_devices_share_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "3,1")
    expected = [["3", "1"], ["3", "1"], [], []]
    assert [shared_gpus(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == expected
