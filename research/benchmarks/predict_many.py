"""Measure the peak memory of `rmadapter predict` on folders of more and more images.

    python research/benchmarks/predict_many.py --json

The whole command `rmadapter predict RUN FOLDER --out answers.csv`, in a process of its own with one
thread, with a linear probe on a tiny random transformer. Folders hold images of 64 x 48 pixels, of
which 100 are different files and the others hard links to them. CPU seconds and peak memory are
those of the process, and every image must have its line in the answers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, class_names, set_up, setting, show
from growth import tiny
from PIL import Image
from start import children, write_run

DISTINCT = 100
# the system's own count of a process's peak would include that of its parent
COMMAND = """
import sys
from rmadapter.cli.main import main
try:
    main()
finally:
    import torch
    from rmadapter.support.machine import peak
    print(peak(torch.device("cpu"))["peak_mb"], file=sys.stderr)
"""
KEYS = ("images", "cpu_seconds", "peak_mb")


def main() -> None:
    parser = arguments(__doc__, "classes", classes=10, repeat=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    show(options, {"rows": rows, **setting(options, "classes")}, KEYS, rows)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure a row for each number of images."""
    model = folder / "model"
    write_run(folder / "run", tiny(model), class_names(options.classes, options.seed))
    rng = np.random.default_rng(options.seed)
    files = [folder / f"{number}.jpg" for number in range(DISTINCT)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(file)
    answer(folder, files, DISTINCT)  # from now on, this machine knows the model folder
    return [answer(folder, files, count) for count in options.images]


def answer(folder: Path, files: list[Path], count: int) -> dict[str, Any]:
    """Answer this many images in a process of its own."""
    images, out = folder / f"images-{count}", folder / "answers.csv"
    images.mkdir()
    for number in range(count):
        os.link(files[number % DISTINCT], images / f"{number:06}.jpg")
    words = ["predict", str(folder / "run"), str(images), "--out", str(out), "--quiet"]
    begun = children()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, "--backbone", str(folder / "model")], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    spent = children() - begun
    with out.open() as lines:
        answered = sum(1 for _ in lines) - 1
    out.unlink()
    if answered != count:
        raise SystemExit(f"{answered} of {count} images have answers")
    return {
        "images": count,
        "cpu_seconds": spent,
        "peak_mb": float(done.stderr.split()[-1]),
    }


if __name__ == "__main__":
    main()
