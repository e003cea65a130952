"""Time of a training step and peak memory of every method of the bench, each with its own batch size.

    python benchmarks/peers.py --backbone pocket --classes 50 --json

Each method trains a few steps on noise in a process of its own; what is frozen is computed before. A step is forward,
backward and optimizer. Batch sizes are those of the published settings, so `image_seconds`, a step's time over its
images, is what an epoch costs. The reference is RMAdapter.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from common import Peak, arguments, class_names, in_fresh_process, machine, passed_on, set_up, table

from rmadapter.backbone import load_backbone
from rmadapter.bench.activations import Activations
from rmadapter.bench.methods import METHODS, load_method
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.progress import track

STEPS = 6
KEYS = ("method", "parameters", "batch", "step_seconds", "image_seconds", "peak_mb")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--only", choices=list(METHODS), help="only print the figures of one method")
    parser.set_defaults(backbone="pocket")
    options = parser.parse_args()
    set_up(options)
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return
    carried = passed_on(options, "backbone", "classes", "seed", "threads", "allocator")
    found = []
    for name in track(options.methods, len(options.methods), "methods", True):
        found.append(in_fresh_process(__file__, *carried, "--only", name))
    result = {"backbone": options.backbone, "classes": options.classes, "methods": found, "machine": machine()}
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        table([key.replace("_", " ") for key in KEYS], [[row[key] for key in KEYS] for row in found])


def batch_of(name: str) -> int:
    """Images per step of the published settings; 16 where a method takes no steps."""
    method = load_method(name)
    chosen = method.config() if hasattr(method, "preset") else method
    return int(getattr(chosen, "batch_size", 1 if name == "cocoop" else 16))


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Figures of one method; step_seconds is None for one that takes no steps."""
    backbone = load_backbone(options.backbone)
    batch, size = batch_of(name), backbone.image_size
    count = max(STEPS * batch, options.classes)
    noise = np.random.default_rng(options.seed).integers(0, 256, (count, size, size, 3), np.uint8)
    names = tuple(class_names(options.classes, options.seed))
    images = ImageSet(tuple(noise), tuple(i % options.classes for i in range(count)), names)
    activations = Activations(backbone, Config.make({"backbone": options.backbone, "augmentation": "none"}))
    training = Training(images, None, activations, options.seed, progress=False)
    short = quick(name)
    classifier: Classifier = short.fit(backbone, training)  # warms up, and leaves the activations there
    peak = Peak()
    peak.start()
    classifier = short.fit(backbone, training)
    steps = classifier.step_seconds
    return {
        "method": name,
        "title": short.title,
        "parameters": classifier.parameters,
        "batch": batch,
        "step_seconds": steps,
        "image_seconds": None if steps is None else steps / batch,
        "peak_mb": peak.stop(),
        "threads": torch.get_num_threads(),
    }


def quick(name: str) -> Any:
    """The method with a single pass over the images."""
    method = load_method(name)
    known = Config.model_fields if hasattr(method, "preset") else [f.name for f in fields(method)]
    return load_method(name, {key: 1 for key in ("epochs", "iterations") if key in known})


if __name__ == "__main__":
    main()
