"""Images per second of the adapted model against the untouched open_clip model, in turns.

    python benchmarks/inference.py --batches 1 32 --json

Both take image tensors and give features. The adapted model is `AdaptedCLIP.encode_image`, which attaches the adapters
and detaches them again in every call.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from common import arguments, interleaved, machine, medians, set_up, table

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.config import Config
from rmadapter.model import AdaptedCLIP


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="images at once")
    parser.set_defaults(repeat=21)
    options = parser.parse_args()
    set_up(options)
    about = machine()
    backbone = load_backbone(options.backbone)
    results = [measure(options, backbone, size) | {"machine": about} for size in options.batches]
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        keys = ["batch", "adapted_images_per_second", "untouched_images_per_second", "ratio", "cost_percent"]
        table([key.replace("_", " ") for key in keys], [[result[key] for key in keys] for result in results])
        print(json.dumps(about), file=sys.stderr)


def measure(options: argparse.Namespace, backbone: Backbone, size: int) -> dict[str, Any]:
    """Figures of one batch size. ratio: adapted / untouched images per second; cost_percent: time added."""
    model = AdaptedCLIP(backbone, Config.make({"init": "kaiming", "seed": options.seed})).eval()
    images = torch.randn(size, 3, backbone.image_size, backbone.image_size)
    untouched: Any = backbone.model
    with torch.inference_mode():
        if torch.equal(model.encode_image(images), untouched.encode_image(images)):
            raise SystemExit("the adapters change nothing: nothing to measure")
        seconds = interleaved(
            {"adapted": lambda: model.encode_image(images), "untouched": lambda: untouched.encode_image(images)},
            options.repeat,
            text=f"batches of {size}",
        )
    spent = medians(seconds)
    # Of each pair that ran one after the other, so that a machine whose speed drifts does not blur the ratio.
    pairs = [a / b for a, b in zip(seconds["adapted"], seconds["untouched"], strict=True)]
    return {
        "batch": size,
        "adapted_images_per_second": size / spent["adapted"],
        "untouched_images_per_second": size / spent["untouched"],
        "ratio": spent["untouched"] / spent["adapted"],
        "cost_percent": 100 * (torch.tensor(pairs).median().item() - 1),
        "repeat": options.repeat,
        "backbone": options.backbone,
        "seed": options.seed,
        "allocator": options.allocator,
    }


if __name__ == "__main__":
    main()
