"""Measure what Ray costs in bulk prediction: seconds per image of the local engine, and of one and
two workers of a cluster.

    python research/benchmarks/ray_predict.py --backbone pocket --images 1024 --json

All answer the same JPEG files with the same run, one after the other. Each answers the first 64
files per worker once before that: these seconds are `start`, with what both calls need, Ray's
workers and the run. They are subtracted, and the rest is divided by the number of the other files.
`share` is the local engine's seconds over the cluster's: 1 if Ray costs nothing with one worker.
Measure on an idle machine: Ray does not tell what ended processes used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import arguments, class_names, set_up, setting, show

from predict import write_files
from rmadapter.artifacts.checkpoint import load, save
from rmadapter.backbones import load_backbone
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.predict.ray import cluster
from rmadapter.predict.stream import Predictor
from rmadapter.support.cluster import connected
from rmadapter.training.cache import BATCH_SIZE
from rmadapter.training.contract import Known

KEYS = ("workers", "start", "seconds", "share")


def main() -> None:
    parser = arguments(__doc__, "classes", backbone="pocket", threads=1)
    parser.add_argument("--images", type=int, default=1024, help="files")
    parser.add_argument(
        "--pixels", type=int, nargs=2, default=[500, 375], help="width and height of a file"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the cluster")
    options = parser.parse_args()
    set_up(options)
    if options.images <= (least := BATCH_SIZE * max(options.workers)):
        raise SystemExit(f"--images {options.images}: give more than {least}")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    show(options, result, KEYS, result["rows"])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    about = setting(options, "images", "pixels", "classes")
    backbone = load_backbone(options.backbone)
    names = tuple(class_names(options.classes, options.seed))
    save(folder / "run", ZeroShot().restore(backbone, Known(names), {}), "zero-shot")
    files = list(write_files(folder, options))
    predictor = Predictor(load(folder / "run", options.backbone).fitted, names, names)
    rows = [timed(0, predictor, files)]
    for workers in options.workers:
        with connected(processors=max(options.workers)):
            rows.append(
                timed(
                    workers,
                    cluster(predictor, folder / "run", options.backbone, "", workers, ""),
                    files,
                )
            )
    for row in rows:
        row["share"] = rows[0]["seconds"] / row["seconds"]
    return {"about": about, "rows": rows}


def timed(workers: int, predictor: Any, files: Sequence[Path]) -> dict[str, Any]:
    """Measure the seconds per image. workers: 0 for the local engine."""
    few = BATCH_SIZE * max(workers, 1)
    start = spent(predictor, files[:few])
    whole = spent(predictor, files)
    return {"workers": workers, "start": start, "seconds": (whole - start) / (len(files) - few)}


def spent(predictor: Any, files: Sequence[Path]) -> float:
    """Measure the seconds until all images are answered."""
    begun = time.perf_counter()
    assert sum(map(len, predictor.predict(files))) == len(files)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
