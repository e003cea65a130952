"""Time and memory of a whole training step: the lean forward pass against the backbone's own with hooks.

    python benchmarks/train_step.py --backbone ViT-B-16/none --classes 50 200 1000 --json

A step is forward, backward and optimizer. As in training, frozen activations are there already for the lean pass, and
untouched features for the reference. In one run and in turns: lean step, reference step, large square float32 products
(the best of them is the machine's rate) and products of the step's own shapes. `matmul_share` is the share of that
rate which the step's necessary work (work.py) reaches. Peak memory is that of one step in a fresh process, beyond
the loaded model and with the step's inputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import psutil
import torch
from common import (
    SQUARES,
    Step,
    arguments,
    in_fresh_process,
    interleaved,
    machine,
    medians,
    passed_on,
    product,
    rates,
    set_up,
    step_peak,
    table,
    timed,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from work import step_work, tokens_of

from rmadapter.backbone import load_backbone

BUDGET = 240.0  # seconds of interleaved rounds per class count; three rounds are measured in any case
PER_ROUND = 4  # lean steps for one reference step
CHUNK = 250  # prompts of the reference at once, where all do not fit
KEYS = ["classes", "lean_seconds", "reference_seconds", "ratio", "matmul_share", "max_gradient_difference"]
KEYS += ["lean_peak_mb", "reference_peak_mb"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--chunk", type=int, help="prompts the reference encodes at once, 0 for all; default: by need")
    parser.add_argument("--peak", choices=["lean", "reference"], help="only print the peak memory of one variant")
    parser.set_defaults(repeat=12)
    options = parser.parse_args()
    set_up(options)
    if options.peak:
        print(json.dumps(step_peak(make_step(options, options.classes[0]), options.peak)))
        return
    about = machine()
    results = [measure(options, classes) | {"machine": about} for classes in options.classes]
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        show(results)


def make_step(options: argparse.Namespace, classes: int) -> Step:
    backbone = load_backbone(options.backbone)
    step = Step(backbone, classes, options.batch, options.seed, options.chunk or 0)
    if options.chunk is None and reference_need(step) > 0.8 * psutil.virtual_memory().available:
        step = Step(backbone, classes, options.batch, options.seed, CHUNK)
    return step


def reference_need(step: Step) -> float:
    """Bytes the reference keeps for its backward pass, as measured: 14 numbers per width, token and adapted block."""
    tower = step.model.towers["text"]
    return 4 * 14 * step.tokens.numel() * tower.width * (tower.depth + 1 - tower.first)


def measure(options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """All figures of one number of classes."""
    carried = passed_on(options, "backbone", "batch", "seed", "threads", "allocator", "chunk")
    peaks = {}
    for variant in ("lean", "reference"):
        peaks[variant] = in_fresh_process(__file__, *carried, "--classes", str(classes), "--peak", variant)
    step = make_step(options, classes)
    work, _ = step_work(step.model, *step.frozen()), step.untouched()
    executed, gradients = {}, {}
    for variant in ("lean", "reference"):  # warms up, too
        with FlopCounterMode(display=False) as counter:
            gradients[variant] = step.gradients(variant)
        executed[variant] = counter.get_total_flops()
    difference = largest_difference(gradients["lean"], gradients["reference"])
    shapes = [*((n, n, n) for n in SQUARES), *own_shapes(step)]
    products = [(f"{m} x {k} x {n}", product(m, k, n)) for m, k, n in shapes]
    # The lean step and the products it is measured by stand side by side, more often than the long reference step.
    turns = [("lean", step.run("lean")), *products] * PER_ROUND + [("reference", step.run("reference"))]
    seconds = interleaved(turns, options.repeat, BUDGET, f"{classes} classes", warm_up=False)
    spent = medians(seconds)
    speeds = rates(spent)
    rate = max(speeds[f"{n} x {n} x {n}"] for n in SQUARES)
    extra = timed(lambda: encode_prompts(step)) if step.chunk else 0.0
    return {
        "classes": classes,
        "lean_seconds": spent["lean"],
        "reference_seconds": spent["reference"],
        "ratio": spent["reference"] / spent["lean"],
        "matmul_share": sum(work.values()) / spent["lean"] / 1e9 / rate,
        "max_gradient_difference": difference,
        "lean_peak_mb": peaks["lean"],
        "reference_peak_mb": peaks["reference"],
        "lean_flops": sum(work.values()),
        "lean_flops_by_part": work,
        "lean_flops_executed": executed["lean"],
        "reference_flops_executed": executed["reference"],
        "matmul_gflops": rate,
        "matmul_gflops_by_shape": speeds,
        "all_seconds": seconds,
        "reference": f"prompts encoded {step.chunk} at once, and again in the backward pass (gradient checkpointing)"
        if step.chunk
        else "all prompts encoded at once, no gradient checkpointing",
        "ratio_without_recomputation": (spent["reference"] - extra) / spent["lean"],
        "backbone": options.backbone,
        "batch": options.batch,
        "seed": options.seed,
        "allocator": options.allocator,
    }


@torch.no_grad()
def encode_prompts(step: Step) -> None:
    """What checkpointing adds to the reference: every prompt goes forward a second time."""
    for chunk in step.tokens.split(step.chunk):
        step.model.encode_text(chunk)


def own_shapes(step: Step) -> list[tuple[int, int, int]]:
    """The largest products of the step: tokens of either encoder times the largest matrix of a block."""
    shapes = []
    for side, states in zip(("image", "text"), step.frozen(), strict=True):
        largest = max((p for p in step.model.towers[side].modules[-1].parameters() if p.ndim == 2), key=Tensor.numel)
        outputs, inputs = largest.shape
        shapes.append((tokens_of(states).all, inputs, outputs))
    return shapes


def largest_difference(lean: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest |lean - reference| / |reference| over the gradients of all adapter tensors, by norm.

    A gradient ten thousand times smaller than the largest one is a difference of large numbers, which rounding
    decides; it is compared with that floor.
    """
    if lean.keys() != reference.keys():
        raise SystemExit("the two forward passes do not reach the same parameters")
    norms = {name: float(gradient.norm()) for name, gradient in reference.items()}
    floor = 1e-4 * max(norms.values())
    return max(float((lean[name] - reference[name]).norm()) / max(norms[name], floor) for name in norms)


def show(results: list[dict[str, Any]]) -> None:
    columns = ("classes", "lean s", "reference s", "ratio", "matmul share", "difference", "lean MB", "reference MB")
    keys = ["classes", "lean_seconds", "reference_seconds", "ratio", "matmul_share", "max_gradient_difference"]
    keys += ["lean_peak_mb", "reference_peak_mb"]
    table(
        columns, [[result[key] for key in keys] for result in results], f"{results[0]['backbone']}, one training step"
    )
    print(json.dumps(results[0]["machine"]), file=sys.stderr)


if __name__ == "__main__":
    main()
