"""Measure how many seconds of the processor a process takes to answer one image.

    python research/benchmarks/start.py --backbone pocket --json

Each run is a process of its own, in turns: `torch`, `import torch` alone; `help`, `rmadapter
--help`; `predict`, `rmadapter predict` of one image with a linear probe, on a model folder that
this machine has loaded before; `first`, the same on one that it has not; `whole`, as `first`,
with open_clip, timm, transformers and torch's compiler imported whole, as predict did before it
imported them by need; and `adapted` and `adapted-first`, as `predict` and `first`, but with
RMAdapter, whose class weights this machine has kept for `adapted`. All of predict with a model must
answer alike. `imports` are the seconds of the ten packages whose modules take longest to import in
`predict` and `adapted`, by `-X importtime`, which makes them slower: on the clock, not of the
processor.

--backbone random: a folder of a ViT-B/16 with random weights.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Run, arguments, class_names, interleaved, medians, set_up, setting, show
from PIL import Image

from rmadapter.artifacts.checkpoint import save
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.training.contract import Known

KEYS = ("run", "cpu_seconds", "times_torch")
DEAREST = 10
PROBE, ADAPTED = ("predict", "first", "whole"), ("adapted", "adapted-first")
RANDOM, ARCHITECTURE = "random", "ViT-B-16"
COMMAND = "import sys; sys.argv[0] = 'rmadapter'; from rmadapter.cli.main import main; main()"
# Nothing can be kept of model folders below a file.
NOTHING_KEPT = (
    "import rmadapter.backbones.known as known; known.CACHE_FOLDER = known.__file__ + '/none'"
)
UNKNOWN = f"""
from rmadapter.support.machine import importing
with importing():
    {NOTHING_KEPT}
"""
WHOLE = f"import open_clip, timm, transformers, torch._dynamo; {NOTHING_KEPT}"


def main() -> None:
    parser = arguments(__doc__, "classes", backbone="pocket", classes=10, repeat=5)
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    show(options, result, KEYS, result["rows"])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time every run in turns, and compare their answers."""
    name = write_random(folder / "model") if options.backbone == RANDOM else options.backbone
    backbone, names = load_backbone(name), class_names(options.classes, options.seed)
    write_run(folder / "run", backbone, names)
    write_adapted(folder / "adapted", backbone, names)
    pixels = np.random.default_rng(options.seed).integers(0, 256, (375, 500, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.jpg")
    words = [str(folder / "image.jpg"), "--backbone", name, "--json"]
    commands = commands_of(folder, words)
    for run in ("predict", "adapted"):
        process(commands[run])  # from now on, this machine knows the model folder and the classes
    answers: dict[str, set[str]] = {name: set() for name in commands}

    def answer(name: str) -> None:
        answers[name].add(process(commands[name]).stdout)

    runs: dict[str, Run] = {name: partial(answer, name) for name in commands}
    spent = medians(interleaved(runs, options.repeat, text="starts", warm_up=False, clock=children))
    for alike in (PROBE, ADAPTED):
        given = set.union(*(answers[name] for name in alike))
        if len(given) > 1:
            raise SystemExit(f"the answers differ: {given}")
    rows = [
        {"run": run, "cpu_seconds": value, "times_torch": value / spent["torch"]}
        for run, value in spent.items()
    ]
    imports = {run: dearest(commands[run]) for run in ("predict", "adapted")}
    return {"rows": rows, "imports": imports, **setting(options, "classes")}


def commands_of(folder: Path, words: Sequence[str]) -> dict[str, list[str]]:
    """Return the command lines of the runs by name, without Python itself. folder: of the models.
    words: of `predict`, after the model."""
    probe, adapted = (["predict", str(folder / name), *words] for name in ("run", "adapted"))
    return {
        "torch": ["-c", "import torch"],
        "help": ["-c", COMMAND, "--help"],
        "predict": ["-c", COMMAND, *probe],
        "first": ["-c", f"{UNKNOWN}\n{COMMAND}", *probe],
        "whole": ["-c", f"{WHOLE}\n{COMMAND}", *probe],
        "adapted": ["-c", COMMAND, *adapted],
        "adapted-first": ["-c", f"{UNKNOWN}\n{COMMAND}", *adapted],
    }


def process(command: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run Python, which must succeed."""
    words = [sys.executable, *options, *command]
    return subprocess.run(words, capture_output=True, text=True, check=True)


def children() -> float:
    """Return the seconds of the processor of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_run(folder: Path, backbone: Backbone, names: Sequence[str]) -> None:
    """Save a linear probe with random weights: training does not change its start."""
    known = Known(tuple(names))
    tensors = {
        "weight": torch.rand(len(names), backbone.embedding_size),
        "bias": torch.zeros(len(names)),
    }
    save(folder, LinearProbe().restore(backbone, known, tensors), "linear-probe", known.classes)


def write_adapted(folder: Path, backbone: Backbone, names: Sequence[str]) -> None:
    """Save an RMAdapter with untrained adapters: training does not change its start."""
    method, known = RMAdapter(), Known(tuple(names))
    tensors = method.model(backbone).adapters.state_dict()
    save(folder, method.restore(backbone, known, tensors), "rmadapter", known.classes)


def write_random(folder: Path) -> str:
    """Write a folder of ARCHITECTURE with random weights."""
    from open_clip import get_model_config
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"model_cfg": get_model_config(ARCHITECTURE), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(
        json.dumps(config), encoding="utf-8", newline="\n"
    )
    model = load_backbone(f"{ARCHITECTURE}/none").model
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


def dearest(command: Sequence[str]) -> dict[str, float]:
    """Return the seconds of the packages whose modules take longest to import."""
    return packages(process(command, "-X", "importtime").stderr)


def packages(report: str) -> dict[str, float]:
    """Return the seconds of the DEAREST packages in a report of `-X importtime`."""
    lines = re.findall(r"^import time: +(\d+) \| +\d+ \| *([\w.]+)$", report, re.M)
    seconds: Counter[str] = Counter()
    for microseconds, module in lines:
        seconds[module.partition(".")[0]] += int(microseconds)
    return {name: value / 1e6 for name, value in seconds.most_common(DEAREST)}


if __name__ == "__main__":
    main()
