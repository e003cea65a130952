"""The worker processes of one machine: how many, and the GPU and threads of each.

Workers import this module before anything slow, so that they ignore Ctrl-C from the start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import SimpleQueue

from rmadapter.errors import UserError
from rmadapter.support.machine import VISIBLE, end_with_parent, gpus, threads_each


def shared_gpus(device: str) -> list[str]:
    """Return the GPUs that workers share, as `gpus` names them; none unless the setting `device` is
    auto or cuda."""
    return gpus() if device in ("auto", "cuda") else []


def worker_count(device: str, jobs: int, per_gpu: int = 0) -> int:
    """Return the number of worker processes. per_gpu: processes per GPU, which replace `jobs`.

    Raises UserError if there is no GPU to share.
    """
    if not per_gpu:
        return jobs
    devices = shared_gpus(device)
    if not devices:
        raise UserError("--jobs-per-gpu: there is no GPU to share; give --jobs instead")
    return per_gpu * len(devices)


def make_pool(devices: Sequence[str], processes: int) -> ProcessPoolExecutor:
    """Return a pool of processes that share the cores. Each sees one GPU; GPUs are assigned in
    turn."""
    context = multiprocessing.get_context("spawn")
    assigned = context.SimpleQueue()
    for i in range(processes):
        assigned.put(devices[i % len(devices)] if devices else "")
    return ProcessPoolExecutor(
        processes, context, _start_worker, (threads_each(processes), assigned)
    )


def _start_worker(threads: int, assigned: SimpleQueue[str]) -> None:
    """Set up a worker. It ends with its parent, which terminates it on Ctrl-C, and also when the
    parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if device := assigned.get():
        os.environ[VISIBLE] = device  # before CUDA starts, which reads it once
    import torch  # takes seconds

    torch.set_num_threads(threads)
