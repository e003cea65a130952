"""Measure the minutes from a folder of images to a model with its report, by part.

    python benchmarks/folder.py --backbone pocket --json

The whole command `rmadapter fit FOLDER`, in a process of its own as a user starts it, for each
method and number format in turns. Parts: `start` (Python, imports and the backbone, timed in
another process), `decode` (the files of shots and test images, read by themselves), `frozen`
(encoding the shots as far as nothing is trained), `train`, `evaluate` (test images, adapted and
untouched), and `rest`: choosing the shots, checks, the report, saving. The time of decoding is
subtracted from `frozen` and `evaluate`. With --repeat 1 nothing is warmed up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, class_names, interleaved, medians, set_up, setting, show
from PIL import Image

from rmadapter.backbones import load_backbone
from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import ImageTensors, batches
from rmadapter.training.cache import BATCH

PARTS = ("start", "decode", "frozen", "train", "evaluate", "rest")
START = (
    "import sys, rmadapter.cli.main; from rmadapter.backbones import load_backbone; "
    "load_backbone(sys.argv[1])"
)
KEYS = ("run", "seconds", *PARTS)


def main() -> None:
    parser = arguments(__doc__, repeat=3, backbone="pocket")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=16, help="training images a class")
    parser.add_argument("--tests", type=int, default=40, help="test images a class")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=[500, 375], help="width and height of a file"
    )
    parser.add_argument("--methods", nargs="+", default=["rmadapter", "linear-probe"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "auto"])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of `fit`"
    )
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    about = setting(options, "classes", "shots", "tests", "pixels")
    show(options, {"rows": rows, **about}, KEYS, rows)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure a row for each method and number format: medians of seconds."""
    data = folder / "data"
    files = write_data(folder / "data", options)
    preprocess = load_backbone(options.backbone).preprocess
    spent: dict[str, list[dict[str, float]]] = {}

    def fit(method: str, precision: str) -> None:
        out = folder / f"run-{time.monotonic_ns()}"
        begun = time.perf_counter()
        words = [
            "--method",
            method,
            "--set",
            f"precision={precision}",
            *(w for s in options.set for w in ("--set", s)),
        ]
        words += [
            "--backbone", options.backbone, "--shots", str(options.shots), "--out", str(out),
            "--quiet",
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "rmadapter", "fit", str(data), *words],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - begun
        found = json.loads((out / "run.json").read_text())["seconds"]
        spent.setdefault(f"{method}, {precision}", []).append({"seconds": seconds, **found})

    def start() -> None:
        subprocess.run(
            [sys.executable, "-c", START, options.backbone], check=True, capture_output=True
        )

    runs = {
        f"{m}, {p}": lambda m=m, p=p: fit(m, p) for m in options.methods for p in options.precisions
    }
    decoding = {split: lambda some=some: decode(some, preprocess) for split, some in files.items()}
    own = medians(
        interleaved(
            {"start": start, **decoding, **runs},
            options.repeat,
            text="fit",
            warm_up=options.repeat > 1,
        )
    )
    return [row(name, found[-options.repeat :], own) for name, found in spent.items()]


def row(name: str, found: list[dict[str, float]], own: dict[str, float]) -> dict[str, Any]:
    """Split the medians of one command into its parts. own: what was timed by itself."""
    each = {key: statistics.median(one[key] for one in found) for key in found[0]}
    parts = {
        "start": own["start"],
        "decode": own["train"] + own["test"],
        "frozen": each["frozen"] - own["train"],
        "train": each["train"],
        "evaluate": each["evaluate"] - own["test"],
    }
    return {
        "run": name,
        "seconds": each["seconds"],
        **parts,
        "rest": each["seconds"] - sum(parts.values()),
    }


def decode(files: list[Path], preprocess: Any) -> None:
    rows = torch.arange(len(files)).split(BATCH)
    images = ImageSet(tuple(files), (0,) * len(files), ("",))
    for _ in batches(ImageTensors(images, preprocess), [part.tolist() for part in rows]):
        pass


def write_data(folder: Path, options: argparse.Namespace) -> dict[str, list[Path]]:
    """Write JPEG files of smooth noise, which take about as many bytes as photographs, in a folder
    per split and class."""
    rng = np.random.default_rng(options.seed)
    size = tuple(options.pixels)
    written = dict[str, list[Path]]()
    for split, count in (("train", options.shots), ("test", options.tests)):
        written[split] = []
        for name in class_names(options.classes, options.seed):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
                file = folder / split / name / f"{number}.jpg"
                coarse.resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
                written[split].append(file)
    return written


if __name__ == "__main__":
    main()
