"""The machine: its devices and memory, the memory that runs use, and the versions that numbers
depend on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import multiprocessing
import os
import platform
import random
import re
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rmadapter.errors import UserError

if TYPE_CHECKING:
    import torch

CLEARLY = 1.3  # times as fast: the rest of a training step gains less
HOPELESS = 0.5  # times as fast: below it, bfloat16 is done in software
VISIBLE = "CUDA_VISIBLE_DEVICES"
LIBRARIES = (
    "rmadapter",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "numpy",
    "pillow",
)


def versions() -> dict[str, str]:
    """Versions of Python, the platform and every library that a number can depend on."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def version_of(name: str) -> str:
    """The version of a package, or of the module of this name that another package brings, as
    onnxruntime-gpu does."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        with contextlib.suppress(ImportError):
            return str(
                getattr(importlib.import_module(name.replace("-", "_")), "__version__", "unknown")
            )
        return "unknown"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator within the block, and restore it afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move those of all GPUs
        yield


@contextlib.contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """The same for all global generators, including Python's and NumPy's, for code that draws from
    them."""
    import numpy as np
    import torch

    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def end_with_parent() -> None:
    """Make this worker process end with the one that started it, however that one ends."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # returns when the system closes the pipe between the two
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def find_device(name: str = "auto") -> torch.device:
    """The device; "auto": a GPU of NVIDIA, AMD or Apple if there is one. Raises UserError if this
    machine lacks it."""
    import torch

    if name == "auto":
        apple = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if apple else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r}: write auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r}: write auto, cpu, cuda or cuda:0")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 1):
        raise UserError(
            f"device={name!r}: this machine has no usable GPU of that name; write device=cpu or device=auto"
        )
    return device


def fastest_precision(device: torch.device) -> tuple[Literal["fp32", "bf16", "fp16"], float]:
    """bf16 if a product of two matrices [1024, 1024] is clearly faster in it; else fp16 if that is,
    on a GPU of NVIDIA or AMD, such as one without bfloat16; else fp32. And how many times as fast
    bf16 or fp16 is.

    Measured as the minimum of ten times each. It takes well under a second: smaller matrices first
    rule out processors without any bfloat16, on which the large ones would take half a minute.
    """
    import torch

    def least(kind: torch.dtype, side: int = 1024) -> float:
        x, times = torch.ones(side, side, dtype=kind, device=device), []
        for _ in range(12):  # the first two warm up
            begun = time.perf_counter()
            (x @ x)[0, 0].item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
        return min(times[2:])

    if (
        device.type == "cpu"
        and (small := least(torch.float32, 256) / least(torch.bfloat16, 256)) < HOPELESS
    ):
        return "fp32", small
    plain = least(torch.float32)
    ratio = plain / least(torch.bfloat16)
    if (
        ratio <= CLEARLY
        and device.type == "cuda"
        and (half := plain / least(torch.float16)) > CLEARLY
    ):
        return "fp16", half
    return ("bf16" if ratio > CLEARLY else "fp32"), ratio


def gpus() -> list[str]:
    """The GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it: a number, or a
    UUID of a GPU or of a part of one (MIG)."""
    if (given := os.environ.get(VISIBLE)) is not None:
        names = [name.strip() for name in given.split(",")]
        return list(
            itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names)
        )  # as CUDA reads it
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def threads_each(processes: int) -> int:
    """Threads for each of several processes that share the cores of this one."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // processes)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory in this process from now on; False with any other C library.

    Every training step allocates and frees the same large tensors. By default glibc takes each of
    them from the system and gives it back at once, so the system fills its pages with zeros every
    time: a third of a million pages per training step of ViT-B/16 with 1,000 classes. The price is
    that the process stays as large as it ever was.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD: no mapping of its own for anything smaller. M_TRIM_THRESHOLD: nothing is
        # given back.
        return bool(mallopt(-3, 2**31 - 1) and mallopt(-1, -1))
    return False


def give_back_memory() -> None:
    """Give kept memory back to the system, once; does nothing if the C library cannot."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Make `peak` count from now on, where the system supports it (Linux, CUDA)."""
    import torch

    gc.collect()
    give_back_memory()  # what training kept must not count for the next run
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> dict[str, float | None]:
    """Peak resident memory of the process and, with a GPU, of tensors on it; MB of 1e6 bytes."""
    import torch

    try:
        status = Path("/proc/self/status").read_text()
        resident: float | None = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6
    except (OSError, IndexError):
        resident = None
    gpu = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {"peak_mb": resident and round(resident, 1), "peak_gpu_mb": gpu}


def processor() -> str:
    """Name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, its cores, the threads in use and the device."""
    import torch

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
