"""Devices, memory, threads, versions and generators of random numbers."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from rmadapter.errors import UserError
from rmadapter.support import machine
from rmadapter.support.machine import (
    VISIBLE_GPUS,
    all_seeded,
    allow_tf32,
    cores,
    describe,
    end_with_parent,
    fastest_precision,
    find_device,
    gpus,
    keep_freed_memory,
    make_deterministic,
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
def test_a_worker_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = int(process.stdout.readline())
        process.wait()
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(worker).wait(10)
    end_with_parent()  # a process without a parent goes on


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_is_of_the_time_since_it_was_reset() -> None:
    keep_freed_memory()  # as training does
    reset_peak(CPU)
    before = peak(CPU)["peak_mb"]
    assert before == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.1)
    block = np.ones(25_000_000)  # 200 MB
    grown = peak(CPU)["peak_mb"]
    del block
    assert grown == pytest.approx(before + 200, abs=30)
    assert peak(CPU)["peak_mb"] == pytest.approx(grown, abs=5)  # a peak stays
    reset_peak(CPU)
    assert peak(CPU)["peak_mb"] == pytest.approx(before, abs=60)


def test_the_machine_is_described() -> None:
    found = describe(CPU)
    assert isinstance(found.pop("cpu"), str)
    threads = torch.get_num_threads()
    assert found == {"device": "cpu", "cores": os.cpu_count(), "threads": threads}


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
def test_freed_memory_is_reused() -> None:
    counts = {}
    for keep in (False, True):
        code = FAULTS.format(keep=keep)
        faults, kept = subprocess.check_output([sys.executable, "-c", code], text=True).split()
        if keep and kept == "False":
            pytest.skip("this C library has no mallopt")
        counts[keep] = int(faults)
    assert counts[True] < counts[False] / 10


def test_devices_that_the_machine_lacks_are_refused() -> None:
    assert find_device("cpu").type == "cpu"
    for name in ("toaster", "meta"):
        with pytest.raises(UserError, match="write auto, cpu, cuda or cuda:0"):
            find_device(name)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert find_device().type == "cpu"
    for name in ("cuda", "mps"):
        with pytest.raises(UserError, match="no usable GPU of that name"):
            find_device(name)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[tuple[int, int], float]]]:
    """Pretend GPUs of NVIDIA: the compute capability of each, and the share of its memory that is
    free. The installed torch has kernels for 7.5 and 8.6, and code for 9.0 to compile there."""
    known: list[tuple[tuple[int, int], float]] = []
    names = ["sm_75", "sm_86", "compute_90"]
    for name, function in (
        ("device_count", lambda: len(known)),
        ("get_device_capability", lambda index: known[index][0]),
        ("mem_get_info", lambda index: (known[index][1] * 8e9, 8e9)),
        ("get_arch_list", lambda: names),
    ):
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(machine, "_usable_gpu", machine._usable_gpu.__wrapped__)
    before = torch.backends.cuda.matmul.allow_tf32
    yield known
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([((8, 6), 0.9)], "cuda:0"),
        ([((8, 9), 0.9)], "cuda:0"),  # 8.6's kernels run there
        ([((12, 0), 0.9)], "cuda:0"),  # 9.0's code is compiled there
        ([((6, 1), 0.9)], "cpu"),
        ([((8, 0), 0.9)], "cpu"),
        ([((8, 6), 0.05)], "cpu"),  # another program fills it
        ([((6, 1), 0.9), ((8, 6), 0.02), ((7, 5), 0.5)], "cuda:2"),
    ],
)
def test_auto_leaves_out_gpus_without_kernels_and_full_ones(
    given: list[tuple[tuple[int, int], float]],
    expected: str,
    cards: list[tuple[tuple[int, int], float]],
) -> None:
    cards += given
    assert str(find_device()) == expected
    assert torch.backends.cuda.matmul.allow_tf32 == expected.startswith("cuda")


def test_a_gpu_that_this_process_fills_is_still_its_own(
    cards: list[tuple[tuple[int, int], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_usable_gpu", cache(machine._usable_gpu))
    cards.append(((8, 6), 0.9))
    assert str(find_device()) == "cuda:0"
    cards[0] = ((8, 6), 0.01)
    assert str(find_device()) == "cuda:0"


@pytest.mark.parametrize("question", ["get_device_capability", "mem_get_info"])
def test_a_gpu_that_refuses_to_be_asked_is_left_out(
    question: str,
    cards: list[tuple[tuple[int, int], float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that is full, or that another program has for itself."""
    cards += [((8, 6), 0.9)] * 2
    answer = getattr(torch.cuda, question)

    def busy(index: int) -> object:
        if index == 0:
            raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy")
        return answer(index)

    monkeypatch.setattr(torch.cuda, question, busy)
    assert str(find_device()) == "cuda:1"
    del cards[1]
    assert str(find_device()) == "cpu"


