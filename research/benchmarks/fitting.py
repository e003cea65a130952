"""Training steps of any method, from what its `fit` hands to the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from common import noise
from parity import untrained
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.settings import Machine
from rmadapter.training.cache import DTYPES, Cache
from rmadapter.training.contract import Shots
from rmadapter.training.loop import Batch

RATE, SPREAD = (
    1e-9,
    0.05,
)  # a step too small to move anything; noise on all that is trained, so that it has an effect


def shots_for(
    backbone: Backbone, classes: int, batch: int, seed: int, precision: str = "fp32"
) -> Shots:
    """Make images of noise, as many as a step takes: the values of pixels do not change the
    work."""
    machine = Machine(device="cpu", precision=precision)  # type: ignore[arg-type]
    cache = Cache(backbone, machine, seed=seed, progress=False)
    return Shots(noise(batch, classes, backbone.image_size, seed), cache, seed=seed, progress=False)


class Fit:
    """A method before its first step, with noise on its tensors, and steps on one batch: all of the
    shots."""

    def __init__(self, method: Any, shots: Shots) -> None:
        self.module, self.compute, recipe, _, self.source = untrained(method, shots)
        self.module.train()
        self.shots = shots
        self.rows = torch.arange(len(shots.images))
        generator = torch.Generator().manual_seed(shots.seed)
        for parameter in self.trained.values():
            parameter.data += SPREAD * torch.randn(parameter.shape, generator=generator)
        self.optimizer = replace(recipe, learning_rate=RATE).make(self.trained.values())

    @property
    def trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def loss(self, states: States | None = None) -> Tensor:
        """Compute the loss on all shots. states: of the shots, instead of the source's."""
        kind = DTYPES[self.shots.machine.precision]
        images = self.source.batch(self.rows) if states is None else states
        batch = Batch(
            0, self.rows, self.shots.labels, images, torch.Generator().manual_seed(self.shots.seed)
        )
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            found = self.compute(batch)
        return found["loss"] if isinstance(found, dict) else found

    def step(self, loss: Callable[[], Tensor] | None = None) -> None:
        """Do a step: forward, backward and optimizer."""
        self.optimizer.zero_grad()
        (loss or self.loss)().backward()
        self.optimizer.step()

    def gradients(
        self, loss: Callable[[], Tensor] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the loss, and its gradient by every trained tensor."""
        self.optimizer.zero_grad()
        value = (loss or self.loss)()
        value.backward()
        return value.item(), {
            name: p.grad.clone() for name, p in self.trained.items() if p.grad is not None
        }


class Spent(NamedTuple):
    """Seconds of repeated calls: of the clock, and of all processors."""

    wall: list[float]
    cpu: list[float]

    @contextmanager
    def once(self) -> Iterator[None]:
        wall = time.perf_counter()
        cpu = time.process_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def figures(self, name: str) -> dict[str, Any]:
        return {
            f"{name}_seconds": median(self.wall),
            f"{name}_least_seconds": min(self.wall),
            f"{name}_cpu_seconds": median(self.cpu),
            f"{name}_all_seconds": self.wall,
        }
