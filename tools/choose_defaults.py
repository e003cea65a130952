"""Compare settings from base to novel classes, on backbones and on copies of them with other logit
scales.

python tools/choose_defaults.py caltech101 rsscn7 --root DATA --grid grid.yaml --out results.jsonl

What is chosen with it is reported on other data sets: see docs/defaults.md. The logit scale differs
between backbones (15 to 100) and changes no zero-shot answer, but shifts the cross-entropy against
the other terms of the loss. The grid file is a list of {setting: value} mappings, which may contain
"method: mma". Finished lines are kept: start it again to go on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task


def rescaled(name: str, scale: float) -> Backbone:
    """A new backbone with another logit scale; 0 keeps the scale."""
    backbone = load_backbone(name)
    if not scale:
        return backbone
    with torch.no_grad():
        backbone.model.logit_scale.fill_(math.log(scale))  # type: ignore[operator]
    return replace(backbone, name=f"{name} at logit scale {scale:g}")


def trial(
    lab: Lab, data: str, seed: int, backbone: str, shots: int, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Train on the base classes once; test both halves with the untouched and with the adapted
    backbone."""
    values = {name: value for name, value in fields.items() if name != "method"}
    common = {"backbone": backbone, "seed": seed, "shots": shots, "classes": "base"}
    wanted = Request.make({**values, **common}, fields.get("method", "rmadapter"), data=data)
    record = run_task(wanted.task, wanted.method, lab, wanted.name).record
    found: dict[str, Any] = {"seconds": round(record.seconds["train"], 1)}
    for name in ("base", "novel"):
        found |= {
            name: record.metric(name),
            f"zero_shot_{name}": record.metric(name, zero_shot=True),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="data sets below --root")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--backbone", nargs="+", default=["pocket"])
    parser.add_argument(
        "--logit-scale", type=float, nargs="+", default=[0, 50, 100], help="0: the backbone's own"
    )
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {_key(json.loads(line)) for line in lines}
    grid = yaml.safe_load(args.grid.read_text())
    for name in args.backbone:
        for scale in args.logit_scale:
            lab = Lab(
                root=args.root, keep=True, progress=False
            )  # activations are computed once for all settings
            lab.add_backbone(backbone := rescaled(name, scale))
            for data in args.data:
                for seed in args.seeds:
                    about = {
                        "data": data,
                        "backbone": backbone.name,
                        "shots": args.shots,
                        "seed": seed,
                    }
                    for fields in grid:
                        if _key(line := {**about, "fields": fields}) in done:
                            continue
                        line |= trial(lab, data, seed, backbone.name, args.shots, fields)
                        with args.out.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                        print(json.dumps(line), flush=True)


def _key(line: Mapping[str, Any]) -> str:
    return json.dumps(
        [line[name] for name in ("data", "backbone", "shots", "seed", "fields")], sort_keys=True
    )


if __name__ == "__main__":
    main()
