"""The machine: its devices, its memory, and the versions of software that results depend on."""

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
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import metadata
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rmadapter.errors import UserError
from rmadapter.support.distributed import launched

if TYPE_CHECKING:
    import torch

MIN_SPEEDUP = 1.3  # of a number format; the rest of a training step gains less
MIN_FREE_SHARE = 0.1  # of a GPU's memory
SOFTWARE_SPEEDUP = 0.5  # below it, bfloat16 is done in software
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
LIBRARIES = [
    "rmadapter",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "numpy",
    "pillow",
]


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the libraries that results depend on."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "platform": platform.platform(), **libraries}


def version_of(name: str) -> str:
    """Return the version of a package, or of a module of this name, which another package may
    bring, such as onnxruntime-gpu."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name.replace("-", "_"))
            return str(getattr(module, "__version__", "unknown"))
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
    """Seed all global generators, including Python's and NumPy's, and restore them afterwards."""
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


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Block Ctrl-C for workers started in the block: a terminal sends it to all processes, but the
    parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # type: ignore[attr-defined, unused-ignore]
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # type: ignore[attr-defined, unused-ignore]


def end_with_parent() -> None:
    """Exit this worker process when its parent dies."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # returns when the system closes the pipe between the two
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def find_device(name: str = "auto") -> torch.device:
    """Return a device by name; "auto" is a GPU of NVIDIA, AMD or Apple if there is one to use. What
    a GPU of NVIDIA computes in this process from then on is as in `allow_tf32`.

    Raises:
        UserError: This machine lacks the device.
    """
    import torch

    if name == "auto":
        first, apple = _usable_gpu(), torch.backends.mps.is_available()
        name = f"cuda:{first}" if first is not None else "mps" if apple else "cpu"
    if not re.fullmatch(r"(cpu|cuda|mps)(:(0|[1-9]\d?))?", name):
        raise UserError(f"device={name!r}: write auto, cpu, cuda or cuda:0")
    device = torch.device(name)
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 1):
        raise UserError(
            f"device={name!r}: this machine has no usable GPU of that name; write device=cpu or "
            "device=auto"
        )
    allow_tf32(device)
    return device


@cache
def _usable_gpu() -> int | None:
    """Return the number of the first GPU that is usable, if any. It is found once in a process,
    whose own tensors take memory later.

    One of several processes takes the GPU of its own number and asks for no other's memory, which
    would open a context there.
    """
    import torch

    known = range(torch.cuda.device_count())
    if launched():
        local = int(os.environ["LOCAL_RANK"])
        return local if local in known else None
    return next(filter(_is_usable, known), None)


def _is_usable(index: int) -> bool:
    """Return whether the installed torch has kernels for a GPU, and other programs leave a tenth of
    its memory free. One that is full, or another program's alone, may refuse even to be asked."""
    import torch

    with contextlib.suppress(RuntimeError):
        major, minor = torch.cuda.get_device_capability(index)
        # Code for sm_86 runs on cards 8.6 to 8.9; what is compiled on the card, compute_80, on
        # newer ones, too. AMD's cards have names of another form.
        names = (re.fullmatch(r"(sm|compute)_(\d+)(\d)", x) for x in torch.cuda.get_arch_list())
        codes = [(one[1], int(one[2]), int(one[3])) for one in names if one]
        runs = [
            (kind == "compute" or code == major) and (code, part) <= (major, minor)
            for kind, code, part in codes
        ]
        if any(runs) or not runs:
            free, total = torch.cuda.mem_get_info(index)
            return free > MIN_FREE_SHARE * total
    return False


def allow_tf32(device: torch.device) -> None:
    """Let a GPU of NVIDIA multiply float32 in TF32, which keeps 10 bits of the fraction, unless
    torch uses deterministic algorithms."""
    import torch

    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cuda.matmul.allow_tf32 = True


