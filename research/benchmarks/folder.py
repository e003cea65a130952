"""Measure the CPU seconds from a folder of images to a model with its report, by part.

    python research/benchmarks/folder.py --json
    python research/benchmarks/folder.py --before OTHER/src --json

The whole command `rmadapter fit FOLDER` on generated images, in a process of its own with one
thread, for each method in turns; `cpu_parts.py` says what the parts are. --before: the source of
another version, which runs before this one in every round; both must give the same accuracies.
With --repeat 1 nothing is warmed up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Run, arguments, class_names, interleaved, set_up, setting, show
from cpu_parts import PARTS, REST
from PIL import Image

HERE = Path(__file__).parent
NOW, BEFORE = "now", "before"
NAMES = (*PARTS, REST)
KEYS = ("run", "cpu", *NAMES)


def main() -> None:
    parser = arguments(__doc__, repeat=3, backbone="pocket")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=16, help="training images a class")
    parser.add_argument("--tests", type=int, default=100, help="test images a class")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=[500, 375], help="width and height of a file"
    )
    parser.add_argument("--methods", nargs="+", default=["rmadapter", "linear-probe"])
    parser.add_argument("--before", type=Path, help="folder `src` of another version")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="METHOD:FIELD=VALUE", help="settings of a method"
    )
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    about = setting(options, "classes", "shots", "tests", "pixels", "set")
    show(options, {"rows": rows, **about}, KEYS, rows)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure a row for each method and version: medians of CPU seconds."""
    data = folder / "data"
    write_data(data, options)
    sources = {BEFORE: options.before, NOW: HERE.parents[1] / "src"}
    versions = {name: source for name, source in sources.items() if source}
    spent: dict[str, list[dict[str, float]]] = {}
    scores: dict[str, set[str]] = {}

    def fit(method: str, version: str) -> None:
        seconds, score = run(options, method, data, versions[version])
        spent.setdefault(f"{method}, {version}", []).append(seconds)
        scores.setdefault(method, set()).add(score)

    runs: dict[str, Run] = {
        f"{m}, {v}": partial(fit, m, v) for m in options.methods for v in versions
    }
    interleaved(runs, options.repeat, text="fit", warm_up=options.repeat > 1)
    different = [method for method, found in scores.items() if len(found) > 1]
    if different:
        raise SystemExit(f"the versions differ in accuracies: {different}")
    return [row(name, found[-options.repeat :]) for name, found in spent.items()]


def run(
    options: argparse.Namespace, method: str, data: Path, source: Path
) -> tuple[dict[str, float], str]:
    """Run `fit`; return the CPU seconds of its parts, and its scores as text."""
    with tempfile.TemporaryDirectory() as own:
        place, seconds = Path(own, "run"), Path(own, "seconds.json")
        own_settings = [
            text.partition(":")[2] for text in options.set if text.startswith(f"{method}:")
        ]
        words = [
            "fit", str(data), "--out", str(place), "--quiet", "--method", method,
            "--backbone", options.backbone, "--shots", str(options.shots),
            *(word for text in own_settings for word in ("--set", text)),
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, str(HERE / "cpu_parts.py"), str(seconds), *words], check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source.resolve())},
        )  # fmt: skip
        record = json.loads((place / "run.json").read_text())
        return json.loads(seconds.read_text(encoding="utf-8")), json.dumps(record["scores"])


def row(name: str, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of the parts of one command, and their sum."""
    parts = {part: statistics.median(one[part] for one in found) for part in NAMES}
    return {"run": name, "cpu": sum(parts.values()), **parts}


def write_data(folder: Path, options: argparse.Namespace) -> None:
    """Write JPEG files of smooth noise, which take about as many bytes as photographs, in a folder
    per split and class."""
    rng = np.random.default_rng(options.seed)
    size = tuple(options.pixels)
    for split, count in (("train", options.shots), ("test", options.tests)):
        for name in class_names(options.classes, options.seed):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
                file = folder / split / name / f"{number}.jpg"
                coarse.resize(size, Image.Resampling.BICUBIC).save(file, quality=90)


if __name__ == "__main__":
    main()