@pytest.mark.parametrize(("local", "expected"), [("0", "cuda:0"), ("1", "cuda:1"), ("2", "cpu")])
def test_one_of_several_processes_asks_for_no_other_memory(
    local: str,
    expected: str,
    cards: list[tuple[tuple[int, int], float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which would open a context on that GPU, in each process."""
    cards += [((8, 6), 0.9)] * 2
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: asked.append(index) or (8, 8))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, local if "LOCAL" in name else "3")
    assert str(find_device()) == expected
    assert {*asked} <= {int(local)}


def test_a_gpu_of_amd_is_used(
    cards: list[tuple[tuple[int, int], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.append(((9, 4), 0.9))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx90a", "gfx942"])
    assert str(find_device()) == "cuda:0"


def test_a_gpu_of_apple_is_used_without_one_of_nvidia(
    cards: list[tuple[tuple[int, int], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device().type == "mps"
    cards.append(((8, 6), 0.9))
    assert find_device().type == "cuda"


def test_a_gpu_multiplies_in_tf32_unless_its_results_shall_repeat() -> None:
    matmul, gpu = torch.backends.cuda.matmul, torch.device("cuda")
    before, convolutions = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        allow_tf32(CPU)
        make_deterministic(CPU)
        assert not torch.are_deterministic_algorithms_enabled()
        assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (before, convolutions)
        allow_tf32(gpu)
        assert matmul.allow_tf32
        make_deterministic(gpu)
        allow_tf32(gpu)
        assert not (matmul.allow_tf32)
        assert not (torch.backends.cudnn.allow_tf32)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before, convolutions


def test_gpus_are_those_that_cuda_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reads the list up to the first entry that is no GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    assert gpus() == ["0", "1", "2"]
    for visible, found in (
        ("2", ["2"]),
        ("GPU-8c1a, MIG-77/1/0", ["GPU-8c1a", "MIG-77/1/0"]),
        ("1,-1,0", ["1"]),
        ("", []),
        ("NoDevFiles", []),
    ):
        monkeypatch.setenv(VISIBLE_GPUS, visible)
        assert gpus() == found


def test_processes_share_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5, 6, 7}, raising=False)
    assert cores() == 5
    assert [threads_each(processes) for processes in (1, 2, 9)] == [5, 2, 1]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["torch"] == metadata.version("torch")
    names = "python platform rmadapter torchvision open_clip_torch timm transformers numpy pillow"
    assert {*names.split()} <= {*found}


def test_a_module_of_another_package_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_of("numpy") == metadata.version("numpy")
    monkeypatch.setitem(sys.modules, "of_another_wheel", SimpleNamespace(__version__="1.2"))
    assert version_of("of-another-wheel") == "1.2"
    assert version_of("no-such-thing") == "unknown"


def test_global_generators_are_seeded_and_restored() -> None:
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


def test_the_fastest_number_format_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {torch.float32: 8.0, torch.bfloat16: 4.0}
    clock, sides = [0.0], list[int]()

    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        clock[0] += times[x.dtype]
        sides.append(len(x))
        return x[:2, :2]

    monkeypatch.setattr("rmadapter.support.machine.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    said = "a matrix product in bfloat16 takes {} of its float32 time here".format
    assert fastest_precision(CPU) == ("bf16", said("0.5"))
    times[torch.bfloat16] = 7.0
    assert fastest_precision(CPU) == ("fp32", said("0.88"))
    times[torch.bfloat16] = 80.0
    sides.clear()
    assert fastest_precision(CPU) == ("fp32", said("10"))
    assert {*sides} == {256}  # larger ones would take seconds each
    monkeypatch.undo()
    assert fastest_precision(CPU)[0] in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("capability", "amd", "expected"),
    [((7, 5), None, "fp16"), ((8, 0), None, "bf16"), ((6, 0), "7.1", "bf16")],
)
def test_a_gpu_trains_in_the_format_it_has(
    capability: tuple[int, int], amd: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", amd)
    assert fastest_precision(torch.device("cuda"))[0] == expected


def seen() -> tuple[int, str | None, int]:
    """What a worker sees, which takes its time so that each of them does one."""
    time.sleep(2)
    return os.getpid(), os.environ.get(VISIBLE_GPUS), torch.get_num_threads()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [["MIG-1", "GPU-2"], []])
def test_workers_share_gpu_and_threads(devices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    with make_pool(devices, 3) as pool:
        futures = [pool.submit(seen) for _ in range(3)]
        found = {process: rest for process, *rest in (future.result() for future in futures)}
    names = ["GPU-2", "MIG-1", "MIG-1"] if devices else [None] * 3
    assert sorted(found.values(), key=str) == [[name, threads_each(3)] for name in names]


def test_only_unnamed_devices_share_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE_GPUS, "3,1")
    expected = [["3", "1"], ["3", "1"], [], []]
    assert [shared_gpus(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == expected