def make_deterministic(device: torch.device) -> None:
    """Have torch use deterministic algorithms on a GPU, without TF32; it warns of operations that
    have none. A processor's results repeat anyway."""
    import torch

    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its start
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def fastest_precision(device: torch.device) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """Return the fastest number format of training here, and the reason as text.

    A GPU of NVIDIA or AMD gets bf16 if it has it, else fp16. Elsewhere, bf16 is chosen if a product
    of two matrices [1024, 1024] is clearly faster in it. Each time is the least of ten. Smaller
    matrices first rule out processors without bfloat16, on which the large ones would take half a
    minute.
    """
    import torch

    if device.type == "cuda":
        new = bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if new else "fp16", "the fastest of this GPU; --precision fp32 is more exact"

    def least(kind: torch.dtype, side: int) -> float:
        x = torch.ones(side, side, dtype=kind, device=device)
        times: list[float] = []
        for _ in range(12):  # the first two warm up
            begun = time.perf_counter()
            (x @ x)[0, 0].item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
        return min(times[2:])

    for side in (256, 1024):
        ratio = least(torch.float32, side) / least(torch.bfloat16, side)
        if ratio < SOFTWARE_SPEEDUP:
            break
    why = f"a matrix product in bfloat16 takes {1 / ratio:.2g} of its float32 time here"
    return "bf16" if ratio > MIN_SPEEDUP else "fp32", why


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: by number, or
    by the UUID of a GPU or of a part of one (MIG)."""
    visible = os.environ.get(VISIBLE_GPUS)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        ends = ("", "-1", "NoDevFiles")  # CUDA reads no further
        return list(itertools.takewhile(lambda name: name not in ends, names))
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def shared_gpus(device: str) -> list[str]:
    """Return the GPUs that workers share, as `gpus` names them; none unless the setting `device` is
    auto or cuda."""
    return gpus() if device in ("auto", "cuda") else []


def make_pool(devices: Sequence[str], processes: int) -> ProcessPoolExecutor:
    """Return a pool of processes that share the cores. Each sees one GPU; GPUs are assigned in
    turn."""
    context = multiprocessing.get_context("spawn")
    assigned = context.SimpleQueue()
    for i in range(processes):
        assigned.put(devices[i % len(devices)] if devices else "")
    threads = threads_each(processes)
    return ProcessPoolExecutor(processes, context, _start_worker, (threads, assigned))


def _start_worker(threads: int, assigned: SimpleQueue[str]) -> None:
    """Set up a worker. It ends with its parent, which terminates it on Ctrl-C, and also when the
    parent is killed.

    It is in this module, which imports nothing slow; who starts workers blocks Ctrl-C until then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    device = assigned.get()
    if device:
        os.environ[VISIBLE_GPUS] = device  # before CUDA starts, which reads it once
    import torch  # takes seconds

    torch.set_num_threads(threads)


def threads_each(processes: int) -> int:
    """Return the number of threads for each of several processes that share the cores."""
    return max(1, cores() // processes)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory in this process; return False with any other C library.

    Every training step, and every batch that is encoded, allocates and frees the same large
    tensors. By default glibc takes each of them from the system and gives it back at once, so the
    system fills its pages with zeros every time: a third of a million pages per training step of
    ViT-B/16 with 1,000 classes. The price is that the process stays as large as it ever was.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD: only what is larger is mapped. M_TRIM_THRESHOLD: nothing is given back.
        return bool(mallopt(-3, 2**31 - 1) and mallopt(-1, -1))
    return False


def give_back_memory() -> None:
    """Give kept memory back to the system, if the C library can."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Start the count of `peak` anew, where the system supports it (Linux, CUDA)."""
    import torch

    gc.collect()
    give_back_memory()  # what training kept must not count for the next run
    if device.type == "cuda":  # pragma: no cover: needs a GPU
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8", newline="\n")


def peak(device: torch.device) -> dict[str, float | None]:
    """Return the peak memory of the process and of tensors on the GPU, in MB of 1e6 bytes."""
    import torch

    try:
        status = Path("/proc/self/status").read_text("utf-8")
        resident: float | None = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6
    except (OSError, IndexError):
        resident = None
    gpu = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return {"peak_mb": resident and round(resident, 1), "peak_gpu_mb": gpu}


def processor() -> str:
    """Return the name of the processor."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        match = None
    return match[1] if match else platform.processor()


def named(device: torch.device) -> str:
    """Return what a speed on a device depends on: the GPU's name, or the processor's and the
    threads in use."""
    about = describe(device)
    if device.type == "cpu":
        return f"{about['threads']} threads of {about['cpu']}"
    return str(about["device"])


def describe(device: torch.device) -> dict[str, str | int | None]:
    """Return the processor, its cores, the threads in use and the device."""
    import torch

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
