"""One training in several processes, as `torchrun` starts them: the first leads, and the others
help it train.

The first runs the command as if it were alone. The others draw the same images, load the same
backbone and join every training that it announces; it does folds, answers and files by itself.
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
LONG = timedelta(
    days=7
)  # helpers wait while the first process evaluates; the launcher ends them if it dies
LATER = 5.0  # seconds before a helper prints an error, if the launcher has not ended it by then
ENDED = "another process of this training ended: run the same command again to resume"

_shared: Any = None  # the method that is trained in several processes, until `leave`


def launched() -> bool:
    """Whether a launcher started this process as one of several; WORLD_SIZE alone, which clusters
    set, is no sign.

    Needs no torch."""
    given = [os.environ.get(name, "") for name in NAMES]
    return all(given) and all(word.isdecimal() for word in given[:3]) and int(given[2]) > 1


def helps() -> bool:
    """Whether this process is one of several, and not the first."""
    return launched() and int(os.environ["RANK"]) > 0


def enter(verb: str) -> None:
    """Join the other processes that the launcher started; a single process does nothing.

    Raises UserError for a command that runs in one process.
    """
    if not launched():
        return
    if verb != "fit":
        raise UserError(
            f"started in several processes, but {verb} runs in one; only `fit` trains in several, and `bench --jobs` "
            "shares runs among several"
        )
    if helps():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process reports it
    else:
        teller = os.getpid()

        def stop(*_: Any) -> None:
            if os.getpid() == teller:  # and not a child process
                os.write(2, f"rmadapter: {ENDED}\n".encode())
            os._exit(2)

        signal.signal(signal.SIGTERM, stop)  # the launcher sends it to all when one has died
    import torch.distributed as dist

    with _all():
        store, rank, count = next(dist.rendezvous("env://", timeout=LONG))
        # After a restart the store still holds the addresses of dead processes; a new prefix avoids
        # waiting for them.
        own = dist.PrefixStore(f"life {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            store=own, rank=rank, world_size=count, timeout=LONG
        )  # by gloo, or NCCL between GPUs


def tell(sentence: str) -> None:
    """Print an error on stderr. A helper waits first, so that an error common to all comes from the
    first process."""
    if helps():
        time.sleep(LATER)
        sentence = f"process {os.environ['RANK']}: {sentence}"
    print("rmadapter:", sentence, file=sys.stderr)


def share(name: str, method: Any, machine: Machine) -> Machine:
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
    """Leave the other processes: the first needs no more help."""
    global _shared
    if _shared is not None:
        import torch.distributed as dist

        if not helps():
            _send([-1])
        dist.destroy_process_group()
        _shared = None


def ask(method: Any, images: ImageSet, among: Callable[[], ImageSet], key: str) -> None:
    """Have the others join a training on images, if this is the shared method. among: all images
    that they have. key: of the training that is saved meanwhile; empty if none is."""
    if method is _shared is not None and not helps():
        whole = among()
        row = {
            (id(image), label): i
            for i, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True))
        }
        rows = [
            row[id(image), label] for image, label in zip(images.images, images.labels, strict=True)
        ]
        _send([_number(key), *rows])


def asked(key: str) -> Iterator[tuple[list[int], bool]]:
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
    """A number to send for a key in hexadecimal digits; 0 for none."""
    return int(key[:15] or "0", 16)


def _send(words: list[int]) -> list[int]:
    """Send words from the first process to all."""
    import torch

    count = torch.tensor([len(words)])
    _broadcast(count)
    found = torch.tensor(words) if words else torch.empty(int(count), dtype=torch.long)
    _broadcast(found)
    return [int(word) for word in found]


# In a training


def several() -> bool:
    """Whether other processes train along with this one."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def begin(tensors: Iterable[Tensor], step: int) -> None:
    """Begin with the first process's tensors, copied in place. step: at which a killed training
    resumes.

    Raises UserError if the processes see different steps.
    """
    import torch
    import torch.distributed as dist

    ends = torch.tensor([step, -step])
    with _all():
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise UserError(
            "the processes see different states of the training: --out must be a folder that all share"
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
    """Raises UserError if another process is gone or cannot be reached."""
    try:
        yield
    except RuntimeError as error:  # torch raises nothing narrower for gloo
        if not helps():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process reports the end itself
        reason = str(error).partition("\n")[0][:200]
        lost = f"the processes of this training cannot reach each other ({reason})"
        raise UserError(
            ENDED if re.search("by peer|Broken pipe|[Cc]losed", reason) else lost
        ) from error
