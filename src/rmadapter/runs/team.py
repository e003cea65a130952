"""One training in several processes, as `torchrun` starts them: the first leads, and the others
help it train.

The first runs the command as if it were alone. The others draw the same images, load the same
backbone and join every training that it announces; it does folds, answers and files by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.support import distributed
from rmadapter.training.contract import Method

FORMATS: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
END = -1  # sent instead of a training


@dataclass(frozen=True, eq=False)
class Team:
    """The processes of one training. machine: of this process. method: the one that they train
    together; None if there is one process."""

    machine: Machine
    method: Method | None = None

    @classmethod
    def of(cls, name: str, method: Method, machine: Machine) -> Team:
        """Train this method in all processes, each on its own GPU if there are any.

        Raises UserError if processes would have nothing to do or may not split a batch, for a
        device cuda:N, and for fewer GPUs than processes.
        """
        if not distributed.launched():
            return cls(machine)
        _check(name, method, int(os.environ["WORLD_SIZE"]))
        machine = replace(machine, device=_device(machine.device, int(os.environ["LOCAL_RANK"])))
        # `auto` may have chosen different formats in the processes
        [precision] = distributed.broadcast_numbers([FORMATS.index(machine.precision)])
        return cls(replace(machine, precision=FORMATS[precision]), method)

    def announce(self, method: Method, images: ImageSet, whole: ImageSet, key: str) -> None:
        """Have the others join a training on images, if its method is the team's.

        whole: all images that the others have. key: of the saved progress; empty if none is.
        """
        if method is not self.method or distributed.is_helper():
            return
        pairs = zip(whole.images, whole.labels, strict=True)
        row = {(id(image), label): i for i, (image, label) in enumerate(pairs)}
        announced = zip(images.images, images.labels, strict=True)
        rows = [row[id(image), label] for image, label in announced]
        distributed.broadcast_numbers([_number(key), *rows])

    def trainings(self, key: str) -> Iterator[tuple[list[int], bool]]:
        """Yield the rows of the images of each announced training, and whether its progress is
        saved, until the first process needs no more help.

        Raises UserError if the first process has another key, for instance because it sees other
        images.
        """
        while (numbers := distributed.broadcast_numbers([]))[0] != END:
            if numbers[0] not in (_number(""), _number(key)):
                raise UserError(
                    "its images, weights or settings differ from those of the first process"
                )
            yield numbers[1:], numbers[0] > 0

    def leave(self) -> None:
        """Part from the other processes; the first tells them that it needs no more help."""
        if self.method is not None:
            if not distributed.is_helper():
                distributed.broadcast_numbers([END])
            distributed.leave()


def _check(name: str, method: Method, count: int) -> None:
    """Raise UserError for a method that several processes cannot train together."""
    if method.recipe is None:
        raise UserError(
            f"{name} is not trained step by step: {count} processes have nothing to share; start "
            "one"
        )
    if method.traits.whole_batches:
        raise UserError(
            f"{name} normalises over a batch, which {count} processes would split: start one"
        )
    if method.recipe.batch_size < count:
        raise UserError(
            f"{name} has batch_size={method.recipe.batch_size}, too small for {count} processes: "
            "start fewer"
        )


def _device(device: str, local: int) -> str:
    """Return the device of the process of this number on its machine."""
    if device.startswith("cuda:"):
        raise UserError(
            f"device={device}: each of several processes takes its own GPU; write device=cuda"
        )
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        count = torch.cuda.device_count()
        if local >= count:
            raise UserError(
                f"process {local} of this machine has no GPU; there are {count}: start fewer"
            )
        return f"cuda:{local}"
    return "cpu" if device == "auto" else device  # gloo does not support Apple's GPU


def _number(key: str) -> int:
    """Return a number to send for a key in hexadecimal digits; 0 for none."""
    return int(key[:15] or "0", 16)
