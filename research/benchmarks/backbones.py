"""Measure what backbones cost beside each other: CPU milliseconds an image, and megabytes.

    python research/benchmarks/backbones.py --json

The image encoders of architectures with random weights, in float32, in batches of 8, in turns in
one process; `times` is how many images each encodes in the time of one of the last architecture.
`rmadapter backbones --speed` measures the same by the clock, on the user's machine.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from common import Run, arguments, interleaved, medians, set_up, setting, show

from rmadapter.backbones import load_backbone
from rmadapter.backbones.speed import BATCH_SIZE, megabytes_of

KEYS = ("architecture", "pixels", "cpu_ms_per_image", "times", "megabytes")


def main() -> None:
    parser = arguments(__doc__, repeat=5)
    parser.add_argument(
        "--architectures", nargs="+", default=["MobileCLIP2-S0", "ViT-B-32", "ViT-B-16"]
    )
    options = parser.parse_args()
    set_up(options)
    rows = measure(options)
    show(options, {"rows": rows, **setting(options)}, KEYS, rows)


@torch.no_grad()
def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a row for each architecture."""
    backbones = {name: load_backbone(f"{name}/none") for name in options.architectures}
    runs: dict[str, Run] = {}
    for name, backbone in backbones.items():
        pixels = torch.randn(BATCH_SIZE, 3, backbone.image_size, backbone.image_size)
        runs[name] = partial(backbone.image.frozen, pixels)
    spent = medians(interleaved(runs, options.repeat, text="encoding", clock=time.process_time))
    last = spent[options.architectures[-1]]
    return [
        {
            "architecture": name,
            "pixels": backbone.image_size,
            "cpu_ms_per_image": 1e3 * spent[name] / BATCH_SIZE,
            "times": last / spent[name],
            "megabytes": megabytes_of(backbone),
        }
        for name, backbone in backbones.items()
    ]


if __name__ == "__main__":
    main()
