"""Measure images per second of open_clip's model in torch, and of what `rmadapter export` makes of
it, in turns.

    python benchmarks/inference.py --backbone ViT-B-16/none --batches 1 8 --repeat 3 --json
    python benchmarks/inference.py --backbone pocket --json

All take pixels and give probabilities. The reference is open_clip's own encoder in float32 with
class features computed beforehand; with adapters it is untrained RMAdapter in its default blocks.
Single images are repeated more often, for their latency. 8-bit weights are those of
export/int8.py. OpenVINO is left out if it is not installed, and its 8-bit form without NNCF.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    arguments,
    class_names,
    held,
    in_fresh_process,
    interleaved,
    peak_beyond,
    set_up,
    setting,
    show,
)
from torch import Tensor

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.export import graph, int8
from rmadapter.export.engines import ENGINES, GRAPH, OPENVINO
from rmadapter.methods import load_method
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.task import TEMPLATES
from rmadapter.training.contract import Fitted, Known

REFERENCE, ADAPTED = "open_clip, torch fp32", "rmadapter, torch fp32"
TORCH = ("torch bf16", "torch bf16 autocast", "torch compiled")
EXPORTS = (
    "onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16", "openvino int8",
)  # fmt: skip
KEYS = (
    "engine", "adapters", "threads", "batch", "images_per_cpu_second", "images_per_second",
    "times", "difference",
)  # fmt: skip
MORE = 5  # times as many repeats for single images
Ask = Callable[[np.ndarray], np.ndarray]  # pixels [B, 3, H, W] -> probabilities [B, C]


class Kind(NamedTuple):
    engine: str
    adapters: bool


def kinds() -> list[Kind]:
    """List the engines that can be measured on this machine."""
    there = [
        name
        for name in EXPORTS
        if not name.startswith("openvino") or importlib.util.find_spec("openvino")
    ]
    there = [name for name in there if name != "openvino int8" or importlib.util.find_spec("nncf")]
    return [
        *(Kind(name, False) for name in (REFERENCE, *TORCH, *there)),
        *(Kind(n, True) for n in (ADAPTED, *there)),
    ]


def _names(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(class_names(options.classes, options.seed))


def fitted(backbone: Backbone, adapters: bool, options: argparse.Namespace) -> Fitted:
    method: Any = (
        load_method("rmadapter", {"init": "kaiming"}) if adapters else load_method("zero-shot")
    )
    tensors = method.model(backbone, options.seed).adapters.state_dict() if adapters else {}
    return method.restore(backbone, Known(_names(options)), tensors)


def write(folder: Path, model: Fitted, pixels: np.ndarray, names: list[str]) -> None:
    """Write the exported forms, each into a folder of its name."""
    found = graph.trace(model, model.classes)
    for name in names:
        place, precision = folder / name, name.split()[1]
        place.mkdir(parents=True)
        graph.write(found, place / GRAPH)
        if name == "openvino int8":
            int8.balance_file(place / GRAPH, pixels)
        if name == "onnxruntime int8":
            int8.quantize(place / GRAPH, pixels)
        elif name.startswith("openvino"):
            graph.write_openvino(place, precision)


def asking(
    kind: Kind, folder: Path, options: argparse.Namespace, backbone: Backbone, threads: int
) -> Ask:
    """Return a function from pixels to probabilities. folder: of the model with, or without,
    adapters, from `write`."""
    if kind.engine in EXPORTS:
        place = folder / kind.engine
        name = next(name for name in (OPENVINO, GRAPH) if (place / name).exists())
        run, *_ = ENGINES[name](place / name, threads)
        return lambda pixels: run(pixels)[0]
    if kind.adapters:
        model = fitted(backbone, True, options)
        module = graph.AnswerModule(model, model.classes).eval()
        return lambda pixels: module(torch.from_numpy(pixels)).numpy()
    return _torch(kind.engine, backbone, zero_shot_weights(backbone, _names(options), TEMPLATES))


def _torch(name: str, backbone: Backbone, weights: Tensor) -> Ask:
    visual: Any = copy.deepcopy(backbone.model.visual)
    visual = (
        visual.bfloat16()
        if name == "torch bf16"
        else torch.compile(visual)
        if "compiled" in name
        else visual
    )
    kind = torch.bfloat16 if name == "torch bf16" else torch.float32

    def ask(pixels: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in name):
            features = visual(torch.from_numpy(pixels).to(kind))
        return cosine_logits(backbone, features.float(), weights).softmax(-1).numpy()

    return ask


@torch.inference_mode()
def measure(
    options: argparse.Namespace, asks: dict[Kind, Ask], pixels: np.ndarray, threads: int
) -> list[dict[str, Any]]:
    """Measure one batch. times: images per CPU second relative to the reference. difference: the
    largest of a probability from torch's in float32, with adapters or without."""
    outputs = {kind: ask(pixels) for kind, ask in asks.items()}
    spent: dict[Kind, list[float]] = {kind: [] for kind in asks}

    def timed(kind: Kind) -> None:
        begun = time.process_time()
        asks[kind](pixels)
        spent[kind].append(time.process_time() - begun)

    repeat = options.repeat * (MORE if len(pixels) == 1 else 1)
    runs = [(f"{kind.engine}{kind.adapters}", lambda kind=kind: timed(kind)) for kind in asks]
    wall = interleaved(runs, repeat, text=f"{threads} threads, batches of {len(pixels)}")
    plain = float(np.median(spent[Kind(REFERENCE, False)][1:]))
    rows = []
    for kind, cpu in spent.items():
        seconds = wall[f"{kind.engine}{kind.adapters}"]
        right = Kind(ADAPTED if kind.adapters else REFERENCE, kind.adapters)
        middle = float(np.median(cpu[1:]))  # the first one warms up
        rows.append({
            **kind._asdict(), "threads": threads, "batch": len(pixels), "times": plain / middle,
            "images_per_cpu_second": len(pixels) / middle,
            "images_per_cpu_second_at_best": len(pixels) / min(cpu[1:]),
            "images_per_second": len(pixels) / float(np.median(seconds)),
            "images_per_second_at_best": len(pixels) / min(seconds),
            "p50_ms": 1e3 * float(np.percentile(seconds, 50)),
            "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
            "difference": float(np.abs(outputs[kind] - outputs[right]).max()),
        })  # fmt: skip
    return rows


