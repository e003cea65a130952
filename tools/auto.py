"""What `--method auto` is worth: its candidates over folds of the shots, and on the test split, task by task.

    python tools/auto.py caltech101 rsscn7 pacs/photo --root DATA --out docs/results/auto.jsonl

A line is one candidate on one task. Which of them `auto` takes follows from the lines: docs/auto.md. Finished lines are
kept: start it again to go on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from rmadapter.choose import CANDIDATES
from rmadapter.folds import Folds
from rmadapter.request import Request
from rmadapter.run import Lab, run_task

FOLDS = 3


def trial(lab: Lab, data: str, shots: int, seed: int, name: str, folds: Folds | None) -> tuple[dict[str, Any], Folds]:
    """One candidate: which images it names over the folds, as bits in hexadecimal, and how many of the test split."""
    wanted = Request.make({"shots": shots, "seed": seed}, name, data=data)
    folds = folds or Folds.make(wanted.task, lab, FOLDS)
    found = folds.answers(wanted.method, name)
    right = found.table.argmax(1) == np.array(folds.judged.labels)
    record = run_task(wanted.task, wanted.method, lab, name).record
    return {
        "folds": len(folds),
        "images": len(right),
        "right": np.packbits(right).tobytes().hex(),
        "seconds": round(found.seconds, 1),
        "test_images": record.scores[0].images,
        "test": record.metric("all"),
        "test_seconds": record.seconds["train"],
        "split_digest": record.split_digest,
        "backbone": record.backbone.model_dump(),
        "versions": record.versions,
    }, folds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="data sets below --root")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES)
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["data"], line["shots"], line["seed"], line["candidate"]) for line in lines}
    for data in args.data:
        lab = Lab(root=args.root, keep=True, progress=False)
        for seed in args.seeds:
            for shots in args.shots:
                folds = None
                for name in args.candidates:
                    if (key := (data, shots, seed, name)) in done:
                        continue
                    found, folds = trial(lab, data, shots, seed, name, folds)
                    line = {**dict(zip(("data", "shots", "seed", "candidate"), key, strict=True)), **found}
                    with args.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
