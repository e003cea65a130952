"""The training loop, top to bottom. Killed at any moment and started again, it ends with the same adapter."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rmadapter.allocator import keep_freed_memory
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.data.transforms import Pictures, train_transform
from rmadapter.errors import UserError
from rmadapter.features import FrozenImages, freeze_images
from rmadapter.files import atomic
from rmadapter.model import AdaptedCLIP
from rmadapter.progress import bar

SAVE_SECONDS = 30.0  # a killed run loses at most this much work


@dataclass
class Progress:
    """Where training stands: steps done, seconds spent, and one record of loss terms per step."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    model: AdaptedCLIP,
    images: ImageSet,
    *,
    frozen: FrozenImages | None = None,
    state: Path | None = None,
    key: str = "",
    progress: bool = True,
) -> Progress:
    """Train the adapters of `model` on `images`, whose class names become prompts.

    frozen: the images' frozen activations, when they are there already (augmentation "none").
    state: file that holds an unfinished training and is taken up again when it is there; key: what that training was,
    so that another one is refused. Raises UserError for a foreign state file or a number format the device lacks.
    """
    from accelerate import Accelerator

    config = model.config
    device = find_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU: write precision=bf16 or fp32 on this machine")
    if device.type == "cpu":
        keep_freed_memory()
    _forget_accelerator()
    mixed = "no" if config.precision == "fp32" else config.precision
    accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    model.to(device).train()
    optimizer = accelerator.prepare(make_optimizer(model, config))
    steps = config.epochs * math.ceil(len(images) / config.batch_size)
    done = load_state(state, key, model, optimizer) if state and state.exists() else Progress()
    started, saved = time.monotonic() - done.seconds, time.monotonic()
    source = _Source(model, images, frozen, state.parent if state else None, progress)
    with bar(progress) as display:
        task = display.add_task("training", total=steps, completed=done.step, note="")
        for epoch, rows, pictures in source.steps(done.step):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, done.step, steps)
            with accelerator.autocast():
                terms = source.terms(epoch, rows, pictures)
            optimizer.zero_grad()
            accelerator.backward(terms["loss"])
            if config.clip_gradient:
                accelerator.clip_grad_norm_(model.adapters.parameters(), config.clip_gradient)
            optimizer.step()
            record = {name: term.item() for name, term in terms.items()}
            if not math.isfinite(record["loss"]):
                raise UserError(f"the loss became {record['loss']} in step {done.step}: lower learning_rate or alpha")
            done.step += 1
            done.seconds = time.monotonic() - started
            done.history.append(
                {"step": done.step, "epoch": epoch + 1, **record, "lr": optimizer.param_groups[0]["lr"]}
            )
            display.update(task, advance=1, note=" ".join(f"{k} {v:.3f}" for k, v in record.items()))
            if state and time.monotonic() - saved > SAVE_SECONDS:
                save_state(state, key, model, optimizer, done)
                saved = time.monotonic()
    model.eval()
    return done


def epochs(count: int, config: Config, skip: int) -> Iterator[tuple[int, list[Tensor]]]:
    """(epoch, rows of each of its steps) without the first `skip` steps; an epoch's order depends on seed and epoch."""
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        steps = list(torch.randperm(count, generator=generator).split(config.batch_size))
        left = steps[max(0, skip - epoch * len(steps)) :]
        if left:
            yield epoch, left


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    warmup = config.warmup_epochs * steps / config.epochs
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: AdaptedCLIP, config: Config) -> torch.optim.Optimizer:
    """SGD with momentum as MMA, or AdamW, on the adapters alone."""
    parameters = list(model.adapters.parameters())
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    decay, momentum = config.weight_decay, config.momentum
    return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=momentum, weight_decay=decay)


def find_device(name: str) -> torch.device:
    """ "auto" is the GPU if there is one. Raises UserError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r}: write auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}: this machine has no usable GPU; write device=cpu or device=auto")
    return device


class _Source:
    """Loss terms of every step: from frozen activations where there are some, else from images read as needed."""

    def __init__(
        self, model: AdaptedCLIP, images: ImageSet, frozen: FrozenImages | None, folder: Path | None, progress: bool
    ) -> None:
        self.model, self.images, self.config = model, images, model.config
        self.labels = torch.tensor(images.labels, device=model.device)
        self.templates = len(self.config.templates)
        self.tokens = model.prompts(images.classes)
        self.text = model.frozen_text(self.tokens)
        if frozen is None and (self.config.augmentation == "none" or self.config.views):
            frozen = freeze_images(model, images, folder=folder, progress=progress)
        self.frozen = frozen
        self.lean: Any = torch.compile(model) if self.config.compile else model
        self.from_pictures = frozen is None or self.config.forward == "reference"

    def steps(self, skip: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(epoch, rows [B], images [B, 3, H, W] or None) of every step but the first `skip`."""
        augmented = self.config.augmentation == "standard"
        transform: Any = train_transform(self.model.backbone) if augmented else self.model.backbone.preprocess
        for epoch, orders in epochs(len(self.images), self.config, skip):
            view = epoch % self.config.views if self.config.views else epoch
            key = (self.config.seed, view) if augmented else None
            if self.from_pictures:
                pictures = Pictures(self.images, transform, key)
                batch_rows = [rows.tolist() for rows in orders]
                loader: Any = DataLoader(
                    pictures, batch_sampler=batch_rows, num_workers=self.config.workers, generator=torch.Generator()
                )
            else:
                loader = [None] * len(orders)
            for rows, batch in zip(orders, loader, strict=True):
                yield epoch, rows, batch

    def terms(self, epoch: int, rows: Tensor, pictures: Tensor | None) -> dict[str, Tensor]:
        labels, device = self.labels[rows.to(self.labels.device)], self.model.device
        if self.frozen:
            states = self.frozen.batch(rows, device, epoch)
        elif pictures is not None:
            states = self.model.frozen("image", pictures.to(device))
        if self.config.forward == "lean" or pictures is None:
            return self.lean(labels, states, self.text, self.templates)
        text = torch.cat([chunk.features for chunk in self.text])
        frozen = (states.features, text)
        return self.model.reference(labels, pictures.to(device), self.tokens, frozen, self.templates)


def save_state(path: Path, key: str, model: AdaptedCLIP, optimizer: Any, done: Progress) -> None:
    """Everything that the rest of the training depends on, in one safetensors file, atomically."""
    from safetensors.torch import save_file

    tensors = {f"adapter.{name}": tensor for name, tensor in model.adapters.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": v for slot, v in slots.items() if isinstance(v, Tensor)}
    scaler = getattr(optimizer, "scaler", None)
    record = {"key": key, "scaler": scaler.state_dict() if scaler else None, **vars(done)}
    with atomic(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary, {"progress": json.dumps(record)})


def load_state(path: Path, key: str, model: AdaptedCLIP, optimizer: Any) -> Progress:
    """Take up an unfinished training. Raises UserError when the file is another training's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable training state ({type(error).__name__}); delete it") from None
    if record.pop("key") != key:
        raise UserError(f"{path.parent} holds another, unfinished training: choose another --out or delete that folder")
    scaler = record.pop("scaler")
    model.adapters.load_state_dict(
        {name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")}
    )
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            state["state"].setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict(state)
    if scaler and getattr(optimizer, "scaler", None):
        optimizer.scaler.load_state_dict(scaler)
    return Progress(**record)


def _forget_accelerator() -> None:
    """Accelerate keeps the first number format of a process for ever; another run may want another one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
