"""Measure how well strange images are told from those of a model's classes. The tables are in
docs/studies/unfamiliar.md.

    python research/scripts/familiar.py --root DATA --out research/results/familiar.jsonl --seeds 1
    python research/scripts/familiar.py --out research/results/familiar.jsonl --tables \\
        --pages docs/studies/unfamiliar.md docs/studies/promises.md

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
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import ood_scores
import torch
import torch.nn.functional as F
from promises import ERRORS, figures
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
    show,
    with_verdicts,
)
from torch import Tensor

from rmadapter.answers.held_out import needed
from rmadapter.answers.rejection import RejectionScore
from rmadapter.data.fewshot import half, split_digest
from rmadapter.data.image_set import ImageSet
from rmadapter.encoders import States
from rmadapter.methods.cocoa_mix import WORDS
from rmadapter.prompts import OfFeatures, zero_shot_weights
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.features import (
    distances,
    image_features,
    with_means,
)
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, NotApplicable

METHODS = ("linear-probe-pair", "rmadapter-plus")
SETTINGS = {"rmadapter-plus": {"keep": 0.5}}  # its default when this was measured
MOST, FAR = 300, 60  # test images of a set, and of each other set, always the same ones
SHARE = 0.05  # of own images that may be turned away
# sets that share photographs or classes
RELATED = {"caltech101", "office_caltech/web", "pacs/photo"}
OURS, PARTS = "strangeness", ("distance", "doubt", "nearest image")
NEWER = ("energy", "ViM", "NNGuide", "MCM", "NegLabel")  # of the literature
Scores: TypeAlias = Mapping[str, np.ndarray]  # [N] of N images, by name


def some(images: ImageSet, most: int) -> ImageSet:
    """Return at most so many images, drawn with a fixed seed."""
    rows = random.Random(0).sample(range(len(images)), min(most, len(images)))
    return images.subset(sorted(rows))


class Read(NamedTuple):
    """What a method reads from N images: its own unit features [N, d], its calibrated logits [N,
    C], and the untouched encoder's unit features [N, e]."""

    own: Tensor
    logits: Tensor
    frozen: Tensor


@torch.no_grad()
def read(fitted: Fitted, images: ImageSet, cache: Cache) -> Read:
    """Read images as a method does."""
    features, score = image_features(fitted, fitted.classes), fitted.score()

    def both(states: States) -> Tensor:
        return torch.cat([features(states), score(states)], -1)

    found = cache.features(images, first=fitted.first, of=both)[0].float().cpu()
    own, logits = found.split([found.shape[1] - len(fitted.classes), len(fitted.classes)], -1)
    frozen = cache.features(images)[0].float().cpu()
    return Read(F.normalize(own, dim=-1), logits, F.normalize(frozen, dim=-1))


@torch.no_grad()
def scores(fitted: Fitted, shots: Read, new: Read) -> Scores:
    """Return each score of new images, higher for those more out of distribution."""
    assert fitted.familiarity is not None
    assert fitted.means is not None
    table = new.logits.softmax(-1).numpy()
    far = distances(new.own, fitted.means.cpu()).numpy()
    words = [word for word in WORDS if word not in fitted.classes]
    classes, other_words = (
        zero_shot_weights(fitted.backbone, names, fitted.known.templates).cpu()
        for names in (fitted.classes, words)
    )
    scale = float(fitted.backbone.logit_scale)
    others = {
        "nearest image": distances(new.frozen, shots.frozen),
        "MCM": ood_scores.concepts(new.frozen, classes),
        "NegLabel": ood_scores.negatives(new.frozen, classes, other_words, scale),
    }
    if isinstance(fitted.for_classes(fitted.classes), OfFeatures):  # others have no logits of them
        read_all = (shots.own, shots.logits, new.own, new.logits)
        others["energy"] = ood_scores.energy(new.logits)
        others["ViM"] = ood_scores.virtual_logit(*read_all)
        others["NNGuide"] = ood_scores.guided(*read_all)
    return {
        OURS: fitted.familiarity.scores(table, far),
        "distance": far,
        "doubt": 1 - table.max(1).astype(np.float64),
        **{name: score.double().numpy() for name, score in others.items()},
    }


def with_added(fitted: Fitted, test: ImageSet, cache: Cache) -> dict[str, Any]:
    """Return `figures` of prediction sets by error, for those that can be promised, before and
    after the classes of the other half are added by name: of images of the own classes, and of the
    added ones. Nothing if the method takes no other classes."""
    calibration, known = fitted.calibration, fitted.classes
    assert calibration is not None
    try:
        after = fitted.score(test.classes)
    except NotApplicable:
        return {}
    own = np.array(test.labels) < len(known)
    groups = {
        "own, nothing added": (fitted.score(), known, own),
        "own": (after, test.classes, own),
        "added": (after, test.classes, ~own),
    }
    found: dict[str, Any] = {f"{100 * error:g}": {} for error in calibration.possible()}
    for name, (model, names, which) in groups.items():
        images = test.subset(np.flatnonzero(which).tolist())
        table = predict_all({"": model}, fitted, cache, images, 0)[""].numpy()
        for error, part in found.items():
            decider = fitted.decider(names, error=float(error) / 100)
            part[name] = figures(decider.sets(table), np.array(images.labels))
    return found


