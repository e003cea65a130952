"""What is labelling by `rmadapter suggest` worth, compared with random labelling? Its tables are in
docs/suggest.md.

    python tools/suggest.py --root DATA --out docs/results/suggest.jsonl
    python tools/suggest.py --out docs/results/suggest.jsonl --tables

The pool is the train split of a set. "next": one random image per class is labelled; in each round
a rule picks one more per class on average, with a model fitted to those before. "first": nothing is
labelled yet. A line is one set, kind, rule and seed, with the test accuracies; those of random are
the mean of DRAWS. A rule is chosen on CHOOSE and reported on REPORT. Finished lines are kept: start
it again to go on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lines import keep, kept, parser

from rmadapter.curate.acquisition import FIRST, NEXT, Pool, pick
from rmadapter.data.duplicates import groups
from rmadapter.data.fewshot import sample_shots
from rmadapter.methods.clap import ZeroShotProbe
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.metrics import accuracy, confidence_interval
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.training.contract import Fitted, Known, answers

CHOOSE = ("trashnet", "rsscn7")
REPORT = ("neu_steel", "pacs/photo", "sign_digits")
ROUNDS, FIRSTS = (1, 2, 3, 4), (1, 3)  # images per class, on average
DRAWS = 2
KINDS = {"next": NEXT, "first": FIRST}
KEY = ("data", "kind", "rule", "seed")
METHOD = ZeroShotProbe(
    replace(ZeroShotProbe().recipe, epochs=100)
)  # a third of the published epochs, for speed
FALLBACK = {"next": "random", "first": "typicality"}
POOL, TEST = 32, 25  # at most so many images per class
Line = Mapping[str, Any]


class Study:
    """One data set: features, text and near-duplicates, computed once."""

    def __init__(self, lab: Lab, data: str) -> None:
        self.lab, splits = lab, lab.splits(data)
        self.train, self.test = (
            splits[split].subset(sample_shots(splits[split].labels, most, random.Random(0)))
            for split, most in (("train", POOL), ("test", TEST))
        )
        lab.add(data, {"train": self.train, "test": self.test})
        self.task = Request.make({"shots": 0}, "zero-shot", data=data).task
        self.begun: dict[int, tuple[Fitted, float]] = {}
        self.cache = lab.train_cache(self.task)
        self.cache.expect_parts(self.train)
        self.unit = F.normalize(self.cache.features(self.train)[0].float(), dim=-1).numpy()
        self.together = groups(self.train.looks(), self.train.groups)
        self.classes = len(self.train.classes)

    def fitted(self, rows: Sequence[int], seed: int) -> Fitted:
        """A model fitted to some images of the pool; classes without any are known by name."""
        if not rows:
            known = Known(self.train.classes, self.task.templates)
            return ZeroShot().restore(self.lab.backbone(self.task.backbone), known, {})
        task, images = replace(self.task, seed=seed), self.train.subset(rows)
        return learn(METHOD, images, task, self.lab.draw(task), self.lab, cache=self.cache)

    def table(self, fitted: Fitted) -> np.ndarray:
        """Probabilities [N, C] of the pool."""
        parts = answers({"it": fitted.score()}, self.cache.stream(self.train))
        return torch.cat([part["it"] for part in parts]).numpy()

    def tested(self, fitted: Fitted) -> float:
        stream = self.lab.test_cache(self.task).stream(self.test)
        table = torch.cat([part["it"] for part in answers({"it": fitted.score()}, stream)]).numpy()
        return round(accuracy(table, self.test.labels), 3)

    def chosen(
        self, kind: str, rule: str, rows: list[int], fitted: Fitted, n: int, seed: int
    ) -> list[int]:
        """n further rows of the pool, picked by a rule."""
        left = np.setdiff1d(
            np.arange(len(self.unit)), np.flatnonzero(np.isin(self.together, self.together[rows]))
        )
        pool = Pool(self.unit[left], self.unit[rows], self.table(fitted)[left], seed)
        return left[pick(KINDS[kind][rule], pool, n, self.together[left]).rows].tolist()

    def next(self, rule: str, seed: int) -> dict[str, Any]:
        """Label in rounds, starting from one random image per class."""
        draws = []
        for draw in range(DRAWS if rule == "random" else 1):
            rows = sample_shots(self.train.labels, 1, random.Random(seed))
            if seed not in self.begun:
                fitted = self.fitted(rows, seed)
                self.begun[seed] = fitted, self.tested(fitted)
            fitted, accuracies = self.begun[seed][0], [self.begun[seed][1]]
            for number in ROUNDS:
                rows = rows + self.chosen(
                    "next", rule, rows, fitted, self.classes, 1000 * draw + 10 * seed + number
                )
                fitted = self.fitted(rows, seed)
                accuracies.append(self.tested(fitted))
            draws.append(accuracies)
        return {"test": np.mean(draws, axis=0).round(3).tolist()}

    def first(self, rule: str, seed: int) -> dict[str, Any]:
        """Label so many at once, and count the classes among them."""
        found = []
        for number, draw in product(FIRSTS, range(DRAWS if rule == "random" else 1)):
            rows = self.chosen(
                "first", rule, [], self.fitted([], seed), number * self.classes, 1000 * draw + seed
            )
            found.append(
                (
                    number,
                    self.tested(self.fitted(rows, seed)),
                    len({self.train.labels[i] for i in rows}),
                )
            )
        means = [
            [fmean(one[k] for one in found if one[0] == number) for number in FIRSTS]
            for k in (1, 2)
        ]
        return {"test": [round(x, 3) for x in means[0]], "classes": means[1]}


# What the lines say. A set counts once, whatever its seeds.


def ahead(lines: Sequence[Line], sets: Iterable[str], kind: str, rule: str) -> list[float]:
    """Points of accuracy above random for each set, the mean over seeds and numbers of images."""
    of = {tuple(line[key] for key in KEY): line["test"] for line in lines}
    first = 1 if kind == "next" else 0  # before the first round all rules have the same images
    found = []
    for data in sets:
        seeds = [seed for d, k, r, seed in of if (d, k, r) == (data, kind, rule)]
        found += [
            [
                fmean(
                    np.subtract(of[data, kind, rule, seed], of[data, kind, "random", seed])[first:]
                )
                for seed in seeds
            ]
        ]
    return [fmean(points) for points in found if points]


def told(points: Sequence[float]) -> str:
    return f"{fmean(points):+.1f} ± {confidence_interval(points):.1f}"


def best(lines: Sequence[Line], kind: str) -> str:
    """The rule that is furthest ahead of random on the sets to choose on."""
    return max(KINDS[kind], key=lambda rule: fmean(ahead(lines, CHOOSE, kind, rule)))


def proven(lines: Sequence[Line], kind: str, rule: str) -> bool:
    """Whether a rule beats random on the sets to report on by more than its interval."""
    points = ahead(lines, REPORT, kind, rule)
    return fmean(points) > confidence_interval(points)


def default(lines: Sequence[Line], kind: str) -> str:
    """The chosen rule if it is proven, else the one that was named for that case before the study."""
    chosen = best(lines, kind)
    return chosen if proven(lines, kind, chosen) else FALLBACK[kind]


def classes(lines: Sequence[Line], rule: str) -> list[float]:
    """Per cent of the classes that are among the first images, for each of FIRSTS; the mean over
    sets."""
    by_set: dict[str, list[list[float]]] = {}
    for x in lines:
        if (x["kind"], x["rule"]) == ("first", rule):
            by_set.setdefault(x["data"], []).append(
                [100 * count / x["classes_in_all"] for count in x["classes"]]
            )
    return np.mean([np.mean(some, axis=0) for some in by_set.values()], axis=0).tolist()


def tables(lines: Sequence[Line]) -> str:
    """The tables of docs/suggest.md."""
    parts = []
    for kind, rules in KINDS.items():
        later = [
            f"{'+' * (kind == 'next')}{n} a class" for n in (ROUNDS if kind == "next" else FIRSTS)
        ]
        numbers = ["at first", *later] if kind == "next" else later
        heads = [f"{kind}: accuracy in %", *numbers, "ahead of random", "for choosing", *REPORT]
        rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for rule in sorted(rules, key=lambda rule: -fmean(ahead(lines, CHOOSE, kind, rule))):
            some = [
                x["test"]
                for x in lines
                if (x["kind"], x["rule"]) == (kind, rule) and x["data"] in REPORT
            ]
            own, other = (ahead(lines, sets, kind, rule) for sets in (REPORT, CHOOSE))
            points = [told(own), f"{fmean(other):+.1f}", *(f"{x:+.1f}" for x in own)]
            cells = [
                *(f"{x:.1f}" for x in np.mean(some, axis=0)),
                *("" if rule == "random" else x for x in points),
            ]
            rows.append("| " + " | ".join([rule, *cells]) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def main() -> None:
    args = parser(__doc__, (*CHOOSE, *REPORT)).parse_args()
    lines = kept(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {tuple(line[key] for key in KEY) for line in lines}
    lab = Lab(root=args.root, keep=True, progress=False)
    for data in args.data:
        keys = [
            (data, kind, rule, seed)
            for seed in args.seeds
            for kind, rules in KINDS.items()
            for rule in rules
        ]
        if not (todo := [key for key in keys if key not in done]):
            continue
        study = Study(lab, data)
        for key in todo:
            found = (study.next if key[1] == "next" else study.first)(key[2], key[3])
            facts = {
                "pool": len(study.train),
                "classes_in_all": study.classes,
                "test_images": len(study.test),
            }
            line = {**dict(zip(KEY, key, strict=True)), **found, **facts}
            line |= {"backbone": lab.backbone(study.task.backbone).digest, "versions": versions()}
            keep(args.out, [line])
            print(*key, found["test"], flush=True)


if __name__ == "__main__":
    main()