def peak_of(options: argparse.Namespace) -> float | None:
    """Return the MB that loading an engine and classifying one image takes, in this process."""
    name, adapters, folder = options.peak
    before = held()

    def run() -> None:
        kind = Kind(name, adapters == "True")
        backbone = load_backbone(options.backbone) if name not in EXPORTS else None
        size = options.size
        with torch.inference_mode():
            ask = asking(kind, Path(folder), options, backbone, options.threads)  # type: ignore[arg-type]
            ask(np.zeros((1, 3, size, size), np.float32))

    return peak_beyond(before, run)


def main() -> None:
    parser = arguments(__doc__, "classes", repeat=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="images at once")
    parser.add_argument(
        "--cores", type=int, nargs="+", default=[1, 2], help="threads of every engine, in turn"
    )
    parser.add_argument(
        "--engines", nargs="+", help="some of the engines alone, the reference always"
    )
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=224, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_up(options)
    if options.peak:
        print(json.dumps(peak_of(options)))
        return
    backbone = load_backbone(options.backbone)
    rng = np.random.default_rng(options.seed)
    size = backbone.image_size
    about = setting(options, "classes")
    some = [
        kind
        for kind in kinds()
        if kind.engine in (options.engines or [kind.engine]) or "torch fp32" in kind.engine
    ]
    pixels = rng.standard_normal((max(options.batches), 3, size, size), np.float32)
    with tempfile.TemporaryDirectory() as place:
        folders = {adapters: Path(place) / str(adapters) for adapters in (False, True)}
        for adapters, folder in folders.items():
            exports = [
                kind.engine for kind in some if kind.engine in EXPORTS and kind.adapters == adapters
            ]
            write(folder, fitted(backbone, adapters, options), pixels[:8], exports)
        rows = []
        for threads in options.cores:
            torch.set_num_threads(threads)
            asks = {
                kind: asking(kind, folders[kind.adapters], options, backbone, threads)
                for kind in some
            }
            for batch in options.batches:
                rows += measure(options, asks, pixels[:batch], threads)
        peaks = {}
        for kind in some:
            words = (
                "--peak",
                kind.engine,
                str(kind.adapters),
                str(folders[kind.adapters]),
                "--size",
                str(size),
            )
            peaks[kind] = in_fresh_process(
                __file__, options, "--classes", str(options.classes), *words
            )
    found = [
        {**row, "peak_mb": peaks[Kind(row["engine"], row["adapters"])], **about} for row in rows
    ]
    show(options, found, KEYS, found)


if __name__ == "__main__":
    main()
