"""Plan a run of many classes with `rmadapter bench --plan`, do it, and compare.

    python research/benchmarks/protocol.py --classes 100 --shots 16 --json

A tenth of the ImageNet protocol: a folder of a ViT-B/16 with random weights, generated images, one
epoch. Plan and bench are whole commands in processes of their own, with --threads or torch's own
choice. Of the run, seconds are those of its record, peak memory and CPU seconds those of the
process, and disk is all files of the results; the plan states activations alone. --planned is
planned and not run: the whole protocol.
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
    """Commands on one folder with generated images."""

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

    def command(self, what: str, data: str) -> tuple[dict[str, Any], Any]:
        """Plan a bench or run it; return the figures of that, and what was printed."""
        out = self.root / f"{what}-{data}"
        words = [
            "bench", "few-shot", "--datasets", data, "--root", str(self.root), "--out", str(out),
            "--methods", self.options.method, "--backbone", self.backbone, "--seeds", "1",
            "--shots", str(self.options.shots), "--set", f"{self.options.method}.epochs=1",
            *(word for text in self.options.set for word in ("--set", text)), "--quiet", "--json",
            *(["--plan"] if what == "plan" else []),
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
        note(f"{what} of {data}: {figures}")
        return figures, json.loads(done.stdout)

    def plan(self, classes: int, data: str) -> tuple[dict[str, Any], float]:
        """Return the row that the plan states, and the seconds that it took."""
        own, cost = self.command("plan", data)
        stated = {
            "seconds": 3600 * cost["hours"],
            "cpu_seconds": None,
            "memory_gb": cost["memory"] / GB,
            "disk_gb": cost["disk"] / GB,
        }
        return self.row(classes, "planned", stated), own["seconds"]

    def row(self, classes: int, what: str, figures: dict[str, Any]) -> dict[str, Any]:
        return {"classes": classes, "shots": self.options.shots, "what": what, **figures}


def main() -> None:
    parser = arguments(__doc__, "classes", backbone=RANDOM, classes=100, repeat=1)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--tests", type=int, default=1, help="test images of a class")
    parser.add_argument("--pixels", type=int, default=224, help="width and height of an image")
    parser.add_argument("--method", default="rmadapter")
    parser.add_argument("--planned", type=int, nargs="*", default=[1000], help="classes to plan")
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
    """Plan and run the protocol, and plan others."""
    name = write_random(folder / "model") if options.backbone == RANDOM else options.backbone
    protocol = Protocol(options, folder, name)
    others = [
        protocol.plan(classes, protocol.write(classes, options.tests))[0]
        for classes in dict.fromkeys(options.planned)
        if classes != options.classes
    ]
    data = protocol.write(options.classes, options.tests)
    planned, planning = protocol.plan(options.classes, data)
    run, [record] = protocol.command("bench", data)
    process = run["seconds"]
    run["seconds"] = record["seconds"]["total"]  # the plan leaves out the start of the process, too
    rows = [planned, protocol.row(options.classes, "run", run), *others]
    about = {"plan_seconds": planning, "process_seconds": process, "parts": record["seconds"]}
    return {"rows": rows, **about}


if __name__ == "__main__":
    main()
