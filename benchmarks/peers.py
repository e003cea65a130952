"""Time of a training step and peak memory of every method, each with its own batch size.

    python benchmarks/peers.py --backbone pocket --json

Each method trains a few steps on noise in a process of its own; what is frozen is computed before. A step is forward,
backward and optimizer. Batch sizes are those of the published settings, so `image_seconds`, a step's time over its
images, is what an epoch costs. The reference is RMAdapter.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from common import arguments, held, in_fresh_process, noise, peak_beyond, set_up, setting, show

from rmadapter.backbones import load_backbone
from rmadapter.cache import Cache
from rmadapter.console import track
from rmadapter.method import Fitted, Method, Shots
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import settings_of
from rmadapter.train import WHOLE

STEPS = 6
KEYS = ("method", "parameters", "batch", "step_seconds", "image_seconds", "peak_mb")


def main() -> None:
    parser = arguments(__doc__, "classes", backbone="pocket")
    most = [name for name in METHODS if name != "zero-shot-descriptions"]  # which needs texts about its classes
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=most)
    parser.add_argument("--only", choices=list(METHODS), help="only print the figures of one method")
    options = parser.parse_args()
    set_up(options)
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return
    about, more = setting(options, "classes"), ("--classes", str(options.classes), "--only")
    names = track(options.methods, len(options.methods), "methods")
    rows = [in_fresh_process(__file__, options, *more, name) for name in names]
    show(options, {"methods": rows, **about}, KEYS, rows)


def quick(name: str) -> Method:
    """The method with a single pass over the images."""
    own = settings_of(load_method(name))
    return load_method(name, {key: value for key, value in {"epochs": 1, "iterations": 0}.items() if key in own})


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Figures of one method; batch and seconds are None for one that takes no steps."""
    backbone, method = load_backbone(options.backbone), quick(name)
    batch, steps = settings_of(method).get("batch_size"), STEPS
    if batch == WHOLE:  # what its paper has at most: 16 shots a class
        batch, steps = 16 * options.classes, 1
    count = max(steps * (batch or 1), options.classes)
    images = noise(count, options.classes, backbone.image_size, options.seed)
    shots = Shots(images, Cache(backbone, progress=False), seed=options.seed, progress=False)
    fitted: list[Fitted] = [method.fit(backbone, shots)]  # warms up, and leaves the activations there
    before = held()
    most = peak_beyond(before, lambda: fitted.append(method.fit(backbone, shots)))
    seconds = fitted[-1].trained.step_seconds
    return {
        "method": name,
        "title": method.title,
        "parameters": fitted[-1].parameters,
        "batch": batch,
        "step_seconds": seconds,
        "image_seconds": None if seconds is None or batch is None else seconds / batch,
        "peak_mb": most,
    }


if __name__ == "__main__":
    main()
