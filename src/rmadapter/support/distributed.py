"""One training in several processes, as `torchrun` starts them: the first leads, the others help.

The first process runs the command as if it were alone. The helpers draw the same images, load the
same backbone and join every training that the first announces. Folds, answers and files are the
first process's own work.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from rmadapter.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rmadapter.data.image_set import ImageSet
    from rmadapter.settings import Machine

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FORMATS: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
LONG = timedelta(days=7)  # how long helpers wait while the first process evaluates
LATER = 5.0  # seconds before a helper prints an error, if the launcher has not ended it by then
ENDED = "another process of this training ended: run the same command again to resume"

_shared: Any = None  # the method that is trained in several processes, until `leave`


def launched() -> bool:
    """Return whether a launcher started this process as one of several.

    Clusters set WORLD_SIZE too, so it alone is no sign. Needs no torch.
    """
    values = [os.environ.get(name, "") for name in NAMES]
    numbers = values[:3]
    return all(values) and all(value.isdecimal() for value in numbers) and int(values[2]) > 1


def is_helper() -> bool:
    """Return whether this process is one of several, and not the first."""
    return launched() and int(os.environ["RANK"]) > 0


def enter(verb: str) -> None:
    """Join the other processes that the launcher started, if any.

    Raises UserError for a command that runs in one process.
    """
    if not launched():
        return
    if verb != "fit":
        raise UserError(
            f"{verb} does not run under torchrun, only `fit` does; for several runs at once use "
            "`bench --jobs`"
        )
    if is_helper():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process reports it
    else:
        this = os.getpid()

        def stop(*_: object) -> None:
            if os.getpid() == this:  # and not a child process
                os.write(2, f"rmadapter: {ENDED}\n".encode())
            os._exit(2)

        signal.signal(signal.SIGTERM, stop)  # the launcher sends it to all when one has died
    import torch.distributed as dist

    with _all():
        store, rank, count = next(dist.rendezvous("env://", timeout=LONG))
        # After a restart the store still holds the addresses of dead processes; a new prefix avoids
        # waiting for them.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"life {restarts}", store)
        # gloo, or NCCL between GPUs
        dist.init_process_group(store=store, rank=rank, world_size=count, timeout=LONG)


def print_error(sentence: str) -> None:
    """Print an error on stderr. A helper waits first, so that the first process reports an error
    that all have."""
    if is_helper():
        time.sleep(LATER)
        sentence = f"process {os.environ['RANK']}: {sentence}"
    print("rmadapter:", sentence, file=sys.stderr)


def distribute(name: str, method: Any, machine: Machine) -> Machine:
    """Train this method in all processes, each on its own GPU if there are any.

    Raises UserError if processes would have nothing to do or may not split a batch, for a device
    cuda:N, and for fewer GPUs than processes.
    """
    global _shared
    if not launched():
        return machine
    recipe, count, local = (
        method.recipe,
        int(os.environ["WORLD_SIZE"]),
        int(os.environ["LOCAL_RANK"]),
    )
    if recipe is None:
        raise UserError(
            f"{name} is not trained step by step: {count} processes have nothing to share; start one"
        )
    if method.traits.whole_batches:
        raise UserError(
            f"{name} normalises over a batch, which {count} processes would split: start one"
        )
    if recipe.batch_size < count:
        raise UserError(
            f"{name} has batch_size={recipe.batch_size}, too small for {count} processes: start fewer"
        )
    import torch

    if machine.device.startswith("cuda:"):
        raise UserError(
            f"device={machine.device}: each of several processes takes its own GPU; write device=cuda"
        )
    if machine.device == "cuda" or (machine.device == "auto" and torch.cuda.is_available()):
        if local >= (there := torch.cuda.device_count()):
            raise UserError(
                f"process {local} of this machine has no GPU; there are {there}: start fewer"
            )
        machine = replace(machine, device=f"cuda:{local}")
    elif machine.device == "auto":
        machine = replace(machine, device="cpu")  # gloo does not support Apple's GPU
    kind = _send([FORMATS.index(machine.precision)])[
        0
    ]  # `auto` may have chosen differently in each
    _shared = method
    return replace(machine, precision=FORMATS[kind])


def leave() -> None:
    """Leave the other processes, and release them if this is the first."""
    global _shared
    if _shared is not None:
        import torch.distributed as dist

        if not is_helper():
            _send([-1])
        dist.destroy_process_group()
        _shared = None


def announce(method: Any, images: ImageSet, among: Callable[[], ImageSet], key: str) -> None:
    """Have the others join a training on images, if this is the shared method. among: all images
    that they have. key: of the training that is saved meanwhile; empty if none is."""
    if method is _shared is not None and not is_helper():
        whole = among()
        row = {
            (id(image), label): i
            for i, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True))
        }
        rows = [
            row[id(image), label] for image, label in zip(images.images, images.labels, strict=True)
        ]
        _send([_number(key), *rows])


def requests(key: str) -> Iterator[tuple[list[int], bool]]:
    """Yield rows of images, and whether the training has this key, until the first process needs no
    more help.

    Raises UserError if the first process has another key, for instance because it sees other
    images.
    """
    while (words := _send([]))[0] >= 0:
        if words[0] not in (_number(""), _number(key)):
            raise UserError(
                "its images, weights or settings differ from those of the first process"
            )
        yield words[1:], words[0] > 0


def _number(key: str) -> int:
    """Return a number to send for a key of hexadecimal digits; 0 for no key."""
    return int(key[:15] or "0", 16)


def _send(words: list[int]) -> list[int]:
    """Send numbers from the first process to all, and return them."""
    import torch

    count = torch.tensor([len(words)])
    _broadcast(count)
    sent = torch.tensor(words) if words else torch.empty(int(count), dtype=torch.long)
    _broadcast(sent)
    return [int(word) for word in sent]


# In a training


def several() -> bool:
    """Return whether other processes train along with this one."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def begin(tensors: Iterable[Tensor], step: int) -> None:
    """Copy the first process's tensors into all processes, in place. step: where training resumes.

    Raises UserError if the processes see different steps.
    """
    import torch
    import torch.distributed as dist

    ends = torch.tensor([step, -step])
    with _all():
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise UserError(
            "the processes see different states of the training: give --out a folder that all share"
        )
    for tensor in tensors:
        _broadcast(tensor)


def add_up(tensor: Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    import torch.distributed as dist

    with _all():
        dist.all_reduce(tensor)


def _broadcast(tensor: Tensor) -> None:
    import torch.distributed as dist

    with _all():
        dist.broadcast(tensor, 0)


@contextmanager
def _all() -> Iterator[None]:
    """Convert an error of the connection into a UserError."""
    try:
        yield
    except RuntimeError as error:  # torch raises nothing narrower for gloo
        if not is_helper():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process reports the end itself
        reason = str(error).partition("\n")[0][:200]
        if re.search("by peer|Broken pipe|[Cc]losed", reason):
            raise UserError(ENDED) from error
        raise UserError(
            f"the processes of this training cannot reach each other ({reason})"
        ) from error
