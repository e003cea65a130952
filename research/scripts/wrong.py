"""Measure what `predict --wrong` keeps of its promise. The tables are in docs/studies/promises.md.

    python research/scripts/wrong.py --root DATA --out research/results/wrong.jsonl --seeds 1
    python research/scripts/wrong.py --root DATA --out research/results/wrong.jsonl --seeds 1 \\
        --method rmadapter-plus
    python research/scripts/wrong.py --out research/results/wrong.jsonl --tables \\
        --pages docs/studies/promises.md research/results/promises.md

A line is a method on one data set, number of shots and draw: a linear probe, or RMAdapter+. The
threshold is chosen in two ways: by folds of the shots, as `fit` does, with all test images to
measure on; and by a random half of the test images, which also gives the temperature, with the
other half to measure on, DRAWS times. The rule of an earlier version stands beside the present one.
Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
)

from rmadapter import metrics
from rmadapter.answers.held_out import sure_from
from rmadapter.data.fewshot import split_digest
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.support.machine import versions

METHODS = ("linear-probe", "rmadapter-plus")
SHARES = (0.05, 0.1, 0.2)  # that may be wrong
DRAWS = 100  # of calibration images
# the threshold from confidences [N], whether each is right [N], and a share
Rule: TypeAlias = Callable[[np.ndarray, np.ndarray, float], float]


def mean_rule(confidence: np.ndarray, right: np.ndarray, wrong: float) -> float:
    """Return the threshold of an earlier version, which holds on average at best: the lowest from
    which on the mean confidence is high enough, and so many answers, and one more wrong one, are
    right. Where there is none, it is the share that is to be right, unless too few of the answers
    from there on are."""
    order = np.argsort(-confidence, kind="stable")
    values, hits = confidence[order], np.cumsum(right[order])
    counts, wanted = np.arange(1, len(values) + 1), 1 - wrong
    expected = np.cumsum(values) / counts >= wanted - 1e-9  # a mean may be rounded
    last = np.diff(values, append=-np.inf) < 0  # of those of equal confidence
    ends = np.flatnonzero(expected & (hits / (counts + 1) >= wanted) & last)
    if len(ends):
        return float(values[ends[-1]])
    sure = int((values >= wanted).sum())
    return wanted if not sure or hits[sure - 1] / sure >= wanted else math.inf


RULES: Mapping[str, Rule] = {"earlier": mean_rule, "present": sure_from}


def by_halves(table: np.ndarray, labels: np.ndarray, wrong: float, rule: Rule) -> list[float]:
    """Return in % of DRAWS calibrations by half of the images how many let at most a share of wrong
    answers through in the other half, and how many any answer; and the mean share of answers."""
    rng, right, rows = np.random.default_rng(0), table.argmax(1) == labels, []
    for _ in range(DRAWS):
        order = rng.permutation(len(labels))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        temperature = metrics.temperature(table[one], labels[one])
        confidence = metrics.tempered(table, temperature).max(1)
        sure = confidence[other] >= rule(confidence[one], right[one], wrong)
        misses = int((~right[other][sure]).sum())
        rows.append((misses <= wrong * sure.sum(), sure.any(), sure.mean()))
    return [round(100 * float(np.mean(column)), 4) for column in zip(*rows, strict=True)]


def trial(
    lab: Lab, data: str, shots: int, seed: int, backbone: str, name: str = METHODS[0]
) -> dict[str, Any]:
    """Fit a method and measure its sure answers by each rule and share."""
    common = {"backbone": backbone, "shots": shots, "seed": seed}
    request = Request.make(common, name, data=data)
    few = lab.draw(request.task)
    folds = Folds.make(request.task, few, lab, FOLDS)
    temperature = folds.temperature(request.method, name)
    held_out = folds.tempered(request.method, name, temperature or 1.0)
    outcome = run_task(request.task, request.method, lab, name, temperature=temperature)
    [evaluation] = outcome.evaluations
    table, labels = evaluation.probabilities, np.array(evaluation.labels)
    known, right = held_out.table.argmax(1) == held_out.labels, table.argmax(1) == labels
    line: dict[str, Any] = {"data": data, "method": name, "shots": shots, "seed": seed}
    line |= {"backbone": backbone, "precision": lab.machine.precision}
    line |= {"images": len(labels), "calibrated": len(known), "folds": {}, "halves": {}}
    for wrong, (title, rule) in itertools.product(SHARES, RULES.items()):
        key = f"{title} {100 * wrong:g}"
        sure = table.max(1) >= rule(held_out.table.max(1), known, wrong)
        line["folds"][key] = [int(sure.sum()), int(right[sure].sum())]
        line["halves"][key] = by_halves(table, labels, wrong, rule)
    line["split"], line["versions"] = split_digest(few), versions()
    return line


# Tables


def rows_of(lines: Lines) -> list[list[str]]:
    """Return a row for each share and rule: by halves the calibrations that keep the promise and
    give any answer, and the answers; by folds the runs that keep it, of those that give answers,
    and the answers. All are means over lines, of which each is a data set."""
    rows = []
    for wrong, name in itertools.product(SHARES, RULES):
        key = f"{name} {100 * wrong:g}"
        means = map(fmean, zip(*(line["halves"][key] for line in lines), strict=True))
        kept, some, answered = (f"{mean:.0f}" for mean in means)
        found = [(line["images"], *line["folds"][key]) for line in lines]
        given = [(sure, right) for _, sure, right in found if sure]
        good = sum(sure - right <= wrong * sure for sure, right in given)
        share = f"{100 * fmean(sure / images for images, sure, _ in found):.0f}"
        cells = [kept, some, answered, f"{good} of {len(given)}", share]
        rows.append([f"{100 * wrong:g} %", name, *cells])
    return rows


def tables(lines: Lines) -> dict[str, str]:
    """Make the tables of docs/studies/promises.md by name."""
    heads = ["may be wrong", "rule", "halves: kept in %", "any answer in %", "answered in %"]
    heads += ["folds: kept in runs that answer", "answered in %"]
    return {
        f"{title}: wrong answers{f' of {method}' if method != METHODS[0] else ''}": markdown(
            heads, rows_of(some)
        )
        for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL))
        for method in METHODS
        if (some := [one for one in lines if one["data"] in sets and one["method"] == method])
    }


def main() -> None:
    few = [data for data in (*CHOOSE_ALL, *REPORT_ALL) if data not in ("caltech101", "grocery")]
    parser = make_parser(__doc__, few)
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the tables")
    args = parser.parse_args()
    lines: list[Line] = [*read_lines(args.out)]
    if args.tables:
        show(tables(lines), *args.pages)
        return
    known = [line for line in lines if line["method"] == args.method]
    done = {(line["data"], line["shots"], line["seed"]) for line in known}
    for seed, data in itertools.product(args.seeds, args.data):
        lab = Lab(root=args.root, progress=False)
        for shots in args.shots:
            if (data, shots, seed) not in done:
                line = trial(lab, data, shots, seed, args.backbone, args.method)
                append_lines(args.out, [line])
                print(data, shots, seed, line["halves"], flush=True)


if __name__ == "__main__":
    main()
