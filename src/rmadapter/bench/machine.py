"""What a run cost and where it ran."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from rmadapter.allocator import give_back_memory


def reset_peak(device: torch.device) -> None:
    """From now on `peak` is that of this run, where the system can tell it (Linux, CUDA)."""
    gc.collect()
    give_back_memory()  # training keeps what it frees; that is not the next run's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> dict[str, float | None]:
    """Peak resident memory of the process and, with a GPU, of tensors on it; MB of 1e6 bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        resident: float | None = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6
    except (OSError, IndexError):
        resident = None
    gpu = {"peak_gpu_mb": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else {}
    return {"peak_mb": resident and round(resident, 1), **gpu}


def processor() -> str:
    """Its name."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, its cores, the threads in use and the device."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
