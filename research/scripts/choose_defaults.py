"""Compare settings from base to novel classes, on backbones and on copies of them with other logit
scales.

python research/scripts/choose_defaults.py caltech101 rsscn7 --root DATA --grid grid.yaml \\
    --out results.jsonl

What is chosen with it is reported on other data sets: see docs/studies/defaults.md. The logit scale
differs between backbones (15 to 100) and changes no zero-shot answer, but shifts the cross-entropy
against the other terms of the loss. The grid file is a list of {setting: value} mappings, which may
contain "method: mma". Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from studies import Line, append_lines, read_lines

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task


def rescaled(name: str, scale: float) -> Backbone:
    """Load a backbone with another logit scale; 0 keeps the scale."""
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
    request = Request.make({**values, **common}, fields.get("method", "rmadapter"), data=data)
    record = run_task(request.task, request.method, lab, request.name).record
    line: dict[str, Any] = {"seconds": round(record.seconds["train"], 1)}
    for name in ("base", "novel"):
        line[name] = record.metric(name)
        line[f"zero_shot_{name}"] = record.metric(name, zero_shot=True)
    return line


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
    done = {_key(line) for line in read_lines(args.out)}
    grid = yaml.safe_load(args.grid.read_text())
    for name, scale in itertools.product(args.backbone, args.logit_scale):
        lab = Lab(root=args.root, keep=True, progress=False)  # activations serve all settings
        backbone = rescaled(name, scale)
        lab.add_backbone(backbone)
        for data, seed, fields in itertools.product(args.data, args.seeds, grid):
            line = {"data": data, "backbone": backbone.name, "shots": args.shots, "seed": seed}
            line["fields"] = fields
            if _key(line) not in done:
                line |= trial(lab, data, seed, backbone.name, args.shots, fields)
                append_lines(args.out, [line])
                print(json.dumps(line), flush=True)


def _key(line: Line) -> str:
    names = ("data", "backbone", "shots", "seed", "fields")
    return json.dumps([line[name] for name in names], sort_keys=True)


if __name__ == "__main__":
    main()
