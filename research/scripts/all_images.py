"""Measure what RMAdapter+ gains by all training images, and in how many steps.

    python research/scripts/all_images.py --root DATA --out research/results/all_images.jsonl \\
        --seeds 1
    python research/scripts/all_images.py --out research/results/all_images.jsonl --tables \\
        --beside research/results/choice.jsonl --page docs/studies/all_images.md

On all training images of a set: RMAdapter+ with ten passes as in studies, with five at twice the
rate, and scikit-learn's logistic regression on the untouched features, whose C is the best of six
by four folds. Beside them stands RMAdapter+ with 16 images of a class, by lines of choice.py on the
same test images. The sets for reporting are asked about five passes and the regression alone.
Finished sets are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from families import against
from fewer_steps import DEFAULT, LAST, METHOD, SHOTS, Variant, measure
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_verdicts,
)

from rmadapter.data.fewshot import split_digest
from rmadapter.methods.parts.features import unit
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.settings import Machine
from rmadapter.support.machine import versions

HALF = Variant(5, 2)
REGRESSION = "logistic regression"
SIXTEEN = f"RMAdapter+, {SHOTS} images of a class, ten passes"
TITLES = {
    REGRESSION: f"{REGRESSION}, all images",
    DEFAULT.name: "RMAdapter+, all images, ten passes",
    HALF.name: "RMAdapter+, all images, five passes at twice the rate",
}
CS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
# The grocery and caltech101 sets have 181 of all classes, and cost as much as all others.
LEFT_OUT = ("caltech101", "grocery")
SHOWN = ("data", "seed", "variant", "test", "cpu_seconds")
Scores: TypeAlias = dict[str, dict[str, list[float]]]  # accuracies by title, set and draw


def regression(
    lab: Lab, data: str, seed: int, backbones: Sequence[str] = ("pocket",)
) -> dict[str, Any]:
    """Fit scikit-learn's logistic regression to the untouched features of all images of a set, and
    return its line. Features of several backbones stand beside each other."""
    values = {"shots": 0, "seed": seed}
    tasks = [
        Request.make({**values, "backbone": name}, METHOD, data=data).task for name in backbones
    ]
    few, test = lab.draw(tasks[0]), lab.splits(data)["test"]
    known, asked = (
        np.hstack([unit(cache(task).features(images)[0]).numpy() for task in tasks])
        for cache, images in ((lab.train_cache, few.train), (lab.test_cache, test))
    )
    started = time.process_time()
    fitted = GridSearchCV(LogisticRegression(max_iter=2000), {"C": CS}, cv=4)
    fitted.fit(known, np.array(few.train.labels))
    right = fitted.predict(asked) == np.array(test.labels)
    return {
        "data": data,
        "shots": 0,
        "seed": seed,
        "variant": REGRESSION,
        "weights": LAST,
        "cpu_seconds": round(time.process_time() - started, 2),
        "test": 100 * float(right.mean()),
        "split_digest": split_digest(few),
        "backbone": " ".join(lab.backbone(name).digest for name in backbones),
        "versions": versions(),
    }


def scores(lines: Lines, others: Lines, sets: Sequence[str]) -> Scores:
    """Return the accuracies of each way, and of RMAdapter+ with 16 images, on the sets that all of
    them have."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["data"] in sets and line["variant"] in TITLES and line["weights"] == LAST:
            found[TITLES[line["variant"]]][line["data"]].append(line["test"])
    for line in others:
        if (line["method"], line["shots"], line["seed"]) == (METHOD, SHOTS, 1):
            found[SIXTEEN][line["data"]].append(line["test"])
    common = set.intersection(*({*by_set} for by_set in found.values()))
    return {
        title: {data: by_set[data] for data in sets if data in common}
        for title, by_set in found.items()
    }


def accuracy_table(found: Scores, seconds: Mapping[str, float]) -> str:
    """Tabulate the mean accuracy of each way, and the seconds of a training."""
    rows = []
    for title in (title for title in (SIXTEEN, *TITLES.values()) if title in found):
        mean = fmean(fmean(tests) for tests in found[title].values())
        rows.append([title, f"{mean:.1f}", f"{seconds[title]:.0f}" if title in seconds else "–"])
    head = ["mean of the sets", "accuracy in %", "CPU seconds of a training"]
    return f"{len(found[SIXTEEN])} sets\n\n" + markdown(head, rows)


def verdict_table(found: Scores) -> str:
    """Compare five passes over all images with each other way."""
    ours = TITLES[HALF.name]
    differences = {
        title: against(found, ours, title)
        for title in (SIXTEEN, *TITLES.values())
        if title in found and title != ours
    }
    rows = [[title, *cells] for title, cells in with_verdicts(differences, 1).items()]
    return markdown([f"{ours}, against", *TESTED], rows)


def tables(lines: Lines, others: Lines) -> dict[str, str]:
    """Return the tables by their names on the page."""
    made = {}
    for name, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        found = scores(lines, others, sets)
        seconds: dict[str, list[float]] = defaultdict(list)
        for line in lines:
            if line["variant"] in TITLES and line["data"] in found[SIXTEEN]:
                seconds[TITLES[line["variant"]]].append(line["cpu_seconds"])
        means = {title: fmean(values) for title, values in seconds.items()}
        made[name] = accuracy_table(found, means)
        made[f"{name}: verdicts"] = verdict_table(found)
    return made


def main() -> None:
    sets = [name for name in (*CHOOSE_ALL, *REPORT_ALL) if name not in LEFT_OUT]
    parser = make_parser(__doc__, sets)
    parser.add_argument("--beside", type=Path, help="lines of choice.py")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines, read_lines(args.beside)), args.page)
        return
    done = {(line["data"], line["seed"], line["variant"]) for line in lines}
    for seed, data in itertools.product(args.seeds, args.data):
        lab = Lab(Machine(), args.root, keep=True, progress=False)
        ways = (DEFAULT, HALF) if data in CHOOSE_ALL else (HALF,)
        left = [way for way in ways if (data, seed, way.name) not in done]
        measured = measure(lab, data, seed, left, shots_each=0) if left else []
        if (data, seed, REGRESSION) not in done:
            measured.append(regression(lab, data, seed))
        append_lines(args.out, measured)
        for line in measured:
            print(json.dumps({name: line[name] for name in SHOWN}), flush=True)


if __name__ == "__main__":
    main()
