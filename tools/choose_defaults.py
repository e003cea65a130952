"""Compare settings on train images of base classes alone, as docs/defaults.md describes.

    python tools/choose_defaults.py DATA [DATA ...] --grid grid.yaml --out results.jsonl

Of each data set only the train images of the base classes are read. They are halved once more: the adapter is trained
on 12 images of each class of the first half, and judged by the other images of those classes ("base") and by all images
of the second half ("novel"). The grid file is a list of {setting: value} mappings, "method: mma" among them if wanted.
Finished lines are kept: start it again to go on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rmadapter.data.fewshot import half, sample_shots
from rmadapter.data.images import ImageSet, read_images
from rmadapter.request import Request
from rmadapter.run import Lab, run_task

SHOTS = 12


def splits_of(base: ImageSet, shots: int, seed: int) -> dict[str, ImageSet]:
    """What is trained on, and what is asked: images of the first half of the classes, drawn and not, and both times
    all of the second half, of which a task for the base classes trains on none."""
    cut = len(half(base, "base").classes)
    first = [row for row, label in enumerate(base.labels) if label < cut]
    second = [row for row, label in enumerate(base.labels) if label >= cut]
    drawn = [first[i] for i in sample_shots([base.labels[row] for row in first], shots, random.Random(seed))]
    return {"train": base.subset([*drawn, *second]), "test": base.subset([*sorted({*first} - {*drawn}), *second])}


def trial(lab: Lab, data: str, seed: int, backbone: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Train once and measure both halves, untouched and adapted."""
    values = {name: value for name, value in fields.items() if name != "method"}
    common = {"backbone": backbone, "seed": seed, "shots": 0, "classes": "base"}
    wanted = Request.make({**values, **common}, fields.get("method", "rmadapter"), data=data)
    record = run_task(wanted.task, wanted.method, lab, wanted.name).record
    found: dict[str, Any] = {"seconds": round(record.seconds["train"], 1)}
    for name in ("base", "novel"):
        found |= {name: record.metric(name), f"zero_shot_{name}": record.metric(name, zero_shot=True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--shots", type=int, default=SHOTS)
    parser.add_argument("--backbone", default="pocket")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {json.dumps([line["data"], line["seed"], line["fields"]], sort_keys=True) for line in lines}
    for data in args.data:
        base = half(read_images(data, progress=False)["train"], "base")
        for seed in map(int, args.seeds.split(",")):
            lab = Lab(keep=True, progress=False)  # frozen activations are computed once for all settings
            lab.add(data.name, splits_of(base, args.shots, seed))
            for fields in yaml.safe_load(args.grid.read_text()):
                if json.dumps([data.name, seed, fields], sort_keys=True) in done:
                    continue
                found = trial(lab, data.name, seed, args.backbone, fields)
                line = json.dumps({"data": data.name, "seed": seed, "fields": fields, **found})
                with args.out.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
