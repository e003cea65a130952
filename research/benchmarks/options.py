"""Measure what bfloat16, torch.compile and both do to the lean forward and backward pass, against
float32 in the same run.

    python research/benchmarks/options.py --backbone pocket --json

`compile_seconds` is what the first compiled step takes, most of it compiling. Losses are compared
with float32's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, interleaved, medians, set_up, setting, show
from step import Step

from rmadapter.backbones import load_backbone


def main() -> None:
    options = arguments(__doc__, "classes", "batch", backbone="pocket").parse_args()
    set_up(options)
    about = setting(options, "classes", "batch")
    step = Step(
        load_backbone(options.backbone), options.classes, options.batch, options.seed, init="small"
    )
    image, text = step.frozen()
    compiled: Any = torch.compile(step.model)

    def loss_of(call: Any, half: bool = False) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = call(step.labels, image, [text])["loss"]
        step.model.zero_grad()
        loss.backward()
        return loss.item()

    runs: dict[str, Callable[[], float]] = {
        "float32": lambda: loss_of(step.model),
        "bfloat16": lambda: loss_of(step.model, half=True),
        "compiled": lambda: loss_of(compiled),
        "bfloat16, compiled": lambda: loss_of(compiled, half=True),
    }
    losses, first = {}, {}
    for name, run in runs.items():
        begun = time.perf_counter()
        losses[name] = run()
        first[name] = time.perf_counter() - begun
    seconds = medians(interleaved(runs, options.repeat, text="options"))
    rows = [
        {
            "option": name,
            "seconds": spent,
            "speedup": seconds["float32"] / spent,
            "loss": losses[name],
        }
        for name, spent in seconds.items()
    ]
    result = {"rows": rows, "compile_seconds": first["compiled"], **about}
    show(options, result, ("option", "seconds", "speedup", "loss"), rows)


if __name__ == "__main__":
    main()
