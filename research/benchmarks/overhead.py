"""Measure the cost of the reconstruction branch itself: RMAdapter against the same adapter without
it (paper, Table 7).

    python research/benchmarks/overhead.py --json

Parameters, processor time of a training step and peak memory, with the branch and with
lambda_image_rec = lambda_text_rec = 0, by the lean and by the reference forward pass, all four in
turns; beside them, what the paper reports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from common import MB, arguments, in_fresh_process, interleaved, set_up, setting, show
from step import VARIANTS, Step

from rmadapter.backbones import load_backbone

# Lin et al., AAAI-26 (arXiv 2512.06811), Table 7: cost added by the reconstruction branch,
# ViT-B/16.
PAPER = {"added_parameters": 320_000, "memory_percent": 3.0, "time_percent": 5.0}
KINDS: dict[str, dict[str, Any]] = {
    "with": {},
    "without": {"lambda_image_rec": 0.0, "lambda_text_rec": 0.0},
}
NAMES = [f"{variant}:{kind}" for variant in VARIANTS for kind in KINDS]


def main() -> None:
    parser = arguments(__doc__, "classes", "batch")
    parser.add_argument("--peak", choices=NAMES, help="only print the peak memory of one")
    options = parser.parse_args()
    set_up(options)
    if options.peak:
        variant, kind = options.peak.split(":")
        print(json.dumps(make_steps(options)[kind].peak(variant)))
        return
    result = measure(options)
    rows = [{"forward": "paper", "peak_percent": "", **PAPER}]
    rows += [
        {"forward": v, "added_parameters": result["added_parameters"], **result[v]}
        for v in VARIANTS
    ]
    show(
        options,
        result,
        ("forward", "added_parameters", "time_percent", "peak_percent", "memory_percent"),
        rows,
    )


def make_steps(options: argparse.Namespace) -> dict[str, Step]:
    backbone = load_backbone(options.backbone)
    return {
        k: Step(backbone, options.classes, options.batch, options.seed, **f)
        for k, f in KINDS.items()
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    about = setting(options, "classes", "batch")
    classes = str(options.classes)
    peaks = {
        name: in_fresh_process(__file__, options, "--classes", classes, "--peak", name)
        for name in NAMES
    }
    steps = make_steps(options)
    runs = {
        f"{variant}:{kind}": step.run(variant)
        for variant in VARIANTS
        for kind, step in steps.items()
    }
    seconds = interleaved(runs, options.repeat, text="training steps", clock=time.process_time)
    model = steps["with"].model
    trainable, added = model.adapters.parameter_counts()
    weights = sum(p.numel() * p.element_size() for p in model.clip.parameters()) / MB
    return {
        "added_parameters": added,
        "trainable_parameters": trainable,
        "paper": PAPER,
        **{variant: compare(variant, seconds, peaks, weights) for variant in VARIANTS},
        "weights_mb": weights,
        "seconds_all": seconds,
        **about,
    }


def compare(
    variant: str, spent: dict[str, list[float]], peaks: dict[str, float | None], weights: float
) -> dict[str, float | None]:
    """Measure one forward pass, and by what percent the branch raises the figures; for time, the
    median over rounds."""
    more, less = (spent[f"{variant}:{kind}"] for kind in KINDS)
    ratio = statistics.median(a / b for a, b in zip(more, less, strict=True))
    high, low = (peaks[f"{variant}:{kind}"] for kind in KINDS)
    return {
        "with_seconds": statistics.median(more),
        "without_seconds": statistics.median(less),
        "time_percent": 100 * (ratio - 1),
        "with_peak_mb": high,
        "without_peak_mb": low,
        "peak_percent": 100 * (high / low - 1) if high and low else None,
        # The paper's memory is that of the whole device, the backbone's weights included.
        "memory_percent": 100 * ((high + weights) / (low + weights) - 1) if high and low else None,
    }


if __name__ == "__main__":
    main()
