"""Measure how well strange images are told from those of a model's classes. The tables are in
docs/studies/unfamiliar.md.

    python tools/familiar.py --root DATA --out docs/results/familiar.jsonl --seeds 1
    python tools/familiar.py --out docs/results/familiar.jsonl --tables

A method is fitted to the base classes of a set. Test images of these classes are known, those of
the set's novel classes near, those of other sets far. The package's strangeness, calibrated by
folds of the shots, stands beside what it is made of, and beside the distance from the nearest
training image of the untouched encoder (`predict --unfamiliar`). How strangeness is made was chosen
on CHOOSE_ALL with a probe, before the first line. Finished lines are kept: repeat the command to
resume.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import torch
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    with_verdicts,
)
from torch import Tensor

from rmadapter.data.fewshot import half, split_digest
from rmadapter.data.image_set import ImageSet
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.features import distances, distances_of, with_means
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted

METHODS = ("linear-probe-pair", "rmadapter-plus")
MOST, FAR = 300, 60  # test images of a set, and of each other set, always the same ones
SHARE = 0.05  # of own images that may be turned away
# sets that share photographs or classes
RELATED = {"caltech101", "office_caltech/web", "pacs/photo"}
OURS, PARTS = "strangeness", ("distance", "doubt", "nearest image")
Scores: TypeAlias = Mapping[str, np.ndarray]  # [N] of N images, by name


def some(images: ImageSet, most: int) -> ImageSet:
    """Return at most so many images, drawn with a fixed seed."""
    rows = random.Random(0).sample(range(len(images)), min(most, len(images)))
    return images.subset(sorted(rows))


@torch.no_grad()
def scores(fitted: Fitted, images: ImageSet, cache: Cache, shots: Tensor) -> Scores:
    """Return each score, higher for stranger images. shots: untouched unit features [N, e] of the
    training images."""
    table = predict_all({"": fitted.score()}, fitted, cache, images, 0)[""].numpy()
    assert fitted.familiarity is not None
    far = distances_of(fitted, images, cache)
    frozen = distances(cache.features(images)[0], shots).cpu().numpy()
    return {
        OURS: fitted.familiarity.strangeness(table, far),
        "distance": far,
        "doubt": 1 - table.max(1).astype(np.float64),
        "nearest image": frozen,
    }


def apart(known: np.ndarray, other: np.ndarray) -> list[float]:
    """Return the AUROC in %, and the share of other images, in %, that pass where 95 % of the known
    do."""
    from sklearn.metrics import roc_auc_score

    area = roc_auc_score(np.repeat([0, 1], [len(known), len(other)]), np.r_[known, other])
    passed = (other <= np.quantile(known, 0.95)).mean()
    return [round(100 * float(area), 3), round(100 * float(passed), 3)]


def trial(
    lab: Lab, data: str, others: Sequence[str], shots: int, seed: int, method: str, backbone: str
) -> dict[str, Any]:
    """Fit a method to the base classes of a set, and tell their test images from near and far
    ones."""
    common = {"backbone": backbone, "shots": shots, "seed": seed, "classes": "base"}
    request = Request.make(common, method, data=data)
    task, few = request.task, lab.draw(request.task)
    train, cache = half(few.train, "base"), lab.test_cache(task)
    folds = Folds.make(task, few, lab, FOLDS)
    temperature = folds.temperature(request.method, method, whole=True) or 1.0
    held_out = folds.tempered(request.method, method, temperature)
    assert held_out is not None
    fitted = replace(learn(request.method, train, task, few, lab), temperature=temperature)
    fitted = held_out.calibrate(with_means(fitted, train, lab.train_cache(task)), "folds")
    shot_features = lab.train_cache(task).features(train)[0]
    unit = torch.nn.functional.normalize(shot_features.float(), dim=-1)
    test = lab.splits(data)["test"]
    known = scores(fitted, some(half(test, "base"), MOST), cache, unit)
    near = scores(fitted, some(half(test, "novel"), MOST), cache, unit)
    parts = [scores(fitted, some(lab.splits(other)["test"], FAR), cache, unit) for other in others]
    far = {name: np.concatenate([part[name] for part in parts]) for name in known}
    line: dict[str, Any] = {"data": data, "shots": shots, "seed": seed, "method": method}
    line |= {"known": len(known[OURS]), "near": len(near[OURS]), "far": len(far[OURS])}
    line["calibrated"] = len(held_out.labels)
    for kind, part in {"near": near, "far": far}.items():
        line[f"apart {kind}"] = {name: apart(known[name], part[name]) for name in known}
    assert fitted.familiarity is not None
    if line["calibrated"] >= 1 / SHARE - 1:
        limit = fitted.familiarity.limit(SHARE)
        kinds = {"known": known, "near": near, "far": far}
        line["away"] = {
            kind: round(100 * float((part[OURS] > limit).mean()), 3) for kind, part in kinds.items()
        }
    return line | {"split": split_digest(few), "versions": versions()}


def far_of(data: str) -> list[str]:
    """Return the other sets of the same half, except those that share photographs or classes."""
    group = CHOOSE_ALL if data in CHOOSE_ALL else REPORT_ALL
    return [other for other in group if other != data and not {data, other} <= RELATED]


# Tables. A set is one observation: the mean over its seeds.


def rates(lines: Lines, score: str, kind: str) -> list[float]:
    """Return the mean AUROC and the mean share that passes, over sets."""
    values = [line[f"apart {kind}"][score] for line in lines]
    return [fmean(column) for column in zip(*values, strict=True)]


def compared(lines: Lines) -> list[list[str]]:
    """Compare strangeness with each of its parts and with the nearest image, in points of AUROC."""
    differences: dict[str, list[list[float]]] = {}
    for kind, other in itertools.product(("near", "far"), PARTS):
        sets: dict[str, list[float]] = {}
        for line in lines:
            found = line[f"apart {kind}"]
            sets.setdefault(line["data"], []).append(found[OURS][0] - found[other][0])
        differences[f"{kind}: {OURS} - {other}"] = [*sets.values()]
    return [[name, *cells] for name, cells in with_verdicts(differences, 1).items()]


def tables(lines: Lines) -> dict[str, str]:
    """Make the tables of docs/studies/unfamiliar.md by name."""
    parts: dict[str, str] = {}
    for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        for shots, method in itertools.product((4, 16), METHODS):
            found = [
                line
                for line in lines
                if line["data"] in sets and (line["shots"], line["method"]) == (shots, method)
            ]
            if not found:
                continue
            name = f"{title}: {shots} shots, {method}"
            rows = []
            for score in (OURS, *PARTS):
                near, far = rates(found, score, "near"), rates(found, score, "far")
                rows.append([score, *(f"{x:.1f}" for x in (near[0], far[0], near[1], far[1]))])
            heads = ["AUROC near", "AUROC far", "near that pass", "far that pass"]
            count = len({line["data"] for line in found})
            parts[name] = markdown([f"{count} sets, in %", *heads], rows)
            parts[f"{name}, differences"] = markdown(["points of AUROC", *TESTED], compared(found))
            away = [line["away"] for line in found if "away" in line]
            if away:
                rows = [[str(len(away)), *(f"{fmean(x[k] for x in away):.1f}" for k in away[0])]]
                heads = ["sets", "own images turned away", "near", "far"]
                parts[f"{name}, turned away"] = markdown(heads, rows)
    return parts


def main() -> None:
    parser = make_parser(__doc__, (*CHOOSE_ALL, *REPORT_ALL))
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--backbone", default="pocket")
    args = parser.parse_args()
    lines: Sequence[Line] = read_lines(args.out)
    if args.tables:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables(lines).items()))
        return
    done = {tuple(line[name] for name in ("data", "shots", "seed", "method")) for line in lines}
    lab = Lab(root=args.root, keep=True, progress=False)
    for method, seed, shots, data in itertools.product(
        args.methods, args.seeds, args.shots, args.data
    ):
        if (data, shots, seed, method) not in done:
            line = trial(lab, data, far_of(data), shots, seed, method, args.backbone)
            append_lines(args.out, [line])
            print(data, shots, seed, method, line["apart near"], line["apart far"], flush=True)


if __name__ == "__main__":
    main()
