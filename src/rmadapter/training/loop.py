"""The training loop of every method, top to bottom: recipe, steps, exact resume, several processes.

Killed at any moment and started again, a training ends with the same weights, on a CPU bit for bit.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any, Literal

import pydantic.dataclasses
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.settings import STRICT, option
from rmadapter.support.distributed import add_up, begin, several
from rmadapter.support.files import write_tensors
from rmadapter.support.machine import keep_freed_memory
from rmadapter.support.terminal import bar
from rmadapter.training.cache import FORMATS, Source
from rmadapter.training.callbacks import tell
from rmadapter.training.contract import Shots
from rmadapter.training.state import Trained, Unfinished, as_rows, as_table, key_of

SAVE_SECONDS = 30.0  # a killed run loses at most this much work
WHOLE = 1_000_000  # batch size that means all images
TURN = 0.6  # share of the epochs after which the schedule `twice` starts again, as in 2SFS


Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Recipe:
    """How a method is optimised. The defaults are those of Dassl, on which most of the field's code
    is built."""

    optimizer: Literal["sgd", "adamw", "adam"] = option("sgd", "optimiser")
    learning_rate: float = option(0.002, "peak learning rate", gt=0)
    weight_decay: float = option(5e-4, "weight decay", ge=0)
    momentum: float = option(0.9, "momentum of SGD", ge=0, lt=1)
    betas: tuple[Rate, Rate] = option((0.9, 0.999), "decay rates of Adam's averages")
    eps: float = option(1e-8, "term in Adam's denominator", gt=0)
    epochs: int = option(50, "passes over the training images", ge=1, le=1_000_000)
    iterations: int = option(
        0,
        "steps per shot of a class, rounded up to whole epochs; replaces `epochs`",
        ge=0,
        le=1_000_000,
    )
    batch_size: int = option(32, "images per step", ge=1, le=WHOLE)
    schedule: Literal["epoch", "step", "twice"] = option(
        "epoch",
        "cosine updated every epoch, as in Dassl, or every step; twice: two cosines by step, as in 2SFS",
    )
    warmup_epochs: float = option(
        1.0, "warm-up before the cosine: constant if by epoch, linear if by step", ge=0
    )
    warmup_rate: float = option(1e-5, "learning rate of the constant warm-up", gt=0)
    final_rate: float = option(0.0, "learning rate at the end of a cosine by step", ge=0)
    clip_gradient: float = option(0.0, "largest gradient norm; 0 turns clipping off", ge=0)

    def rate(self, step: int, per_epoch: int, epochs: int) -> float:
        """Learning rate of a step counted from 0."""
        peak, warmup = self.learning_rate, self.warmup_epochs * per_epoch
        if (
            self.schedule == "epoch"
        ):  # Dassl's cosine begins after the warm-up, and so stops short of zero
            gone = step // per_epoch - self.warmup_epochs
            return (
                self.warmup_rate
                if step < warmup
                else peak * 0.5 * (1 + math.cos(math.pi * gone / epochs))
            )
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        start, end = warmup, epochs * per_epoch
        if self.schedule == "twice":
            turn = self.turn(epochs) * per_epoch
            start, end = (turn, end) if step >= turn else (start, turn)
        share = (step - start) / max(1, end - start)
        return self.final_rate + (peak - self.final_rate) * 0.5 * (1 + math.cos(math.pi * share))

    def turn(self, epochs: int) -> int:
        """Epochs of the first of two cosines; the second starts at the peak again, without warm-up."""
        return round(TURN * epochs)

    def length(self, labels: Sequence[int]) -> tuple[int, int]:
        """Number of epochs, and of steps in each."""
        per_epoch = math.ceil(len(labels) / self.batch_size)
        if not self.iterations:
            return self.epochs, per_epoch
        return math.ceil(self.iterations * max(Counter(labels).values()) / per_epoch), per_epoch

    def make(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """parameters: single ones, or groups as in torch."""
        some = list(parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                some, self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(some, self.learning_rate, self.betas, self.eps, self.weight_decay)


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of a loss. rows: [B] indices of the shots, on the CPU. labels: as `Shots.labels`.
    images: their states.

    generator: for anything else drawn in a step; a resumed training restores its state.
    """

    epoch: int
    rows: Tensor
    labels: Tensor
    images: States
    generator: torch.Generator


