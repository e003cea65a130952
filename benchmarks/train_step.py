"""Measure time and memory of a whole training step: the lean forward pass against the backbone's
own with hooks.

    python benchmarks/train_step.py --backbone ViT-B-16/none --classes 50 200 1000 --json

A step is forward, backward and optimizer; `mixed` is lean in bfloat16, as `precision=bf16` trains.
As in training, the lean pass is given frozen activations, and the reference untouched features. In
one run and in turns: lean step, mixed step, reference step, large square products (the best in
float32 is the machine's rate) and products of the step's own shapes. `matmul_share` is the share of
that rate that the lean step's necessary work (work.py) reaches. Peak memory is that of one step in
a fresh process, beyond the loaded model and with its inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from typing import Any

import torch
from common import Run, arguments, in_fresh_process, interleaved, medians, set_up, setting, show
from step import MIXED, VARIANTS, Step
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from work import step_work, tokens_of

from rmadapter.backbones import load_backbone

ALL = (*VARIANTS, MIXED)
SQUARES = (
    1024,
    2048,
    4096,
)  # sides of the large square products; the best of them is the machine's rate
BUDGET = (
    240.0  # seconds of interleaved rounds per class count; three rounds are measured in any case
)
PER_ROUND = 4  # lean steps for one reference step
HALF = "bfloat16"  # the largest square product in that number format
CHUNK = 250  # prompts of the reference at once, where all do not fit
KEYS = [
    "classes", "lean_seconds", "mixed_seconds", "reference_seconds", "ratio", "mixed_ratio",
    "matmul_share",
]  # fmt: skip
KEYS += ["max_gradient_difference", "lean_peak_mb", "mixed_peak_mb", "reference_peak_mb"]


def main() -> None:
    parser = arguments(__doc__, "batch", repeat=12)
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[50, 200, 1000], help="class names in the prompts"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        help="prompts the reference encodes at once, 0 for all; default: by need",
    )
    parser.add_argument("--peak", choices=ALL, help="only print the peak memory of one variant")
    options = parser.parse_args()
    set_up(options)
    if options.peak:
        print(json.dumps(make_step(options, options.classes[0]).peak(options.peak)))
        return
    about = setting(options, "batch")
    results = [measure(options, classes) | about for classes in options.classes]
    show(options, results, KEYS, results)


def make_step(options: argparse.Namespace, classes: int) -> Step:
    backbone = load_backbone(options.backbone)
    step = Step(backbone, classes, options.batch, options.seed, options.chunk or 0)
    if options.chunk is None and reference_need(step) > 0.8 * free_memory():
        step = Step(backbone, classes, options.batch, options.seed, CHUNK)
    return step


def free_memory() -> float:
    """Return the free bytes; infinite if the system does not tell."""
    return (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        if hasattr(os, "sysconf")
        else float("inf")
    )


def reference_need(step: Step) -> float:
    """Return the bytes that the reference keeps for its backward pass, as measured: 14 numbers per
    width, token and adapted block."""
    encoder = step.model.backbone.text
    return (
        4
        * 14
        * step.tokens.numel()
        * encoder.width
        * (encoder.depth + 1 - step.model.first("text"))
    )


def measure(options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """Measure all figures of one number of classes."""
    more = [
        "--classes",
        str(classes),
        *(["--chunk", str(options.chunk)] if options.chunk is not None else []),
    ]
    peaks = {f"{v}_peak_mb": in_fresh_process(__file__, options, *more, "--peak", v) for v in ALL}
    step = make_step(options, classes)
    step.untouched()
    work = step_work(step.model, *step.frozen())
    executed, gradients = {}, {}
    for variant in ALL:  # warms up, too
        with FlopCounterMode(display=False) as counter:
            gradients[variant] = step.gradients(variant)
        executed[f"{variant}_flops_executed"] = counter.get_total_flops()
    shapes = [*((n, n, n) for n in SQUARES), *own_shapes(step)]
    products = [(f"{m} x {k} x {n}", product(m, k, n)) for m, k, n in shapes]
    half = max(SQUARES)
    products.append((HALF, product(half, half, half, torch.bfloat16)))
    # The lean steps and the products they are measured by stand side by side, more often than the
    # long reference step.
    often = [*((name, step.run(name)) for name in ("lean", MIXED)), *products]
    turns = often * PER_ROUND + [("reference", step.run("reference"))]
    seconds = interleaved(turns, options.repeat, BUDGET, f"{classes} classes", warm_up=False)
    spent = medians(seconds)
    speeds = rates(spent)
    rate = max(speeds[f"{n} x {n} x {n}"] for n in SQUARES)
    extra = encode_prompts(step)
    return {
        "classes": classes,
        **{f"{variant}_seconds": spent[variant] for variant in ALL},
        "ratio": spent["reference"] / spent["lean"],
        "mixed_ratio": spent["lean"] / spent["mixed"],
        "matmul_share": sum(work.values()) / spent["lean"] / 1e9 / rate,
        "max_gradient_difference": largest_difference(gradients["lean"], gradients["reference"]),
        "mixed_gradient_difference": largest_difference(gradients["mixed"], gradients["lean"]),
        **peaks,
        "lean_flops": sum(work.values()),
        "lean_flops_by_part": work,
        **executed,
        "matmul_gflops": rate,
        "matmul_gflops_bf16": 2 * half**3 / spent[HALF] / 1e9,
        "matmul_gflops_by_shape": speeds,
        "all_seconds": seconds,
        "prompts_at_once": step.chunk or classes,  # a chunk is encoded again in the backward pass
        "ratio_without_recomputation": (spent["reference"] - extra) / spent["lean"],
    }


@torch.no_grad()
def encode_prompts(step: Step) -> float:
    """Measure the seconds that checkpointing adds to the reference: every prompt goes forward a
    second time."""
    begun = time.perf_counter()
    for chunk in step.tokens.split(step.chunk) if step.chunk else ():
        step.model.encode_text(chunk)
    return time.perf_counter() - begun


def product(rows: int, inner: int, columns: int, kind: torch.dtype = torch.float32) -> Run:
    """Make a matrix product [rows, inner] @ [inner, columns] into preallocated memory."""
    a, b, out = (
        torch.rand(shape).to(kind) for shape in ((rows, inner), (inner, columns), (rows, columns))
    )
    return lambda: torch.mm(a, b, out=out)


def rates(seconds: dict[str, float]) -> dict[str, float]:
    """Return gigaflops per second of the products among some timings, by shape."""
    found = {}
    for name, spent in seconds.items():
        if shape := re.fullmatch(r"(\d+) x (\d+) x (\d+)", name):
            rows, inner, columns = map(int, shape.groups())
            found[name] = 2 * rows * inner * columns / spent / 1e9
    return found


def own_shapes(step: Step) -> list[tuple[int, int, int]]:
    """Return the largest products of the step: tokens of either encoder times the largest matrix of
    a block."""
    shapes = []
    for encoder, states in zip(step.model.encoders.values(), step.frozen(), strict=True):
        largest = max((p for p in encoder.blocks[-1].parameters() if p.ndim == 2), key=Tensor.numel)
        outputs, inputs = largest.shape
        shapes.append((tokens_of(states).all, inputs, outputs))
    return shapes


def largest_difference(lean: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return the largest |lean - reference| / |reference| over the gradients of all adapter
    tensors, by norm.

    A gradient ten thousand times smaller than the largest one is a difference of large numbers,
    which rounding decides; it is compared with that floor. In float32 the rest is rounding too, of
    which another processor makes more or less: that the function is the same is shown in float64,
    by tests/encoders/test_encoder.py.
    """
    if lean.keys() != reference.keys():
        raise SystemExit("the two forward passes do not reach the same parameters")
    norms = {name: float(gradient.norm()) for name, gradient in reference.items()}
    floor = 1e-4 * max(norms.values())
    return max(
        float((lean[name] - reference[name]).norm()) / max(norms[name], floor) for name in norms
    )


if __name__ == "__main__":
    main()
