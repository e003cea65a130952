"""Measure a training step of every method: time, memory and, if it runs transformer blocks, the
lean pass against the plain.

    python research/benchmarks/peers.py --backbone pocket --json
    python research/benchmarks/peers.py --backbone ViT-B-16/none --methods maple mmrl clip-lora

Each method trains on noise in a process of its own. Batch sizes are those of the published
settings, up to --largest. A step is forward, backward and optimizer. For a method on frozen
features, only the median of a few steps is measured. One that runs blocks, of a text encoder with
causal attention, takes the same step in turns: lean, lean in bfloat16 (as `precision=bf16` trains)
and `reference`, where nothing is cut, shared or kept: whole prompts, and images from their pixels
on (`whole.py`; RMAdapter's and MMA's is the backbone's own forward with hooks). All are given the
features of the untouched encoders that a loss compares with. Weights and batch are the same, and so
must be loss and gradients, whose largest relative difference is reported. Ratios are of processor
seconds, which other processes disturb less than the clock; `operations` are those that the
reference executes over those that lean executes, counted by torch.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

from common import arguments, held, in_fresh_process, noise, peak_beyond, set_up, setting, show
from fitting import Fit, Spent, shots_for
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step import largest_difference
from whole import Plain

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods import METHODS, load_method
from rmadapter.settings import configured, settings_of
from rmadapter.support.terminal import track
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, Method, Shots
from rmadapter.training.traits import ALL_IMAGES

STEPS = 6
IN_BLOCKS = (
    *(
        "coop", "cocoop", "kgcoop", "tcp", "maple", "promptsrc", "coprompt", "mmrl",
        "mmrl-plus-plus", "clip-lora",
    ),
    *("mma", "rmadapter"),
)  # fmt: skip
NO_DROPOUT = 1e-9  # runs the code of dropout, but drops nothing: both passes then compute the same
KEYS = (
    "method", "parameters", "batch", "step_seconds", "bf16_seconds", "reference_seconds", "ratio",
    "peak_mb",
)  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, "classes", backbone="pocket", repeat=5)
    most = [
        name for name in METHODS if name != "zero-shot-descriptions"
    ]  # it needs texts about its classes
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=most)
    parser.add_argument("--largest", type=int, default=128, help="images per step at most")
    parser.add_argument(
        "--only", choices=list(METHODS), help="only print the figures of one method"
    )
    options = parser.parse_args()
    set_up(options)
    if options.only:
        backbone = load_backbone(options.backbone)
        plain = options.only in IN_BLOCKS and backbone.text.causal
        print(json.dumps((compare if plain else measure)(options, backbone, options.only)))
        return
    about = setting(options, "classes", "largest")
    more = [f"--{name}={getattr(options, name)}" for name in ("classes", "largest", "repeat")]
    names = track(options.methods, len(options.methods), "methods")
    rows = [in_fresh_process(__file__, options, *more, "--only", name) for name in names]
    show(
        options,
        [{"methods": rows, **about}],
        KEYS,
        [{**dict.fromkeys(KEYS), **row} for row in rows],
    )


def quick(name: str) -> Method:
    """Load the method with a single pass over the images."""
    own = settings_of(load_method(name))
    return load_method(
        name, {key: value for key, value in {"epochs": 1, "iterations": 0}.items() if key in own}
    )


def measure(options: argparse.Namespace, backbone: Backbone, name: str) -> dict[str, Any]:
    """Measure some steps; batch and seconds are None for a method that takes none."""
    method = quick(name)
    batch = settings_of(method).get("batch_size")
    steps = STEPS
    if batch == ALL_IMAGES:  # the most that its paper has: 16 shots per class
        batch, steps = 16 * options.classes, 1
    count = max(steps * (batch or 1), options.classes)
    images = noise(count, options.classes, backbone.image_size, options.seed)
    shots = Shots(images, Cache(backbone, progress=False), seed=options.seed, progress=False)
    fitted: list[Fitted] = [
        method.fit(backbone, shots)
    ]  # warms up, and fills the cache of activations
    before = held()
    most = peak_beyond(before, lambda: fitted.append(method.fit(backbone, shots)))
    return {
        "method": name, "title": method.title, "parameters": fitted[-1].parameters, "batch": batch,
        "step_seconds": fitted[-1].trained.step_seconds, "peak_mb": most,
    }  # fmt: skip


def compare(options: argparse.Namespace, backbone: Backbone, name: str) -> dict[str, Any]:
    """Measure a method whose lean pass is compared with the plain one."""
    method = load_method(name)
    if "dropout" in settings_of(method):
        method = configured(method, {"dropout": NO_DROPOUT})
    batch = min(settings_of(method)["batch_size"], options.largest)
    shots, half = (
        shots_for(backbone, options.classes, batch, options.seed, kind) for kind in ("fp32", "bf16")
    )
    before = held()
    runs: dict[str, Any] = {
        "step": Fit(method, shots),
        "reference": Plain(method, shots),
        "bf16": Fit(method, half),
    }
    first = {kind: looked_at(run, before) for kind, run in runs.items()}  # warms up, too
    spent = {kind: Spent([], []) for kind in runs}
    for _ in range(options.repeat):
        for kind, run in runs.items():
            with spent[kind].once():
                run.step()
    row: dict[str, Any] = {"method": name, "title": method.title, "batch": batch}
    row |= {"parameters": sum(parameter.numel() for parameter in runs["step"].trained.values())}
    row |= {"peak_mb": first["step"].peak_mb, "reference_peak_mb": first["reference"].peak_mb}
    for kind, one in spent.items():
        row |= one.figures(kind)
    lean, plain = first["step"], first["reference"]
    return row | {
        "ratio": row["reference_cpu_seconds"] / row["step_cpu_seconds"],
        "bf16_ratio": row["step_cpu_seconds"] / row["bf16_cpu_seconds"],
        "operations": plain.operations / lean.operations,
        "loss_difference": abs(lean.loss - plain.loss) / abs(plain.loss),
        "gradient_difference": largest_difference(lean.gradients, plain.gradients),
    }


class Looked(NamedTuple):
    loss: float
    gradients: dict[str, Tensor]
    operations: int
    peak_mb: float | None  # MB that the process held at once beyond the loaded model


def looked_at(run: Fit | Plain, before: float | None) -> Looked:
    """Measure one forward and backward pass. before: MB that the process held with the model
    alone."""
    found: list[tuple[float, dict[str, Tensor]]] = []
    with FlopCounterMode(display=False) as counter:
        most = peak_beyond(before, lambda: found.append(run.gradients()))
    return Looked(*found[0], counter.get_total_flops(), most)


if __name__ == "__main__":
    main()