Loss = Callable[[Batch], "Tensor | dict[str, Tensor]"]


def minimise(
    module: nn.Module,
    loss: Loss,
    recipe: Recipe,
    shots: Shots,
    source: Source,
    after_epoch: Callable[[int], object] = lambda epoch: None,
    times: Callable[[str], float] = lambda name: 1.0,
) -> Trained:
    """Minimise loss(batch) over the shots, in an order that depends on the seed, the epoch and the
    weights alone.

    module: what is trained; its state is the result. The loss is a scalar, or a dictionary of terms
    with their sum under "loss". source: gives the states of a batch. after_epoch(epoch), counted
    from 0, may change buffers of the module. times(name): factor on the peak learning rate of that
    parameter. Raises UserError if the loss is not finite, if the unfinished training is another
    one, or if the device lacks the number format.
    """
    machine, device = shots.machine, shots.device
    if machine.precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU: write precision=bf16 or fp32 on this machine")
    if device.type == "cpu":
        keep_freed_memory()
    module.to(device).train()
    loop = _Loop(module, recipe, shots, times)
    epochs, per_epoch = recipe.length(shots.images.labels)
    call = torch.compile(loss) if machine.compile else loss
    trained, labels, seconds = loop.trained, shots.labels, []
    started, saved = time.monotonic() - trained.seconds, time.monotonic()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        bar(shots.progress) as display,
    ):
        loop.seed()
        task = display.add_task(
            "training", total=epochs * per_epoch, completed=trained.step, note=""
        )
        for epoch in range(trained.step // per_epoch, epochs):
            orders = order(len(labels), recipe.batch_size, shots.seed, epoch, shots.weights)[
                trained.step % per_epoch :
            ]
            parts, shares = zip(*map(_share, orders), strict=True)
            for part, share, images in zip(
                parts, shares, source.batches(epoch, parts), strict=True
            ):
                begun = time.perf_counter()
                rates = [one.rate(trained.step, per_epoch, epochs) for one in loop.recipes]
                batch = Batch(epoch, part, labels[part.to(device)], images, loop.generator)
                terms = loop.step(call, batch, rates, share)
                trained.step, trained.seconds = trained.step + 1, time.monotonic() - started
                trained.history.append(
                    {"step": trained.step, "epoch": epoch + 1, **terms, "lr": rates[0]}
                )
                if trained.step % per_epoch == 0:
                    after_epoch(epoch)
                tell(shots.callbacks if loop.writes else (), trained.history, per_epoch)
                seconds.append(time.perf_counter() - begun)
                display.update(task, advance=1, note=f"loss {terms['loss']:.3f}")
                if shots.unfinished and loop.writes and time.monotonic() - saved > SAVE_SECONDS:
                    loop.save(shots.unfinished)
                    saved = time.monotonic()
    module.eval()
    trained.step_seconds, trained.weighed = statistics.median(seconds) if seconds else None, True
    return trained


def order(
    count: int, batch_size: int, seed: int, epoch: int, weights: Tensor | None = None
) -> list[Tensor]:
    """Rows of every step of an epoch.

    weights: [count] in float64, 1 on average. By systematic sampling, a row of weight w comes w
    times per epoch on average, and always less than once more or fewer, so that a loss need not
    know of weights.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    rows = torch.randperm(count, generator=generator)
    if weights is not None:
        marks = torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)
        rows = torch.searchsorted(weights.cumsum(0), marks).clamp(max=int(weights.nonzero()[-1]))[
            rows
        ]
    return list(rows.split(batch_size))


def _share(rows: Tensor) -> tuple[Tensor, float]:
    """This process's part of a batch, and its weight; if no row is left for it, one row with weight
    0."""
    if not several():
        return rows, 1.0
    mine = rows[dist.get_rank() :: dist.get_world_size()]
    return (mine, len(mine) / len(rows)) if len(mine) else (rows[:1], 0.0)


class _Loop:
    """One step of a training, and everything that the rest depends on, in memory and on disk."""

    def __init__(
        self, module: nn.Module, recipe: Recipe, shots: Shots, times: Callable[[str], float]
    ) -> None:
        self.module, self.recipe, self._shots = module, recipe, shots
        self.format, self.device = FORMATS[shots.machine.precision], shots.device
        groups = defaultdict[float, list[nn.Parameter]](list)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups[times(name)].append(parameter)
        self.parameters = [*chain.from_iterable(groups.values())]
        self.optimizer = recipe.make({"params": some} for some in groups.values())
        self.recipes = [
            replace(recipe, learning_rate=factor * recipe.learning_rate) for factor in groups
        ]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.format == torch.float16)
        self.generator = torch.Generator().manual_seed(shots.seed)
        self.writes = not several() or dist.get_rank() == 0
        self.trained, self._random = Trained(), {}  # type: ignore[var-annotated]
        left = shots.unfinished
        if left and left.path.exists() and not (left.before and key_of(left) == left.before):
            self.load(left)
        if several():
            begin(module.state_dict().values(), self.trained.step)

    def seed(self) -> None:
        """Seed torch's own generators, or restore them when resuming."""
        torch.default_generator.manual_seed(
            self._shots.seed
        )  # torch.manual_seed would also seed all GPUs
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(self._shots.seed)
        if "random.cpu" in self._random:
            torch.set_rng_state(self._random["random.cpu"])
            self.generator.set_state(self._random["random.batch"])
        if "random.cuda" in self._random:
            torch.cuda.set_rng_state(self._random["random.cuda"], self.device)

    def step(
        self, loss: Loss, batch: Batch, rates: Sequence[float], share: float
    ) -> dict[str, float]:
        """Do a step and return its loss terms. rates: one per group. share: how much of the batch
        is this process's."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        with torch.autocast(self.device.type, self.format, enabled=self.format != torch.float32):
            found = loss(batch)
        terms = found if isinstance(found, dict) else {"loss": found}
        shared = several()
        self.optimizer.zero_grad()
        self.scaler.scale(terms["loss"] * share if shared else terms["loss"]).backward()
        if shared:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    add_up(parameter.grad)
        if self.recipe.clip_gradient:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values = torch.stack([term.detach().float() for term in terms.values()])
        if shared:
            add_up(values.mul_(share))
        record = dict(zip(terms, values.tolist(), strict=True))
        if not math.isfinite(record["loss"]):
            raise UserError(
                f"the loss became {record['loss']} in step {self.trained.step + 1}: lower learning_rate"
            )
        return record

    def save(self, unfinished: Unfinished) -> None:
        """Write one safetensors file, atomically."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{slot}": v for slot, v in slots.items() if isinstance(v, Tensor)
            }
        tensors |= {"random.cpu": torch.get_rng_state(), "random.batch": self.generator.get_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        terms, tensors["history"] = as_table(
            self.trained.history
        )  # metadata may have 100 MB at most
        record = {
            "key": unfinished.key,
            "scaler": self.scaler.state_dict(),
            **vars(self.trained),
            "history": terms,
        }
        write_tensors(unfinished.path, tensors, {"progress": json.dumps(record)})

    def load(self, unfinished: Unfinished) -> None:
        """Resume an unfinished training. Raises UserError if the file is damaged or from another
        training."""
        from safetensors import SafetensorError, safe_open

        path = unfinished.path
        try:
            with safe_open(path, "pt") as file:
                record: dict[str, Any] = json.loads((file.metadata() or {})["progress"])
                key, scaler = record.pop("key"), record.pop("scaler")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{path}: not a readable training state ({type(error).__name__}); delete it"
            ) from None
        if key != unfinished.key:
            raise UserError(
                f"{path.parent} holds another, unfinished training: choose another --out or delete that folder"
            )
        self.scaler.load_state_dict(scaler or {})
        parts = {
            name.removeprefix("module."): t
            for name, t in tensors.items()
            if name.startswith("module.")
        }
        self.module.load_state_dict(parts)
        state = self.optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".", 2)
                state["state"].setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict(state)
        self._random = {
            name: tensor for name, tensor in tensors.items() if name.startswith("random.")
        }
        record["history"] = as_rows(record["history"], tensors["history"])
        self.trained = Trained(**record)
