"""The worker processes of one machine: how many there are, and the GPU and the threads that each is given."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import SimpleQueue

from rmadapter.errors import UserError
from rmadapter.machine import VISIBLE, end_with_parent, gpus, threads_each


def to_share(device: str) -> list[str]:
    """The GPUs that workers share, as `gpus` names them; none where the setting `device` says which one it is."""
    return gpus() if device in ("auto", "cuda") else []


def workers(device: str, jobs: int, per_gpu: int = 0) -> int:
    """How many processes there are to be. per_gpu: so many for each GPU, in place of `jobs`.

    Raises UserError where there is no GPU to count by.
    """
    if not per_gpu:
        return jobs
    if not (found := to_share(device)):
        raise UserError("--jobs-per-gpu: there is no GPU to share; give --jobs instead")
    return per_gpu * len(found)


def pool_on(devices: Sequence[str], processes: int) -> ProcessPoolExecutor:
    """Processes that share the cores. Each sees one of the GPUs, which are given out in turn."""
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for i in range(processes):
        places.put(devices[i % len(devices)] if devices else "")
    return ProcessPoolExecutor(processes, context, _start, (threads_each(processes), places))


def _start(threads: int, places: SimpleQueue[str]) -> None:
    """In a worker. What ends the process that started it ends it, too: Ctrl-C by its hand, SIGKILL without a word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if device := places.get():
        os.environ[VISIBLE] = device  # before CUDA starts, which reads it once
    import torch  # takes seconds

    torch.set_num_threads(threads)
