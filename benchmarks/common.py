"""What the benchmarks share: the machine, its matrix-product rate, interleaved timing, peak memory, the training step.

Every benchmark measures its reference in the same run as what it is compared with, in turns, and reports medians: a
machine that is slower for a while is then slower for both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rmadapter.allocator import give_back_memory, keep_freed_memory
from rmadapter.backbone import Backbone
from rmadapter.bench.machine import processor
from rmadapter.config import Config
from rmadapter.model import AdaptedCLIP
from rmadapter.progress import bar
from rmadapter.towers import States
from rmadapter.train import make_optimizer

SQUARES = (1024, 2048, 4096)  # sides of the large square products; the best of them is the machine's rate
MB, GB = 1e6, 1e9


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-16/none", help="any name that load_backbone understands")
    parser.add_argument("--seed", type=int, default=0, help="of images, labels, class names and adapters")
    parser.add_argument("--repeat", type=int, default=7, help="measured rounds; the median counts")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves torch's own choice")
    parser.add_argument(
        "--allocator", choices=["keep", "default"], default="keep", help="keep: memory freed in a step serves the next"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


# ---- the machine ----


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / GB, 1),
        "load_before": round(psutil.getloadavg()[0], 2),  # processes that wanted a core in the last minute
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


# ---- time ----


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    runs: dict[str, Callable[[], Any]] | Sequence[tuple[str, Callable[[], Any]]],
    repeat: int,
    budget: float = float("inf"),
    text: str = "",
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every call of each run, taken in turns after one round of warming up; a round may name a run often.

    budget: seconds after which no further round starts, once there are three.
    """
    turns = list(runs.items()) if isinstance(runs, dict) else list(runs)
    seconds: dict[str, list[float]] = {name: [] for name, _ in turns}
    with bar() as display:
        task = display.add_task(text, total=(repeat + warm_up) * len(turns), note="")
        started = time.perf_counter()
        for round_ in range(-warm_up, repeat):
            if round_ >= 3 and time.perf_counter() - started > budget:
                break
            for name, run in turns:
                display.update(task, note=name)
                spent = timed(run)
                if round_ >= 0:
                    seconds[name].append(spent)
                display.advance(task)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def product(rows: int, inner: int, columns: int) -> Callable[[], Tensor]:
    """A float32 matrix product [rows, inner] @ [inner, columns] into memory that is there already."""
    a, b, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    return lambda: torch.mm(a, b, out=out)


def rates(seconds: dict[str, float]) -> dict[str, float]:
    """Gigaflops per second of the products among some timings, by shape."""
    found = {}
    for name, spent in seconds.items():
        if shape := re.fullmatch(r"(\d+) x (\d+) x (\d+)", name):
            rows, inner, columns = map(int, shape.groups())
            found[name] = 2 * rows * inner * columns / spent / 1e9
    return found


# ---- memory ----


class Peak:
    """The most memory that a process held at once between `start` and `stop`, in MB beyond what it held when made."""

    def __init__(self) -> None:
        give_back_memory()
        self.base = psutil.Process().memory_info().rss

    def start(self) -> None:
        """Forget the peak so far, such as that of loading a model; not possible outside Linux, where it counts."""
        give_back_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def stop(self) -> float:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        with contextlib.suppress(OSError):
            # getrusage remembers the peak before `start`, this line does not.
            peak = 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])
        return (peak - self.base) / MB


