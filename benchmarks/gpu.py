"""Measure training and inference of RMAdapter on a GPU: eager, as CUDA graphs and compiled, by
number format, against the card's own rates.

    python benchmarks/gpu.py                # or `make gpu`, which also runs the tests marked gpu

A training step (forward, backward, optimizer; 128, 16 and 1,024 images, 50 and 1,000 classes) by
the backbone's own forward in float32 with hooks, by the lean one in float32, bfloat16 and float16
(scaled), the lean one as one CUDA graph, and with its loss compiled, as by the settings
compile=default and compile=reduce-overhead, the latter by torch's own CUDA graphs; encoding images
with adapters in these ways; and a whole training of RMAdapter on an image of each of 1,000 classes.
Each row has seconds (median and least), images per second, memory on the card, the share that its
necessary work (work.py; of encoding, torch's count) reaches of the rate of large square products of
that format in the same run, and the roofline: the seconds that the products take at that rate, or
the necessary bytes at the measured bandwidth, whichever is more. The row of what does not fit, or
of what the card lacks, says so.

Each row runs in a process of its own, so that one that breaks the card's state, hangs or dies takes
no other with it. The rows that say most come first, compiled ones last, and the page and the JSON
file are written after each row: whatever ends the script leaves the rows until then. The first
failure is told in full. After --minutes it ends with what it has.

The files are research/results/gpu.md (--page) and research/results/benchmarks/gpu.json (--out).
Without a GPU it says so and exits with 2; `--device cpu` tries the script. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import arguments, machine, noise, set_up, show
from figures import ROOT, table
from step import Step
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from work import step_work

from rmadapter.backbones import load_backbone
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.support.files import write_text
from rmadapter.support.machine import (
    allow_tf32,
    describe,
    end_with_parent,
    find_device,
    peak,
    reset_peak,
)
from rmadapter.support.terminal import note
from rmadapter.training.loop import compiled

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SQUARES = (1024, 4096, 8192)  # sides of the products; the best of them is the card's rate
MODES = ("compiled", "reduce-overhead")
# The order of rows: eager, whole fits, CUDA graphs, compiled.
STAGES = {"lean": 0, "reference": 0, "fit": 1, "graph": 2, "compiled": 3, "reduce-overhead": 3}
FIRST_BATCH = 128
ROW_MINUTES = 5.0  # after which a row is given up
ROW_SECONDS = 10.0  # that a row needs at least, with the start of its process
COPIED = 1024  # MB that are copied to measure the bandwidth
PAGE = ROOT / "research/results/gpu.md"
OUT = ROOT / "research/results/benchmarks/gpu.json"
KEYS = (
    "what", "classes", "batch", "seconds", "roofline_seconds", "images_per_second", "peak_mb",
    "share_of_rate", "note",
)  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = arguments(__doc__, repeat=20)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[50, 1000], help="class names in the prompts"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[16, 128, 1024], help="images a step, or at once"
    )
    parser.add_argument(
        "--squares", type=int, nargs="+", default=list(SQUARES), help="sides of the large products"
    )
    parser.add_argument("--copied", type=int, default=COPIED, help="MB copied for the bandwidth")
    parser.add_argument("--page", type=Path, default=PAGE, help="file for the page")
    parser.add_argument("--out", type=Path, default=OUT, help="file for the figures as JSON")
    parser.add_argument("--minutes", type=float, default=8, help="when to end with what it has")
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave torch.compile out: minutes",
    )
    parser.add_argument("--fit", type=int, default=1000, help="classes of the whole fit; 0: none")
    options = parser.parse_args()
    try:
        device = find_device(options.device)
    except UserError:
        print(f"gpu.py: no GPU {options.device} here; --device cpu tries it", file=sys.stderr)
        raise SystemExit(2) from None
    end = time.monotonic() + 60 * options.minutes
    card, about, failed = card_of(options, device)
    rows: list[Row] = []
    ways = lineup(options)
    result: dict[str, Any] = {
        "gflops": card.gflops, "gb_a_second": card.bandwidth / 1e9, "rows": rows, **about,
        "backbone": options.backbone, "seed": options.seed, "repeat": options.repeat,
        "planned": len(ways), "first_failure": failed, "machine": machine(),
    }  # fmt: skip
    for way in ways:
        left = min(60 * ROW_MINUTES, end - time.monotonic())
        if left < ROW_SECONDS:
            break
        row, failure = one_row(options, card, way, left)
        rows.append(row)
        note(" ".join(f"{key}={row[key]}" for key in KEYS if row.get(key) is not None))
        if failure and not result["first_failure"]:
            result["first_failure"] = {"what": row["what"], "text": failure}
            print(f"gpu.py: the first failure, {row['what']}:\n{failure}", file=sys.stderr)
        write_text(options.out, json.dumps(result, indent=1) + "\n")
        write_text(options.page, page_of(result))
    show(options, result, KEYS, [{key: row.get(key) for key in KEYS} for row in rows])


def card_of(options: argparse.Namespace, device: torch.device) -> tuple[Card, Row, Row | None]:
    """Return the card's rates, what it is, and the failure if they could not be measured: rows then
    have no roofline. A quarter of the minutes is theirs at most."""
    try:
        return *apart(look, options, device, seconds=15 * options.minutes), None
    except (ChildProcessError, TimeoutError) as error:
        print(f"gpu.py: no rates of the card: {error}", file=sys.stderr)
        card = Card(device, dict.fromkeys(FORMATS), 0.0)
        return card, {"device": str(device)}, {"what": "rates of the card", "text": str(error)}


@dataclass(frozen=True)
class Way:
    """What a row measures: a step, encoding of images, or a fit, by a variant in a format."""

    what: str
    variant: str
    name: str
    batch: int
    classes: int | None = None

    @property
    def about(self) -> Row:
        parts = dict.fromkeys((self.what, self.variant, self.name))  # a fit has no variants
        return {"what": ", ".join(parts), "classes": self.classes, "batch": self.batch}


def lineup(options: argparse.Namespace) -> list[Way]:
    """Return the rows, those that say most first: eager before compiled, 128 images before
    others."""
    found = []
    for batch in options.batch:
        for variant, name in [*ways_of(options), ("reference", "fp32")]:
            found += [Way("step", variant, name, batch, classes) for classes in options.classes]
        # as users get them: images are encoded in float32, by products in TF32
        kinds = [variant for variant, name in ways_of(options) if name == "fp32"]
        found += [Way("images", variant, "fp32", batch) for variant in kinds]
    if options.fit:
        found += [
            Way("fit", "fit", name, min(16, options.fit), options.fit) for name in ("fp32", "bf16")
        ]
    return sorted(found, key=lambda way: (STAGES[way.variant], way.batch != FIRST_BATCH))


def one_row(options: argparse.Namespace, card: Card, way: Way, seconds: float) -> tuple[Row, str]:
    """Return the row of a way, and the text of its failure, if it failed or its process died."""
    try:
        row, failure = apart(measure, options, card, way, seconds=seconds)
    except (ChildProcessError, TimeoutError) as error:
        row, failure = {"note": f"{type(error).__name__}: {error}"}, str(error)
    return way.about | row, failure


# ---- a process of its own ----


def apart(function: Callable[..., Any], *inputs: object, seconds: float) -> Any:
    """Return what a function returns in a process of its own.

    Raises ChildProcessError if that died, and TimeoutError if it did not end in time.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["torch", "open_clip", "rmadapter.methods.rmadapter"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, inputs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise TimeoutError(f"no end after {seconds:.0f} seconds")
        return ours.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(f"its process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _answer(pipe: Connection, function: Callable[..., Any], inputs: Sequence[object]) -> None:
    end_with_parent()
    pipe.send(function(*inputs))


def look(options: argparse.Namespace, device: torch.device) -> tuple[Card, Row]:
    """Measure what the card reaches, and say which one it is."""
    set_up(options)
    allow_tf32(device)
    peaks = {name: rate(device, kind, options) for name, kind in FORMATS.items()}
    about = {"device": describe(device)["device"], "tf32": torch.backends.cuda.matmul.allow_tf32}
    return Card(device, peaks, bandwidth(device, options)), about


def measure(options: argparse.Namespace, card: Card, way: Way) -> tuple[Row, str]:
    """Return the figures of a row, and the text of its failure: too little memory, a format or a
    kernel that the card lacks, no compiler."""
    set_up(options)
    allow_tf32(card.device)
    try:
        return (fitted if way.what == "fit" else row_of)(options, card, way), ""
    except Exception as error:
        line = str(error).partition("\n")[0][:120]
        return {"note": f"{type(error).__name__}: {line}"}, traceback.format_exc()


@dataclass(frozen=True)
class Card:
    """A device and what it reached in this run: gigaflops a second of large products by format,
    None where it has none, and bytes a second that a copy reads and writes."""

    device: torch.device
    gflops: dict[str, float | None]
    bandwidth: float

    def least(self, cost: Cost, name: str) -> float | None:
        """Return the seconds of the roofline."""
        gflops = self.gflops[name]
        if not gflops:
            return None
        return max(cost.operations / gflops / 1e9, cost.bytes / self.bandwidth)


@dataclass(frozen=True)
class Cost:
    """What cannot be avoided: operations of products, and bytes of inputs and frozen weights."""

    operations: int
    bytes: int


def row_of(options: argparse.Namespace, card: Card, way: Way) -> Row:
    """Measure a step, or the encoding of images."""
    backbone = load_backbone(options.backbone).to(card.device)
    step = Step(backbone, way.classes or min(options.classes), way.batch, options.seed)
    step.images, step.labels = step.images.to(card.device), step.labels.to(card.device)
    if way.what == "step":
        states = frozen(step)
        operations = sum(step_work(step.model, *states).values())
        cost = Cost(operations, step_bytes(step, FORMATS[way.name], states))
        return timed(options, card, way, cost, partial(training, step, way.variant, way.name))
    operations = counted(encoding(step, "lean"))
    size = nbytes(backbone.image.visual.parameters(), torch.float32)
    cost = Cost(operations, size + step.images.nbytes)
    return timed(options, card, way, cost, partial(encoding, step, way.variant))


def fitted(options: argparse.Namespace, card: Card, way: Way) -> Row:
    """Fit RMAdapter for an epoch on images of noise, one of each class."""
    classes = way.classes or 0
    backbone = load_backbone(options.backbone)
    images = noise(classes, classes, backbone.image_size, options.seed)
    values = {"shots": 1, "device": str(card.device), "precision": way.name, "epochs": 1}
    values |= {"backbone": backbone.name, "batch_size": way.batch}
    request = Request.make(values, "rmadapter", data="noise")
    lab = Lab(request.machine, progress=False)
    lab.add_backbone(backbone)
    lab.add("noise", {"all": images})
    reset_peak(card.device)
    begun = time.perf_counter()
    record = run_task(request.task, request.method, lab, request.name).record
    seconds = record.step_seconds
    assert seconds
    memory = peak(card.device)
    return {
        "seconds": seconds, "whole_seconds": time.perf_counter() - begun,
        "images_per_second": way.batch / seconds, "share_of_rate": None,
        "peak_mb": memory["peak_gpu_mb"] or memory["peak_mb"],
    }  # fmt: skip


def ways_of(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return ways to run the lean pass, each with a format: float16 only eagerly, since scaling
    reads whether a step overflowed. The eager ones come first, as they cast the frozen weights."""
    found = [("lean", name) for name in FORMATS]
    others = ("graph", *MODES) if options.compile else ("graph",)
    return found + [(way, name) for way in others for name in ("fp32", "bf16")]


def frozen(step: Step) -> tuple[States, States]:
    """Compute frozen states with all prompts in one chunk, as their work is counted."""
    model = step.model
    return model.frozen(step.images), model.backbone.text.frozen(step.tokens, model.first("text"))


def nbytes(tensors: Iterable[Tensor], kind: torch.dtype) -> int:
    """Return the bytes of tensors in a format."""
    return sum(tensor.numel() for tensor in tensors) * kind.itemsize


def step_bytes(step: Step, kind: torch.dtype, states: Sequence[States]) -> int:
    """Return the bytes of a step's frozen states, and twice those of the blocks that it runs: they
    are read forward and backward."""
    model, total = step.model, 0
    for side, one in zip(("image", "text"), states, strict=True):
        blocks = model.encoders[side].blocks[model.first(side) :]
        weights = [weight for block in blocks for weight in block.parameters()]
        total += 2 * nbytes(weights, kind) + nbytes([one.x, one.y], kind)
    return total


def counted(run: Callable[[], object]) -> int:
    """Return the operations of a call's products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


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
        call: Any = anew(model, variant) if variant in MODES else model

        def loss() -> Tensor:
            return call(step.labels, image, text)["loss"]

    scaler = torch.amp.GradScaler(device.type, enabled=kind == torch.float16)
    optimizer = step.optimizer
    if device.type == "cuda" or variant == "graph":  # fused on a GPU, as in training
        optimizer = step.recipe.make(model.adapters.parameters(), fused=device.type == "cuda")
    if variant == "graph":
        for group in optimizer.param_groups:
            group["capturable"] = True  # it counts its steps on the device

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            found = loss()
        scaler.scale(found).backward()
        scaler.step(optimizer)
        scaler.update()

    return captured(run, device) if variant == "graph" else run


def anew(function: Callable[..., Any], variant: str) -> Callable[..., Any]:
    """Compile a function as training does, for the sizes of its inputs alone: torch would make one
    that was compiled for others before fit all sizes."""
    torch.compiler.reset()
    call = compiled(function, graphs=variant == "reduce-overhead")

    def run(*inputs: object) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # nothing that the last call returned is used
        return call(*inputs)

    return run


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Run a call three times, and return a function that repeats it as one CUDA graph, on the same
    tensors."""
    if device.type != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def lower(states: States, kind: torch.dtype) -> States:
    """Convert tokens to a format; features stay in float32."""
    return States(
        states.first, states.layout, states.features, states.x.to(kind), states.y.to(kind)
    )


def encoding(step: Step, variant: str) -> Callable[[], object]:
    """Return a function that makes adapted features of a batch of images from their pixels."""
    model, device = step.model, step.images.device
    image = model.backbone.image

    @torch.no_grad()
    def run() -> Tensor:
        states = image.frozen(step.images, model.first("image"), features=False)
        return model.features("image", states)[0]

    if variant in MODES:
        return anew(run, variant)
    return captured(run, device) if variant == "graph" else run


def timed(
    options: argparse.Namespace, card: Card, way: Way, cost: Cost,
    make: Callable[[], Callable[[], object]],
) -> Row:  # fmt: skip
    """Time a call. The first two, which may compile, do not count."""
    device, run, spent = card.device, make(), []
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
    seconds = statistics.median(spent)
    memory = peak(device)
    gflops = card.gflops[way.name]
    share = cost.operations / seconds / 1e9 / gflops if gflops else None
    return {
        "seconds": seconds, "least_seconds": min(spent), "first_two_seconds": first,
        "share_of_rate": share, "roofline_seconds": card.least(cost, way.name),
        "images_per_second": way.batch / seconds,
        "peak_mb": memory["peak_gpu_mb"] or memory["peak_mb"],
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


def bandwidth(device: torch.device, options: argparse.Namespace) -> float:
    """Measure the bytes a second that a copy of a large tensor reads and writes, at best."""
    source = torch.zeros(options.copied * 1_000_000, dtype=torch.uint8, device=device)
    target, spent = torch.empty_like(source), []
    for turn in range(6):
        begun = time.perf_counter()
        target.copy_(source)
        wait(device)
        if turn:
            spent.append(time.perf_counter() - begun)
    return 2 * source.nbytes / min(spent)


def page_of(result: dict[str, Any]) -> str:
    """Return the page: what was measured where, and a row for each way."""
    rates = [f"{name} {rate:,.0f}" for name, rate in result["gflops"].items() if rate]
    software = result["machine"]
    lines = [
        "# A training step and encoding on a GPU",
        "",
        f"{result['backbone']} on {result['device']}, torch {software['torch']}, "
        f"{software['platform']}; medians of {result['repeat']} by `benchmarks/gpu.py`.",
        f"Rates in this run: {', '.join(rates)} gigaflops a second in large square products; "
        f"{result['gb_a_second']:,.0f} GB a second read and written by a copy.",
        "The roofline is the time of a row's necessary products or bytes at these rates, whichever "
        "is more.",
        f"{len(result['rows'])} of {result['planned']} rows were measured, each in a process of "
        "its own.",
    ]
    if failure := result["first_failure"]:
        lines += ["", f"The first failure, {failure['what']}:", ""]
        lines += [f"    {line}" for line in failure["text"].splitlines()]
    heads = [key.replace("_", " ") for key in KEYS]
    return "\n".join(lines) + "\n" + table("Ways", heads, [*map(cells_of, result["rows"])])


def cells_of(row: Row) -> list[str]:
    values = [row.get(key) for key in KEYS]
    shown = [f"{value:.3g}" if isinstance(value, float) else value for value in values]
    return ["" if value is None else str(value).replace("|", "/") for value in shown]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
