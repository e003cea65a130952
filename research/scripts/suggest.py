"""Measure what labelling by `rmadapter suggest` is worth, compared with random labelling. The
tables are in research/studies/suggest.md.

    python research/scripts/suggest.py --root DATA --out research/results/suggest.jsonl
    python research/scripts/suggest.py --out research/results/suggest.jsonl --tables

The pool is the train split of a set. "next": one random image per class is labelled; in each round
a rule picks one more per class on average, with a model fitted to those before. "first": nothing is
labelled yet. A line is one set, kind, rule and seed, with the test accuracies; those of random are
the mean of DRAWS. A rule is chosen on CHOOSE and reported on REPORT. Finished lines are kept:
repeat the command to resume.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from studies import Lines, append_lines, make_parser, markdown, read_lines, with_interval
from suggest_rules import FIRST, NEXT, Pool, pick

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
# a third of the published epochs, for speed
METHOD = ZeroShotProbe(replace(ZeroShotProbe().recipe, epochs=100))
NAMED = {"first": "typicality"}  # before the study, for that case
POOL, TEST = 32, 25  # at most so many images per class


class Study:
    """One data set: features, text and near-duplicates, computed once."""

    def __init__(self, lab: Lab, data: str) -> None:
        self.lab = lab
        splits = lab.splits(data)
        self.train, self.test = (
            splits[split].subset(sample_shots(splits[split].labels, most, random.Random(0)))
            for split, most in (("train", POOL), ("test", TEST))
        )
        lab.add(data, {"train": self.train, "test": self.test})
        self.task = Request.make({"shots": 0}, "zero-shot", data=data).task
        self.started: dict[int, tuple[Fitted, float]] = {}  # by seed
        self.cache = lab.train_cache(self.task)
        self.cache.expect_parts(self.train)
        self.unit = F.normalize(self.cache.features(self.train)[0].float(), dim=-1).numpy()
        self.together = groups(self.train.looks(), self.train.groups)
        self.classes = len(self.train.classes)

    def fitted(self, rows: Sequence[int], seed: int) -> Fitted:
        """Fit a model to some images of the pool; classes without any are known by name."""
        if not rows:
            known = Known(self.train.classes, self.task.templates)
            return ZeroShot().restore(self.lab.backbone(self.task.backbone), known, {})
        task = replace(self.task, seed=seed)
        images = self.train.subset(rows)
        return learn(METHOD, images, task, self.lab.draw(task), self.lab, cache=self.cache)

    def table(self, fitted: Fitted) -> np.ndarray:
        """Return the probabilities [N, C] of the pool."""
        parts = answers({"it": fitted.score()}, self.cache.stream(self.train))
        return torch.cat([part["it"] for part in parts]).numpy()

    def test_accuracy(self, fitted: Fitted) -> float:
        """Return the accuracy on the test images, in %."""
        stream = self.lab.test_cache(self.task).stream(self.test)
        table = torch.cat([part["it"] for part in answers({"it": fitted.score()}, stream)]).numpy()
        return round(accuracy(table, self.test.labels), 3)

    def choose(
        self, kind: str, rule: str, rows: list[int], fitted: Fitted, n: int, seed: int
    ) -> list[int]:
        """Pick n further rows of the pool by a rule."""
        labelled = np.flatnonzero(np.isin(self.together, self.together[rows]))
        left = np.setdiff1d(np.arange(len(self.unit)), labelled)
        pool = Pool(self.unit[left], self.unit[rows], self.table(fitted)[left], seed)
        return left[pick(KINDS[kind][rule], pool, n, self.together[left]).rows].tolist()

    def next(self, rule: str, seed: int) -> dict[str, Any]:
        """Label in rounds, starting from one random image per class."""
        draws = []
        for draw in range(DRAWS if rule == "random" else 1):
            rows = sample_shots(self.train.labels, 1, random.Random(seed))
            if seed not in self.started:
                fitted = self.fitted(rows, seed)
                self.started[seed] = fitted, self.test_accuracy(fitted)
            fitted, start = self.started[seed]
            accuracies = [start]
            for number in ROUNDS:
                drawn = 1000 * draw + 10 * seed + number
                rows = rows + self.choose("next", rule, rows, fitted, self.classes, drawn)
                fitted = self.fitted(rows, seed)
                accuracies.append(self.test_accuracy(fitted))
            draws.append(accuracies)
        return {"test": np.mean(draws, axis=0).round(3).tolist()}

    def first(self, rule: str, seed: int) -> dict[str, Any]:
        """Label FIRSTS images per class at once, and count the classes among them."""
        draws = range(DRAWS if rule == "random" else 1)
        accuracies, counts = [], []
        for number in FIRSTS:
            tests, classes = [], []
            for draw in draws:
                drawn = 1000 * draw + seed
                n = number * self.classes
                rows = self.choose("first", rule, [], self.fitted([], seed), n, drawn)
                tests.append(self.test_accuracy(self.fitted(rows, seed)))
                classes.append(len({self.train.labels[i] for i in rows}))
            accuracies.append(round(fmean(tests), 3))
            counts.append(fmean(classes))
        return {"test": accuracies, "classes": counts}


# Tables of the lines. A set counts once, whatever its seeds.


def ahead(lines: Lines, sets: Iterable[str], kind: str, rule: str) -> list[float]:
    """Return points of accuracy above random for each set, the mean over seeds and numbers of
    images."""
    tests = {tuple(line[key] for key in KEY): line["test"] for line in lines}
    first = 1 if kind == "next" else 0  # before the first round all rules have the same images
    means = []
    for data in sets:
        seeds = [seed for d, k, r, seed in tests if (d, k, r) == (data, kind, rule)]
        points = []
        for seed in seeds:
            random_tests = tests[data, kind, "random", seed]
            gains = np.subtract(tests[data, kind, rule, seed], random_tests)
            points.append(fmean(gains[first:]))
        if points:
            means.append(fmean(points))
    return means


def best(lines: Lines, kind: str) -> str:
    """Return the rule that is furthest ahead of random on the sets to choose on."""
    return max(KINDS[kind], key=lambda rule: fmean(ahead(lines, CHOOSE, kind, rule)))


def proven(lines: Lines, kind: str, rule: str) -> bool:
    """Return whether a rule beats random on the sets to report on by more than its interval."""
    points = ahead(lines, REPORT, kind, rule)
    return fmean(points) > confidence_interval(points)


def default(lines: Lines, kind: str) -> str:
    """Return the chosen rule; if it is not proven, one that was named for that case before the
    study comes first."""
    chosen = best(lines, kind)
    return chosen if proven(lines, kind, chosen) else NAMED.get(kind, chosen)


def classes(lines: Lines, rule: str) -> list[float]:
    """Return the per cent of the classes that are among the first images, for each of FIRSTS; the
    mean over sets."""
    by_set: dict[str, list[list[float]]] = {}
    for line in lines:
        if (line["kind"], line["rule"]) == ("first", rule):
            shares = [100 * count / line["classes_in_all"] for count in line["classes"]]
            by_set.setdefault(line["data"], []).append(shares)
    means = np.mean([np.mean(shares, axis=0) for shares in by_set.values()], axis=0)
    return [float(share) for share in means]


def tables(lines: Lines) -> str:
    """Make the tables of research/studies/suggest.md."""
    parts = []
    for kind, rules in KINDS.items():
        if kind == "next":
            numbers = ["at first", *(f"+{n} a class" for n in ROUNDS)]
        else:
            numbers = [f"{n} a class" for n in FIRSTS]
        heads = [f"{kind}: accuracy in %", *numbers, "ahead of random", "for choosing", *REPORT]
        rows = []
        for rule in sorted(rules, key=lambda rule: -fmean(ahead(lines, CHOOSE, kind, rule))):
            tests = [
                line["test"]
                for line in lines
                if (line["kind"], line["rule"]) == (kind, rule) and line["data"] in REPORT
            ]
            reported, choosing = (ahead(lines, sets, kind, rule) for sets in (REPORT, CHOOSE))
            by_set = [f"{points:+.1f}" for points in reported]
            points = [with_interval(reported), f"{fmean(choosing):+.1f}", *by_set]
            points = [""] * len(points) if rule == "random" else points
            rows.append([rule, *(f"{x:.1f}" for x in np.mean(tests, axis=0)), *points])
        parts.append(markdown(heads, rows))
    return "\n\n".join(parts)


def main() -> None:
    args = make_parser(__doc__, (*CHOOSE, *REPORT)).parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {tuple(line[name] for name in KEY) for line in lines}
    lab = Lab(root=args.root, keep=True, progress=False)
    for data in args.data:
        rules = [(kind, rule) for kind in KINDS for rule in KINDS[kind]]
        keys = [(data, *which, seed) for seed, which in product(args.seeds, rules)]
        todo = [key for key in keys if key not in done]
        study = Study(lab, data) if todo else None
        for key in todo:
            assert study is not None
            measured = (study.next if key[1] == "next" else study.first)(key[2], key[3])
            line = {**dict(zip(KEY, key, strict=True)), **measured, "pool": len(study.train)}
            line |= {"classes_in_all": study.classes, "test_images": len(study.test)}
            line |= {"backbone": lab.backbone(study.task.backbone).digest, "versions": versions()}
            append_lines(args.out, [line])
            print(*key, measured["test"], flush=True)


if __name__ == "__main__":
    main()
