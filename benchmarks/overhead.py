"""The cost of the reconstruction branch itself: RMAdapter against the same adapter without it (paper, Table 7).

    python benchmarks/overhead.py --json

Parameters, time of a training step and peak memory, with the branch and with lambda_image_rec = lambda_text_rec = 0, by
the lean and by the reference forward pass, all four in turns. Beside them what the paper reports.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from common import (
    MB,
    Step,
    arguments,
    in_fresh_process,
    interleaved,
    machine,
    medians,
    passed_on,
    set_up,
    step_peak,
    table,
)

from rmadapter.backbone import load_backbone

# Lin et al., AAAI-26 (arXiv 2512.06811), Table 7: cost added by the reconstruction branch, ViT-B/16.
PAPER = {"added_parameters": 320_000, "memory_percent": 3.0, "time_percent": 5.0}
WITHOUT: dict[str, Any] = {"lambda_image_rec": 0.0, "lambda_text_rec": 0.0}
WITH: dict[str, Any] = {}
FORWARDS = ("lean", "reference")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--peak", choices=[f"{f}:{k}" for f in FORWARDS for k in ("with", "without")], help="of one")
    options = parser.parse_args()
    set_up(options)
    if options.peak:
        forward, kind = options.peak.split(":")
        print(json.dumps(step_peak(make_steps(options)[kind], forward)))
        return
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


def make_steps(options: argparse.Namespace) -> dict[str, Step]:
    backbone = load_backbone(options.backbone)
    return {
        kind: Step(backbone, options.classes, options.batch, options.seed, **fields)
        for kind, fields in (("with", WITH), ("without", WITHOUT))
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    about = machine()
    names = [f"{forward}:{kind}" for forward in FORWARDS for kind in ("with", "without")]
    carried = passed_on(options, "backbone", "batch", "seed", "threads", "allocator", "classes")
    peaks = {name: in_fresh_process(__file__, *carried, "--peak", name) for name in names}
    steps = make_steps(options)
    seconds = interleaved(
        {f"{forward}:{kind}": step.run(forward) for forward in FORWARDS for kind, step in steps.items()},
        options.repeat,
        text="training steps",
    )
    spent = medians(seconds)
    counts = steps["with"].model.adapters.parameter_counts()
    weights = sum(p.numel() * p.element_size() for p in steps["with"].model.clip.parameters()) / MB
    return {
        "added_parameters": counts["reconstruction"],
        "trainable_parameters": counts["trainable"],
        "paper": PAPER,
        **{forward: compare(forward, spent, peaks, weights) for forward in FORWARDS},
        "weights_mb": weights,
        "seconds_all": seconds,
        "backbone": options.backbone,
        "classes": options.classes,
        "batch": options.batch,
        "seed": options.seed,
        "allocator": options.allocator,
        "machine": about,
    }


def compare(forward: str, spent: dict[str, float], peaks: dict[str, float], weights: float) -> dict[str, float]:
    """Figures of one forward pass; percent by which the branch raises them."""
    time, memory = ([of[f"{forward}:{kind}"] for kind in ("with", "without")] for of in (spent, peaks))
    return {
        "with_seconds": time[0],
        "without_seconds": time[1],
        "time_percent": 100 * (time[0] / time[1] - 1),
        "with_peak_mb": memory[0],
        "without_peak_mb": memory[1],
        "peak_percent": 100 * (memory[0] / memory[1] - 1),
        # The paper's memory is that of the whole device, the backbone's weights included.
        "memory_percent": 100 * ((memory[0] + weights) / (memory[1] + weights) - 1),
    }


def show(result: dict[str, Any]) -> None:
    rows: list[tuple[Any, ...]] = [
        ("added parameters", result["added_parameters"], result["added_parameters"], PAPER["added_parameters"])
    ]
    for key, text in (
        ("memory_percent", "memory, %"),
        ("peak_percent", "of it for the step, %"),
        ("time_percent", "time, %"),
    ):
        rows.append((text, *(result[forward][key] for forward in FORWARDS), PAPER.get(key, "")))
    table(("added by reconstruction", *FORWARDS, "paper"), rows, f"{result['backbone']}, {result['classes']} classes")
    print(json.dumps(result["machine"]), file=sys.stderr)


if __name__ == "__main__":
    main()
