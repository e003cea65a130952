"""Measure the training time of the demo by the plain forward pass and by the lean one, in one run.

    python research/benchmarks/demo_fit.py --json

Both train the same adapters on the same images in the same order; the losses of the last step are
compared.
"""

from __future__ import annotations

import time
from typing import Any

from common import arguments, set_up, setting, show

from rmadapter.backbones import load_backbone
from rmadapter.data.catalog.openmoji import load_openmoji
from rmadapter.data.fewshot import few_shot, half
from rmadapter.methods import load_method
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Shots

KEYS = (
    "images", "reference_seconds", "lean_seconds", "ratio", "reference_last_loss",
    "lean_last_loss",
)  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, backbone="pocket", seed=1)
    parser.add_argument(
        "--epochs", type=int, help="passes over the images, of the method's own number"
    )
    options = parser.parse_args()
    set_up(options)
    backbone = load_backbone(options.backbone)
    images = half(few_shot(load_openmoji(112), 16, options.seed).train, "base")
    given = {"epochs": options.epochs} if options.epochs else {}
    result: dict[str, Any] = {"images": len(images), **setting(options)}
    for forward in ("reference", "lean"):
        method = load_method("rmadapter", {"forward": forward, **given})
        begun = time.perf_counter()
        fitted = method.fit(
            backbone, Shots(images, Cache(backbone), seed=options.seed)
        )  # the frozen activations, too
        result[f"{forward}_seconds"] = round(time.perf_counter() - begun, 2)
        result[f"{forward}_last_loss"] = fitted.trained.history[-1]["loss"]
    result["ratio"] = round(result["reference_seconds"] / result["lean_seconds"], 2)
    show(options, result, KEYS, [result])


if __name__ == "__main__":
    main()