def in_fresh_process(script: str, *options: str) -> Any:
    """Run a benchmark with other options in a process of its own; returns the JSON it prints."""
    done = subprocess.run([sys.executable, script, *options], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def passed_on(options: argparse.Namespace, *names: str) -> list[str]:
    """The options among `names` that are set, for a fresh process."""
    return [text for n in names if getattr(options, n) is not None for text in (f"--{n}", str(getattr(options, n)))]


# ---- the training step ----


def class_names(count: int, seed: int) -> list[str]:
    """A draw of ImageNet's class names, which have one to seven tokens."""
    from open_clip import IMAGENET_CLASSNAMES

    if count > len(IMAGENET_CLASSNAMES):
        raise SystemExit(f"--classes {count}: there are {len(IMAGENET_CLASSNAMES)} class names")
    return random.Random(seed).sample(list(IMAGENET_CLASSNAMES), count)


class Step:
    """A training step of one batch, by the lean or the reference forward pass, from inputs made as training does.

    Images are noise: what a pixel shows does not change the work. Adapters start with random weights in all places,
    so that every gradient is there to be compared, and the learning rate is too small to move them.
    chunk: prompts that the reference encodes at once, each chunk again in the backward pass; 0 for all, once.
    """

    def __init__(
        self, backbone: Backbone, classes: int, batch: int = 16, seed: int = 0, chunk: int = 0, **fields: Any
    ) -> None:
        fields = {"init": "kaiming", "learning_rate": 1e-9, "seed": seed, "batch_size": batch, **fields}
        self.model = AdaptedCLIP(backbone, Config.make(fields)).train()
        self.chunk = chunk
        if chunk:
            self.model._hooked = in_chunks(self.model._hooked, chunk)  # type: ignore[method-assign]
        self.optimizer = make_optimizer(self.model, self.model.config)
        generator = torch.Generator().manual_seed(seed)
        size = backbone.image_size
        self.images = torch.randn(batch, 3, size, size, generator=generator)
        self.labels = torch.randint(classes, (batch,), generator=generator)
        self.tokens = self.model.prompts(class_names(classes, seed))
        self.features: tuple[Tensor, Tensor] | None = None
        self.states: tuple[States, States] | None = None

    def frozen(self) -> tuple[States, States]:
        """Of images and prompts, computed once."""
        if self.states is None:
            self.states = (self.model.frozen("image", self.images), self.model.frozen("text", self.tokens))
        return self.states

    def untouched(self) -> tuple[Tensor, Tensor]:
        """Features of images and prompts, computed once."""
        if self.features is None:
            text = torch.cat([self.model.frozen("text", part).features for part in self.tokens.split(256)])
            self.features = (self.model.frozen("image", self.images).features, text)
        return self.features

    def loss(self, variant: str) -> Tensor:
        """The forward pass alone."""
        if variant == "lean":
            return self.model(self.labels, *self.frozen())["loss"]
        return self.model.reference(self.labels, self.images, self.tokens, self.untouched())["loss"]

    def run(self, variant: str) -> Callable[[], None]:
        """A whole step: forward, backward, optimizer."""

        def step() -> None:
            self.optimizer.zero_grad()
            self.loss(variant).backward()
            self.optimizer.step()

        return step

    def gradients(self, variant: str) -> dict[str, Tensor]:
        """Of every adapter parameter."""
        self.model.zero_grad()
        self.loss(variant).backward()
        return {n: p.grad.clone() for n, p in self.model.adapters.named_parameters() if p.grad is not None}


def in_chunks(encode: Callable[..., Any], size: int) -> Callable[..., Any]:
    """The same features and errors of prompts, of which only a chunk is in memory at once."""

    def run(side: str, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        if side == "image":
            return encode(side, inputs)
        parts = [checkpoint(encode, side, part, use_reentrant=False) for part in inputs.split(size)]
        return torch.cat([part[0] for part in parts]), [torch.cat(e) for e in zip(*(p[1] for p in parts), strict=True)]

    return run


def step_peak(step: Step, variant: str) -> float:
    """MB that one step needs beyond the model, its frozen activations or features included."""
    peak = Peak()
    step.frozen() if variant == "lean" else step.untouched()  # what training computes once
    peak.start()
    step.run(variant)()
    return peak.stop()


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print for people."""
    from rich.console import Console
    from rich.table import Table

    sheet = Table(*columns, title=title)
    for row in rows:
        sheet.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(sheet)


def set_up(options: argparse.Namespace) -> None:
    """Threads, seed and memory allocator of the process."""
    if options.allocator == "keep":
        keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
