"""RMAdapter+ piece by piece: one training, tested with some of its pieces or without the adapters.

    python tools/plus.py dtd10 sign_digits --root DATA --out docs/results/plus.jsonl

A line is a data set, number of shots and seed, with the accuracies of `PIECES` on the base and
novel classes. The adapters are trained once; the answers follow from their features and the
untouched ones. Finished lines are kept: start it again to go on. docs/plus.md says what was found.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmadapter.data.fewshot import half
from rmadapter.data.image_set import ImageSet
from rmadapter.methods.rmadapter_plus import HEAD, Both, RMAdapterPlus, ridge, unit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.settings import Machine
from rmadapter.support.machine import versions
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted

KEY = ("data", "backbone", "precision", "shots", "seed")
# Settings of the answers that differ from the whole; `adapters` False is the control without them,
# on the same shots.
PIECES: dict[str, dict[str, Any]] = {
    "zero-shot": {"adapters": False, "head": 0.0, "general": ()},
    "zero-shot, 8 templates": {"adapters": False, "head": 0.0},
    "adapters": {"head": 0.0, "keep": 1.0, "general": ()},
    "and regression": {"keep": 1.0, "general": ()},
    "and untouched": {"general": ()},
    "RMAdapter+": {},
    "without adapters": {"adapters": False},
    **{
        f"without adapters, regression {weight:g}": {"adapters": False, "head": weight}
        for weight in (1, 2, 1000)
    },
    "without regression": {"head": 0.0},
    **{f"regression {weight:g}": {"head": weight} for weight in (0.25, 1, 2)},
    **{f"penalty {value:g}": {"penalty": value} for value in (0.3, 3)},
    **{f"keep {share:g}": {"keep": share} for share in (0.0, 0.25, 0.75, 1.0)},
}


@torch.no_grad()
def features(scorer: Both, images: ImageSet, cache: Cache, first: int) -> tuple[Tensor, Tensor]:
    """Adapted and untouched features, [N, e], of unit length."""
    both = [(scorer.model.features("image", s)[0], s.features) for s in cache.stream(images, first)]
    adapted, untouched = (unit(torch.cat(list(parts))) for parts in zip(*both, strict=True))
    return adapted, untouched


def trial(lab: Lab, data: str, seed: int, shots: int, backbone: str) -> dict[str, Any]:
    """One training, and the accuracies of each of PIECES in %."""
    common = {"backbone": backbone, "seed": seed, "shots": shots, "classes": "base"}
    wanted = Request.make(common, "rmadapter-plus", data=data)
    method, task = wanted.method, wanted.task
    assert isinstance(method, RMAdapterPlus)
    outcome = run_task(task, method, lab, wanted.name)
    train, fitted = half(lab.draw(task).train, "base"), outcome.fitted
    x = unit(lab.train_cache(task).features(train)[0])
    found: dict[str, Any] = {
        "seconds": outcome.record.seconds["train"],
        "split": outcome.record.split_digest,
    }
    for question, images, _ in lab.tests(task):
        whole = answering(method, fitted, x, train.labels, {}, images.classes)
        f, g = features(whole, images, lab.test_cache(task), whole.model.first("image"))
        for name, fields in PIECES.items():
            scorer = answering(method, fitted, x, train.labels, fields, images.classes)
            logits = (
                f if fields.get("adapters", True) else g
            ) @ scorer.adapted.T + g @ scorer.untouched.T
            right = (logits.argmax(1).cpu() == torch.tensor(images.labels)).float().mean()
            found.setdefault(name, {})[question.name] = round(100 * float(right), 4)
    return found


def answering(
    method: RMAdapterPlus, fitted: Fitted, x: Tensor, labels: Sequence[int], fields: Mapping[str, Any],
    names: Sequence[str],
) -> Both:  # fmt: skip
    """The same adapters with other fields. x, labels: untouched unit features [N, e] and labels [N]
    of the shots."""
    values = {name: value for name, value in fields.items() if name != "adapters"}
    if not fields.get("adapters", True):
        values["adapter"] = replace(method.adapter, alpha=0.0)
    other = replace(method, **values)
    head = ridge(x, torch.tensor(labels, device=x.device), len(fitted.classes), other.penalty)
    with torch.no_grad():
        scorer = other.restore(
            fitted.backbone, fitted.known, {**fitted.tensors, HEAD: head}
        ).for_classes(names)
    assert isinstance(scorer, Both)
    return scorer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="data sets below --root")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    lines = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    done = {tuple(line[key] for key in KEY) for line in lines}
    lab = Lab(Machine(precision=args.precision), args.root, keep=True, progress=False)
    for data, shots, seed in itertools.product(args.data, args.shots, args.seeds):
        key = (data, args.backbone, args.precision, shots, seed)
        if key not in done:
            line = dict(zip(KEY, key, strict=True)) | trial(lab, data, seed, shots, args.backbone)
            with args.out.open("a") as file:
                file.write(json.dumps(line | {"versions": versions()}) + "\n")
            print(data, shots, seed, line["RMAdapter+"], flush=True)


if __name__ == "__main__":
    main()
