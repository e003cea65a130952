"""Measure training and inference of RMAdapter on a GPU, by number format and with torch.compile,
against the card's own rate.

    python benchmarks/gpu.py --json > docs/results/benchmarks/gpu.json

A training step (forward, backward, optimizer; batch 16 and 128, 50 and 1,000 classes) by the
backbone's own forward in float32 with hooks, by the lean one in float32, bfloat16 and float16
(scaled), and compiled; and encoding images with adapters in these formats. Each row has seconds
(median and least), images per second, memory on the card, and the rate of its necessary work
(work.py) as a share of the best rate of large square products of that format in the same run. The
row of what does not fit, or of what the card lacks, says so. After 20 minutes it ends with what it
has. No GPU has run it yet; `--device cpu` runs all of it, too.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from common import arguments, machine, set_up, show
from step import Step
from torch import Tensor
from work import step_work

from rmadapter.backbones import load_backbone
from rmadapter.encoders import States
from rmadapter.support.machine import describe, find_device, peak, reset_peak
from rmadapter.support.terminal import note

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SQUARES = (1024, 4096, 8192)  # sides of the products; the best of them is the card's rate
BUDGET = 20 * 60.0  # seconds of the whole script; what would begin later is left out
KEYS = (
    "what", "classes", "batch", "seconds", "images_per_second", "peak_mb", "share_of_rate", "note",
)  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = arguments(__doc__, repeat=20)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[50, 1000], help="class names in the prompts"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[16, 128], help="images a step, or at once"
    )
    parser.add_argument(
        "--squares", type=int, nargs="+", default=list(SQUARES), help="sides of the large products"
    )
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave torch.compile out: minutes",
    )
    options = parser.parse_args()
    set_up(options)
    device = find_device(options.device)
    begun = time.monotonic()
    peaks = {name: rate(device, kind, options) for name, kind in FORMATS.items()}
    rows = []
    for row in every(options, device, peaks):
        rows.append(row)
        note(" ".join(f"{key}={row[key]}" for key in KEYS if row.get(key) is not None))
        if time.monotonic() - begun > BUDGET:
            break
    about = {
        "backbone": options.backbone,
        "seed": options.seed,
        "repeat": options.repeat,
        "finished": len(rows),
    }
    about |= {"device": describe(device)["device"], "tf32": torch.backends.cuda.matmul.allow_tf32}
    result = {"gflops": peaks, "rows": rows, **about, "machine": machine()}
    show(options, result, KEYS, [{key: row.get(key) for key in KEYS} for row in rows])


def every(
    options: argparse.Namespace, device: torch.device, peaks: dict[str, float | None]
) -> Iterator[Row]:
    backbone = load_backbone(options.backbone).to(device)
    for batch in options.batch:
        for classes in options.classes:
            step = Step(backbone, classes, batch, options.seed)
            step.images = step.images.to(device)
            step.labels = step.labels.to(device)
            variants = [("lean", name) for name in FORMATS] + [("reference", "fp32")]
            variants += [("compiled", name) for name in ("fp32", "bf16")] if options.compile else []
            work = sum(step_work(step.model, *frozen(step)).values())
            for variant, name in variants:
                about = {"what": f"step, {variant}, {name}", "classes": classes, "batch": batch}
                train = partial(training, step, variant, name)
                yield about | timed(options, device, batch, peaks[name], work, train)
        for name, kind in FORMATS.items():
            about = {"what": f"images, {name}", "classes": None, "batch": batch}
            yield about | timed(options, device, batch, None, 0, lambda: encoding(step, kind))  # noqa: B023


def frozen(step: Step) -> tuple[States, States]:
    """Compute frozen states with all prompts in one chunk, as their work is counted."""
    model = step.model
    return model.frozen(step.images), model.backbone.text.frozen(step.tokens, model.first("text"))


def training(step: Step, variant: str, name: str) -> Callable[[], object]:
    """Return a function that does one step, as in `minimise`. Frozen states are computed here, and
    held in the format."""
    model, kind, device = step.model, FORMATS[name], step.images.device
    if variant == "reference":
        inputs = step.untouched()

        def loss() -> Tensor:
            return model.reference(step.labels, step.images, step.tokens, inputs)["loss"]
    else:
        image = model.frozen(step.images)
        text = model.frozen_text(step.tokens)
        image = lower(image, kind)
        text = [lower(chunk, kind) for chunk in text]
        call: Any = torch.compile(model) if variant == "compiled" else model

        def loss() -> Tensor:
            return call(step.labels, image, text)["loss"]

    scaler = torch.amp.GradScaler(device.type, enabled=kind == torch.float16)

    def run() -> None:
        step.optimizer.zero_grad()
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            found = loss()
        scaler.scale(found).backward()
        scaler.step(step.optimizer)
        scaler.update()

    return run


def lower(states: States, kind: torch.dtype) -> States:
    """Convert tokens to a format; features stay in float32."""
    return States(
        states.first, states.layout, states.features, states.x.to(kind), states.y.to(kind)
    )


def encoding(step: Step, kind: torch.dtype) -> Callable[[], object]:
    """Return a function that makes adapted features of a batch of images from their pixels."""

    @torch.no_grad()
    def run() -> Tensor:
        with torch.autocast(step.images.device.type, kind, enabled=kind != torch.float32):
            return step.model.features("image", step.model.frozen(step.images))[0]

    return run


def timed(
    options: argparse.Namespace, device: torch.device, batch: int, gflops: float | None, work: int,
    make: Callable[[], Callable[[], object]],
) -> Row:  # fmt: skip
    """Time a call, or say why it failed. The first two calls, which may compile, do not
    count."""
    try:
        run = make()
        spent = []
        begun = time.perf_counter()
        for _ in range(2):
            run()
        wait(device)
        first = time.perf_counter() - begun
        reset_peak(device)
        for _ in range(options.repeat):
            begun = time.perf_counter()
            run()
            wait(device)
            spent.append(time.perf_counter() - begun)
    except (
        Exception
    ) as error:  # too little memory, a format or a kernel that the card lacks, no compiler
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return {"note": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"}
    seconds = statistics.median(spent)
    memory = peak(device)
    share = work / seconds / 1e9 / gflops if work and gflops else None
    return {
        "seconds": seconds, "least_seconds": min(spent), "first_two_seconds": first,
        "share_of_rate": share,
        "images_per_second": batch / seconds, "peak_mb": memory["peak_gpu_mb"] or memory["peak_mb"],
    }  # fmt: skip


def rate(device: torch.device, kind: torch.dtype, options: argparse.Namespace) -> float | None:
    """Measure gigaflops a second of the best of large square products; None for a format that the
    device cannot multiply."""
    best = 0.0
    with contextlib.suppress(RuntimeError):
        for side in options.squares:
            a, b = (torch.rand(side, side, device=device).to(kind) for _ in range(2))
            spent = []
            for turn in range(5):
                begun = time.perf_counter()
                for _ in range(4):
                    a @ b
                wait(device)
                if turn:
                    spent.append(time.perf_counter() - begun)
            best = max(best, 4 * 2 * side**3 / min(spent) / 1e9)
    return best or None


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
