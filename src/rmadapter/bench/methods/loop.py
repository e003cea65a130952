"""The training loop of the peers: their optimiser, their schedule, any loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rmadapter.allocator import keep_freed_memory
from rmadapter.bench.methods.base import Training
from rmadapter.errors import UserError
from rmadapter.progress import bar


@dataclass(frozen=True)
class Recipe:
    """How a method is optimised. `every`: the schedule moves once an epoch, as Dassl has it, or once a step."""

    optimizer: Literal["sgd", "adamw", "adam"] = "sgd"
    learning_rate: float = 0.002
    weight_decay: float = 5e-4
    epochs: int = 50
    batch_size: int = 32
    warmup_epochs: int = 1
    warmup_rate: float = 1e-5  # constant learning rate of the warm-up
    every: Literal["epoch", "step"] = "epoch"
    eps: float = 1e-8  # of Adam
    betas: tuple[float, float] = (0.9, 0.999)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step counted from 0: constant warm-up, then a cosine to zero."""
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.warmup_rate
        if self.every == "epoch":  # Dassl's cosine begins after the warm-up, and so stops short of zero
            gone = step // steps_per_epoch - self.warmup_epochs
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * gone / self.epochs))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser; SGD has momentum 0.9, as all of these methods have it."""
        parameters = list(parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, self.learning_rate, self.betas, self.eps, self.weight_decay)


@dataclass
class Trained:
    """Loss terms of every step, and the median seconds of one."""

    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: float | None = None


def minimise(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int, Tensor], Tensor | dict[str, Tensor]],
    recipe: Recipe,
    train: Training,
    after_epoch: Callable[[int], Any] | None = None,
) -> Trained:
    """Minimise loss(epoch, rows [B]) over the shots, in an order that depends on the seed and the epoch alone.

    The loss is a scalar, or a dictionary of terms with their sum under "loss". after_epoch(epoch), counted from 0, is
    for averages over epochs. Raises UserError when the loss is no longer a number, or for precision fp16, which needs
    loss scaling.
    """
    if (precision := train.activations.settings.precision) == "fp16":
        raise UserError("precision=fp16: the peers train in bf16 or fp32; write precision=bf16")
    half = precision == "bf16"
    if train.device.type == "cpu":
        keep_freed_memory()
    parameters = list(parameters)
    optimizer, count = recipe.make(parameters), len(train.images)
    per_epoch = math.ceil(count / recipe.batch_size)
    trained, seconds = Trained(), []
    with bar(train.progress) as display:
        task = display.add_task("training", total=recipe.epochs * per_epoch, note="")
        for epoch in range(recipe.epochs):
            generator = torch.Generator().manual_seed(train.seed * 1_000_003 + epoch)
            for rows in torch.randperm(count, generator=generator).split(recipe.batch_size):
                started = time.perf_counter()
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(len(trained.history), per_epoch)
                with torch.autocast(train.device.type, torch.bfloat16, enabled=half):
                    found = loss(epoch, rows)
                terms = found if isinstance(found, dict) else {"loss": found}
                optimizer.zero_grad()
                terms["loss"].backward()
                optimizer.step()
                record = {name: float(term.detach()) for name, term in terms.items()}
                if not math.isfinite(record["loss"]):
                    raise UserError(f"the loss became {record['loss']}: lower learning_rate")
                trained.history.append({"step": len(trained.history) + 1, "epoch": epoch + 1, **record})
                seconds.append(time.perf_counter() - started)
                display.update(task, advance=1, note=f"loss {record['loss']:.3f}")
            if after_epoch:
                after_epoch(epoch)
    trained.step_seconds = statistics.median(seconds) if seconds else None
    return trained
