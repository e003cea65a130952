"""Measure the seconds from a folder of large photographs to the first training step, and count the
decoded files.

    python research/benchmarks/first_step.py --images 10000 --json

`fit` without command line, in this process, stopped after its first step. The folder holds
`--distinct` different JPEG files; the rest are hard links to them, so that the files come from
memory and the processor's work counts. Start it with PYTHONPATH of two versions to compare them;
`--folder` keeps the images for the second.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from common import arguments, set_up, setting, show
from PIL import Image

from rmadapter.backbones import load_backbone
from rmadapter.data import decode
from rmadapter.data.read import read_images
from rmadapter.runs.fit import fit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.settings import parse_overrides
from rmadapter.training.shots import Callback

KEYS = ("images", "seconds", "cpu_seconds", "files_decoded", "decodes")


class Stepped(Exception):
    """Raised after the first step."""


def main() -> None:
    parser = arguments(__doc__, backbone="pocket")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=400, help="different files")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shots", type=int, default=16, help="training images a class")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=[4000, 3000], help="width and height of a file"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="as for `fit`")
    parser.add_argument("--folder", type=Path, help="keeps the images for the next call")
    options = parser.parse_args()
    set_up(options)
    with tempfile.TemporaryDirectory() as temporary:
        data = options.folder or Path(temporary) / "data"
        if not data.exists():
            write_data(data, options)
        result = measure(data, Path(temporary) / "run", options)
    about = setting(options, "classes", "shots", "distinct", "pixels")
    show(options, {**result, **about}, KEYS, [result])


def measure(data: Path, out: Path, options: Any) -> dict[str, Any]:
    """Measure the seconds until the first step, without loading the backbone, and count decoded
    files."""
    counts: Counter[str] = Counter()
    read_image = decode.read_image

    def counted(file: BinaryIO, name: str) -> Image.Image:
        counts[os.path.relpath(name, data)] += 1
        return read_image(file, name)

    def stop(figures: object) -> None:
        raise Stepped

    decode.read_image = counted
    values = {"shots": options.shots, "seed": options.seed, "backbone": options.backbone}
    values |= parse_overrides(options.set)
    request = Request.make(values, "rmadapter", data=str(data))
    lab = Lab(request.machine, progress=False, callbacks=(Callback(on_step=stop),))
    lab.add_backbone(load_backbone(options.backbone))
    begun = time.perf_counter()
    processor = time.process_time()
    lab.add(str(data), read_images(data, progress=False))
    try:
        fit(request.task, request.method, out, lab, request.name)
    except Stepped:
        pass
    finally:
        decode.read_image = read_image
    return {
        "images": sum(len(files) for _, _, files in os.walk(data)),
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "files_decoded": len(counts),
        "decodes": counts.total(),
    }


def write_data(data: Path, options: Any) -> None:
    """Write smooth noise, as blurred as photographs are, into class folders."""
    width, height = options.pixels
    rng = np.random.default_rng(options.seed)
    for number in range(options.images):
        path = data / f"class {number % options.classes}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < options.distinct:
            small = rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), np.uint8)
            large = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
            large.save(path, quality=85)
        else:  # a different file of the same class
            different = options.distinct // options.classes * options.classes
            os.link(path.with_name(f"{number % different:06}.jpg"), path)


if __name__ == "__main__":
    main()
