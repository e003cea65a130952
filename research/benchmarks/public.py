"""Measure a whole training step of the authors' public code, from your own clone, beside the same
step here.

    git clone https://github.com/ZjjConan/Multi-Modal-Adapter
    python research/benchmarks/public.py mma --upstream Multi-Modal-Adapter --classes 50 \\
        --out public.json

All in one process, with the same threads and allocator. First a step of theirs and one of ours are
compared: logits, loss and gradients from the same weights. Then, in turns: theirs, ours in float32,
ours in bfloat16 (`precision=bf16`). A step is forward, backward and optimizer, on a batch of the
method's own size, on a ViT-B/16 of random weights. Theirs is imported as in `parity.py` and
runs unchanged, in float32 (`.half()` does nothing); it gets images as tensors, ours gets what
training keeps of them: frozen activations. A clone's code is run: read it first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import arguments, interleaved, set_up, setting, show
from fitting import Fit, Spent, shots_for
from originals import MAKERS, Peer, Sizes
from parity import commit, differences
from train_step import product
from upstream import theirs
from work import step_work

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.prompts import tokenize
from rmadapter.settings import settings_of
from rmadapter.support.files import read_json, write_json
from rmadapter.training.contract import Shots

PROMPTED, FIRST = 9, {"mma": 5}  # as published, in encoders of 12 blocks; MMRL's first block is 6
SQUARE, ROUNDS, LONG = (
    2048,
    5,
    0.2,
)  # of products that measure the machine's rate; seconds after which none is larger
TEMPLATES = 2  # of PromptSRC's 60, which are encoded before the first step
KEYS = [
    "method", "classes", "batch", "public_seconds", "fp32_seconds", "bf16_seconds", "fp32_ratio",
    "bf16_ratio",
]  # fmt: skip


def main() -> int:
    parser = arguments(__doc__, backbone="ViT-B-16-quickgelu/none", repeat=3)
    parser.add_argument("method", choices=MAKERS)
    parser.add_argument(
        "--upstream", type=Path, required=True, metavar="DIR", help="your clone of their repository"
    )
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[50], help="class names in the prompts"
    )
    parser.add_argument(
        "--batch", type=int, help="images per step; default: the method's own number"
    )
    parser.add_argument("--out", type=Path, help="JSON that takes what was measured, by method")
    options = parser.parse_args()
    set_up(options)
    try:
        rows = [measure(options, classes) | setting(options) for classes in options.classes]
    except UserError as error:
        print(f"public: {error}", file=sys.stderr)
        return 2
    if options.out:
        known = read_json(options.out) if options.out.exists() else {}
        kept = [
            row for row in known.get(options.method, ()) if row["classes"] not in options.classes
        ]
        write_json(
            options.out,
            {**known, options.method: sorted(kept + rows, key=lambda row: row["classes"])},
        )
    show(options, rows, KEYS, rows)
    return 0


def peer_on(name: str, backbone: Backbone) -> Peer:
    """Configure the authors' trainer for a whole backbone, as published."""
    depth = backbone.text.depth
    first = min(FIRST.get(name, 6), depth)
    return replace(MAKERS[name](Sizes(depth, first, min(PROMPTED, depth))), prepare=few_templates)


def few_templates(module: Any) -> None:
    del getattr(module, "IMAGENET_TEMPLATES", [])[TEMPLATES:]


def measure(options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """Measure one number of classes. Raises UserError as `theirs`."""
    backbone = load_backbone(options.backbone)
    name = options.method
    clip: Any = backbone.model
    clip.logit_scale.data.fill_(np.log(100))  # some authors hard-coded it
    peer = peer_on(name, backbone)
    batch = options.batch or settings_of(load_method(name))["batch_size"]
    settings = peer.settings(SimpleNamespace(IMAGENET_TEMPLATES=["a photo of a {}."]))  # type: ignore[arg-type]
    method = load_method(name, settings)
    shots = {
        kind: shots_for(backbone, classes, batch, options.seed, kind) for kind in ("fp32", "bf16")
    }
    fits = {kind: Fit(method, some) for kind, some in shots.items()}
    spent = {kind: Spent([], []) for kind in ("public", *fits)}

    def turns() -> Iterator[None]:
        for fit in fits.values():
            fit.step()  # warms up; theirs is warm already
        for _ in range(options.repeat):
            with spent["public"].once():
                yield  # until the authors' code asks for the next one
            for kind, fit in fits.items():
                with spent[kind].once():
                    fit.step()

    plain = shots["fp32"]
    pixels = plain.pixels(torch.arange(batch), 0, 1)
    found = theirs(
        peer, options.upstream, clip.state_dict(), plain.classes, pixels, plain.labels, turns()
    )
    row: dict[str, Any] = {
        "method": name,
        "title": method.title,
        "classes": classes,
        "batch": batch,
    }
    row |= {"repository": peer.repository, "commit": commit(options.upstream)}
    row["differences"] = differences(name, peer, found, plain, pixels, options.upstream)
    for kind, one in spent.items():
        row |= one.figures(kind)
    least = row["public_least_seconds"]  # other processes disturb it less than the median
    row |= {f"{kind}_ratio": least / row[f"{kind}_least_seconds"] for kind in fits}
    return row | limits(backbone, method, plain)


def limits(backbone: Backbone, method: Any, shots: Shots) -> dict[str, Any]:
    """Measure rates of large matrix products in either format, and the operations that a step of
    adapters cannot do without."""
    found: dict[str, Any] = {}
    for kind, format_ in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"{kind}_gflops"] = rate(format_)
    if isinstance(method, RMAdapter):
        model = method.model(backbone)
        image = shots.source(model.first("image")).batch(torch.arange(len(shots.images)))
        (text,) = model.frozen_text(tokenize(backbone, shots.classes, shots.templates))
        found["least_operations"] = sum(step_work(model, image, text).values())
    return found


def rate(format_: torch.dtype) -> float:
    """Measure Gflop/s of square products up to SQUARE, none larger once one is slow (bfloat16 on a
    processor without it)."""
    side = 256
    while True:
        least = min(
            interleaved({"": product(side, side, side, format_)}, ROUNDS, text="products")[""]
        )
        if side >= SQUARE or least > LONG:
            return 2 * side**3 / least / 1e9
        side *= 2


if __name__ == "__main__":
    sys.exit(main())
