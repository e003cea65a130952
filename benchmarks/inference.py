"""Images per second of the adapted model against the untouched open_clip model, in turns.

    python benchmarks/inference.py --batches 1 32 --json

Both take image tensors and give features. The adapted model is `AdaptedCLIP.encode_image`, which attaches the adapters
and detaches them again in every call. predict.py measures what an image costs from its file on.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from common import arguments, interleaved, medians, set_up, setting, show

from rmadapter.backbones import load_backbone
from rmadapter.model import AdaptedCLIP
from rmadapter.settings import AdapterSettings

KEYS = ("batch", "adapted_images_per_second", "untouched_images_per_second", "ratio", "cost_percent")


def main() -> None:
    parser = arguments(__doc__, repeat=21)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="images at once")
    options = parser.parse_args()
    set_up(options)
    about = setting(options)
    model = AdaptedCLIP(load_backbone(options.backbone), AdapterSettings(init="kaiming"), seed=options.seed)
    results = [measure(options, model, size) | about for size in options.batches]
    show(options, results, KEYS, results)


@torch.inference_mode()
def measure(options: argparse.Namespace, model: AdaptedCLIP, size: int) -> dict[str, Any]:
    """Figures of one batch size. ratio: adapted / untouched images per second; cost_percent: time added."""
    images = torch.randn(size, 3, model.backbone.image_size, model.backbone.image_size)
    runs = {"adapted": lambda: model.encode_image(images), "untouched": lambda: model.clip.encode_image(images)}
    if torch.equal(*(run() for run in runs.values())):
        raise SystemExit("the adapters change nothing: nothing to measure")
    seconds = interleaved(runs, options.repeat, text=f"batches of {size}")
    spent = medians(seconds)
    # Of each pair that ran one after the other, so that a machine whose speed drifts does not blur the ratio.
    pairs = [a / b for a, b in zip(seconds["adapted"], seconds["untouched"], strict=True)]
    return {
        "batch": size,
        "adapted_images_per_second": size / spent["adapted"],
        "untouched_images_per_second": size / spent["untouched"],
        "ratio": spent["untouched"] / spent["adapted"],
        "cost_percent": 100 * (statistics.median(pairs) - 1),
    }


if __name__ == "__main__":
    main()
