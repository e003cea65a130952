"""The worker processes of one machine: their number, and the GPU and threads of each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import SimpleQueue

from rmadapter.errors import UserError
from rmadapter.support.machine import VISIBLE, end_with_parent, gpus, threads_each


def to_share(device: str) -> list[str]:
    """The GPUs that workers share, as `gpus` names them; none unless the setting `device` is auto
    or cuda."""
    return gpus() if device in ("auto", "cuda") else []


def workers(device: str, jobs: int, per_gpu: int = 0) -> int:
    """The number of worker processes. per_gpu: processes per GPU, which replace `jobs`.

    Raises UserError if there is no GPU to share.
    """
    if not per_gpu:
        return jobs
    if not (found := to_share(device)):
        raise UserError("--jobs-per-gpu: there is no GPU to share; give --jobs instead")
    return per_gpu * len(found)


def pool_on(devices: Sequence[str], processes: int) -> ProcessPoolExecutor:
    """A pool of processes that share the cores. Each sees one GPU; the GPUs are assigned in turn."""
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for i in range(processes):
        places.put(devices[i % len(devices)] if devices else "")
    return ProcessPoolExecutor(processes, context, _start, (threads_each(processes), places))


def _start(threads: int, places: SimpleQueue[str]) -> None:
    """Set up a worker. It ends with its parent, which terminates it on Ctrl-C, and also when the
    parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if device := places.get():
        os.environ[VISIBLE] = device  # before CUDA starts, which reads it once
    import torch  # takes seconds

    torch.set_num_threads(threads)