def apart(known: np.ndarray, other: np.ndarray) -> list[float]:
    """Return the AUROC in %, and the share of other images, in %, that pass where 95 % of the known
    do."""
    from sklearn.metrics import roc_auc_score

    area = roc_auc_score(np.repeat([0, 1], [len(known), len(other)]), np.r_[known, other])
    passed = (other <= np.quantile(known, 0.95)).mean()
    return [round(100 * float(area), 3), round(100 * float(passed), 3)]


def turned_away(rejection: RejectionScore, found: Scores) -> float:
    """Return which share of images, in %, is none of the classes if SHARE of own ones may be."""
    accepted = rejection.accepts(1 - found["doubt"][:, None], found["distance"], SHARE)
    return round(100 * float((~accepted).mean()), 3)


def trial(
    lab: Lab, data: str, others: Sequence[str], shots: int, seed: int, method: str, backbone: str
) -> dict[str, Any]:
    """Fit a method to the base classes of a set, and tell their test images from near and far
    ones."""
    common = {"backbone": backbone, "shots": shots, "seed": seed, "classes": "base"}
    request = Request.make(common | SETTINGS.get(method, {}), method, data=data)
    task, few = request.task, lab.draw(request.task)
    train, cache = half(few.train, "base"), lab.test_cache(task)
    folds = Folds.make(task, few, lab, FOLDS)
    temperature = folds.temperature(request.method, method) or 1.0
    held_out = folds.tempered(request.method, method, temperature)
    fitted = replace(learn(request.method, train, task, few, lab), temperature=temperature)
    fitted = with_means(fitted, train, lab.train_cache(task))
    fitted = held_out.calibrate(fitted, "folds", task.seed)
    shots_read = read(fitted, train, lab.train_cache(task))
    test = lab.splits(data)["test"]

    def score(images: ImageSet, most: int) -> Scores:
        return scores(fitted, shots_read, read(fitted, some(images, most), cache))

    known, near = score(half(test, "base"), MOST), score(half(test, "novel"), MOST)
    parts = [score(lab.splits(other)["test"], FAR) for other in others]
    far = {name: np.concatenate([part[name] for part in parts]) for name in known}
    line: dict[str, Any] = {"data": data, "shots": shots, "seed": seed, "method": method}
    line |= {"known": len(known[OURS]), "near": len(near[OURS]), "far": len(far[OURS])}
    line["calibrated"] = len(held_out.labels)
    for kind, part in {"near": near, "far": far}.items():
        line[f"apart {kind}"] = {name: apart(known[name], part[name]) for name in known}
    assert fitted.familiarity is not None
    if line["calibrated"] >= needed(SHARE):
        kinds = {"known": known, "near": near, "far": far}
        line["away"] = {kind: turned_away(fitted.familiarity, part) for kind, part in kinds.items()}
    line["added"] = with_added(fitted, test, cache)
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


def after_adding(lines: Lines) -> list[list[str]]:
    """Return a row for each error: the share of images that sets miss before and after the other
    half's classes were added by name, and the classes in a set of an added one."""
    rows = []
    for error in (f"{100 * error:g}" for error in ERRORS):
        some = [line["added"][error] for line in lines if error in line.get("added", {})]
        if some:
            missed = [f"{fmean(one[kind][0] for one in some):.1f}" for kind in some[0]]
            size = f"{fmean(one['added'][3] for one in some):.2f}"
            rows.append([f"{error} %", str(len(some)), *missed, size])
    return rows


def tables(lines: Lines) -> dict[str, str]:
    """Make the tables of docs/studies/unfamiliar.md and docs/studies/promises.md by name."""
    parts: dict[str, str] = {}
    for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        added = after_adding([line for line in lines if line["data"] in sets])
        if added:
            heads = ["promised", "sets", "missed, nothing added", "missed of the own classes"]
            heads += ["missed of the added ones", "classes in a set of these"]
            parts[f"{title}: names added"] = markdown(heads, added)
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
            newer = [score for score in NEWER if all(score in one["apart near"] for one in found)]
            for score in (OURS, *PARTS, *newer):
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
    parser.add_argument(
        "--pages", type=Path, nargs="+", default=[], help="put the tables into these"
    )
    args = parser.parse_args()
    lines: Sequence[Line] = read_lines(args.out)
    if args.tables:
        found = tables(lines)
        if args.pages:  # those of the sets for choosing are on none
            found = {name: table for name, table in found.items() if name.startswith("reporting")}
        show(found, *args.pages)
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
