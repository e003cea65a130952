"""What bfloat16 and torch.compile do to the lean forward and backward pass, against float32 in the same run.

    python benchmarks/options.py --backbone pocket --classes 50 --json

`compile_seconds` is what the first compiled step takes, most of it compiling. Losses are compared with float32's.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch
from common import arguments, class_names, interleaved, machine, medians, set_up, table, timed

from rmadapter.backbone import load_backbone
from rmadapter.config import Config
from rmadapter.model import AdaptedCLIP


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    set_up(options)
    model = AdaptedCLIP(load_backbone(options.backbone), Config.make({"init": "small"})).train()
    size = model.backbone.image_size
    image = model.frozen("image", torch.randn(options.batch, 3, size, size))
    text = model.frozen_text(model.prompts(class_names(options.classes, options.seed)))
    labels = torch.randint(options.classes, (options.batch,))
    compiled: Any = torch.compile(model)

    def step(call: Any, half: bool) -> float:
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            loss = call(labels, image, text)["loss"]
        model.zero_grad()
        loss.backward()
        return loss.item()

    losses = {"float32": step(model, False), "bfloat16": step(model, True)}
    compile_seconds = timed(lambda: losses.update(compiled=step(compiled, False)))
    runs = {
        "float32": lambda: step(model, False),
        "bfloat16": lambda: step(model, True),
        "compiled": lambda: step(compiled, False),
    }
    seconds = medians(interleaved(runs, options.repeat, text="options"))
    rows = [
        {"option": k, "seconds": s, "speedup": seconds["float32"] / s, "loss": losses[k]} for k, s in seconds.items()
    ]
    if options.json:
        print(json.dumps({"rows": rows, "compile_seconds": compile_seconds, "machine": machine()}, indent=1))
    else:
        table(list(rows[0]), [list(row.values()) for row in rows], f"first compiled step: {compile_seconds:.0f} s")


if __name__ == "__main__":
    main()
