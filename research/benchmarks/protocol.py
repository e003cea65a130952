"""Measure a run of many classes, `rmadapter bench`.

    python research/benchmarks/protocol.py --classes 100 --shots 16 --json

A tenth of the ImageNet protocol: a folder of a ViT-B/16 with random weights, generated images, one
epoch. The bench is a whole command in a process of its own, with --threads or torch's own choice.
Seconds are those of its record, peak memory and CPU seconds those of the process, and disk is all
files of the results. The rows "planned" of protocol.json are of `bench --plan`, which estimated
costs then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import GB, arguments, class_names, set_up, setting, show
from PIL import Image
from predict_many import COMMAND
from start import RANDOM, children, write_random

from rmadapter.support.terminal import note

KEYS = ("classes", "shots", "what", "seconds", "cpu_seconds", "memory_gb", "disk_gb")
DATA = "generated"


@dataclass(frozen=True)
class Protocol:
    """A command on one folder with generated images."""

    options: argparse.Namespace
    root: Path
    backbone: str

    def write(self, classes: int, tests: int) -> str:
        """Write as many classes, with the shots and test images of each; return the folder."""
        options, name = self.options, f"{DATA}-{classes}"
        rng = np.random.default_rng(options.seed)
        for split, count in (("train", options.shots), ("test", tests)):
            for place, one in enumerate(class_names(classes, options.seed)):
                own = self.root / name / split / one
                if own.exists():  # two of ImageNet's classes have the same name
                    own = own.with_name(f"{one} {place}")
                own.mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (options.pixels, options.pixels, 3), np.uint8)
                    Image.fromarray(pixels).save(own / f"{number}.jpg")
        return name

    def run(self, data: str) -> tuple[dict[str, Any], Any]:
        """Run a bench; return the figures of that, and what was printed."""
        out = self.root / f"bench-{data}"
        words = [
            "bench", "few-shot", "--datasets", data, "--root", str(self.root), "--out", str(out),
            "--methods", self.options.method, "--backbone", self.backbone, "--seeds", "1",
            "--shots", str(self.options.shots), "--set", f"{self.options.method}.epochs=1",
            *(word for text in self.options.set for word in ("--set", text)), "--quiet", "--json",
        ]  # fmt: skip
        threads = {"OMP_NUM_THREADS": f"{self.options.threads}"} if self.options.threads else {}
        begun, spent = time.monotonic(), children()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *words], text=True, capture_output=True, check=False,
            env={**os.environ, **threads},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
        figures = {
            "seconds": time.monotonic() - begun,
            "cpu_seconds": children() - spent,
            "memory_gb": float(done.stderr.split()[-1]) / 1e3,
            "disk_gb": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / GB,
        }
        note(f"{data}: {figures}")
        return figures, json.loads(done.stdout)


def main() -> None:
    parser = arguments(__doc__, "classes", backbone=RANDOM, classes=100, repeat=1)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--tests", type=int, default=1, help="test images of a class")
    parser.add_argument("--pixels", type=int, default=224, help="width and height of an image")
    parser.add_argument("--method", default="rmadapter")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="METHOD.FIELD=VALUE", help="settings"
    )
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    about = setting(options, "classes", "shots", "tests", "pixels", "method", "set")
    show(options, {**result, **about}, KEYS, result["rows"])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the protocol."""
    name = write_random(folder / "model") if options.backbone == RANDOM else options.backbone
    protocol = Protocol(options, folder, name)
    run, [record] = protocol.run(protocol.write(options.classes, options.tests))
    process = run["seconds"]
    run["seconds"] = record["seconds"]["total"]
    row = {"classes": options.classes, "shots": options.shots, "what": "run", **run}
    return {"rows": [row], "process_seconds": process, "parts": record["seconds"]}


if __name__ == "__main__":
    main()
