"""Several processes that `torchrun` started: who they are, and what they send each other."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rmadapter.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Helpers wait while the first process evaluates; the launcher ends them if it dies.
TIMEOUT = timedelta(days=7)
ERROR_DELAY_SECONDS = (
    5.0  # before a helper prints an error, if the launcher has not ended it by then
)
ENDED_MESSAGE = "another process of this training ended: run the same command again to resume"


def launched() -> bool:
    """Return whether a launcher started this process as one of several; WORLD_SIZE alone, which
    clusters set, is no sign. Needs no torch."""
    values = [os.environ.get(name, "") for name in VARIABLES]
    numbers = values[:3]
    return all(values) and all(number.isdecimal() for number in numbers) and int(values[2]) > 1


def is_helper() -> bool:
    """Return whether this process is one of several, and not the first."""
    return launched() and int(os.environ["RANK"]) > 0


def enter(verb: str) -> None:
    """Join the other processes that the launcher started; a single process does nothing.

    Raises:
        UserError: The verb runs in one process only.
    """
    if not launched():
        return
    if verb != "fit":
        raise UserError(
            f"{verb} does not run under torchrun; only `fit` does. For parallel runs use `bench "
            "--jobs`"
        )
    if is_helper():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process reports it
    else:
        leader = os.getpid()

        def stop(*_: object) -> None:
            if os.getpid() == leader:  # and not a child process
                os.write(2, f"rmadapter: {ENDED_MESSAGE}\n".encode())
            os._exit(2)

        signal.signal(signal.SIGTERM, stop)  # the launcher sends it to all when one has died
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    with _all():
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        # After a restart the store still holds the addresses of dead processes; a new prefix avoids
        # waiting for them.
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"life {life}", store)
        # by gloo, or NCCL between GPUs
        dist.init_process_group(store=store, rank=rank, world_size=count, timeout=TIMEOUT)


def leave() -> None:
    """Leave the other processes."""
    import torch.distributed as dist

    dist.destroy_process_group()


def print_error(sentence: str) -> None:
    """Print an error on stderr. A helper waits first, so that an error common to all comes from the
    first process."""
    if is_helper():
        time.sleep(ERROR_DELAY_SECONDS)
        sentence = f"process {os.environ['RANK']}: {sentence}"
    print("rmadapter:", sentence, file=sys.stderr)


def broadcast_numbers(numbers: Sequence[int]) -> list[int]:
    """Send whole numbers from the first process to all, and return them; those of the others do not
    count."""
    import torch

    count = torch.tensor([len(numbers)])
    _broadcast(count)
    sent = torch.tensor(numbers) if numbers else torch.empty(int(count), dtype=torch.long)
    _broadcast(sent)
    return [int(number) for number in sent]


# In a training


def several() -> bool:
    """Return whether other processes train along with this one."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def begin(tensors: Iterable[Tensor], step: int) -> None:
    """Begin a training with the first process's tensors.

    Args:
        tensors: Parameters, which are overwritten in place.
        step: Step at which a killed training resumes.

    Raises:
        UserError: The processes see different steps.
    """
    import torch
    import torch.distributed as dist

    ends = torch.tensor([step, -step])
    with _all():
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise UserError(
            "the processes see different states of the training: --out must be a folder that all "
            "share"
        )
    for tensor in tensors:
        _broadcast(tensor)


def add_up(*tensors: Tensor) -> None:
    """Sum tensors of one device over all processes, in place, in one message."""
    import torch
    import torch.distributed as dist

    sums = torch.cat([tensor.flatten() for tensor in tensors])
    with _all():
        dist.all_reduce(sums)
    parts = sums.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _broadcast(tensor: Tensor) -> None:
    import torch.distributed as dist

    with _all():
        dist.broadcast(tensor, 0)


@contextmanager
def _all() -> Iterator[None]:
    """Raise UserError if another process is gone or cannot be reached."""
    try:
        yield
    except RuntimeError as error:  # torch raises nothing narrower for gloo
        if not is_helper():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process reports the end itself
        reason = str(error).partition("\n")[0][:200]
        lost = f"the processes of this training cannot reach each other ({reason})"
        ended = re.search("by peer|Broken pipe|[Cc]losed", reason)
        raise UserError(ENDED_MESSAGE if ended else lost) from error
