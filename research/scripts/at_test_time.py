"""Compare methods that adapt at test time with zero-shot, on some test images of each class.

    python research/scripts/at_test_time.py --root DATA \\
        --out research/results/at_test_time.jsonl --seeds 1
    python research/scripts/at_test_time.py --out research/results/at_test_time.jsonl --tables \\
        --page research/studies/families.md

TPT takes a step for each test image, which is too slow here for all of them. All methods are asked
about the same images. A line is one method on one data set; finished lines are kept: repeat the
command to resume.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from families import REPORTING, against, average, measure, scores
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

from rmadapter.data.image_set import ImageSet
from rmadapter.runs.lab import Lab

METHODS = ("zero-shot", "tda", "stata", "tpt")
SHOTS = 1  # of which these methods use none
HALVES = {"choosing": CHOOSE_ALL, "reporting": REPORT_ALL}


def some_of_each(images: ImageSet, per_class: int, seed: int) -> ImageSet:
    """Draw at most `per_class` images of each class."""
    by_class = defaultdict(list)
    for index, label in enumerate(images.labels):
        by_class[label].append(index)
    draw = random.Random(seed)
    kept = [draw.sample(own, min(per_class, len(own))) for own in by_class.values()]
    return images.subset(sorted(itertools.chain(*kept)))


def measured(
    lab: Lab,
    data: str,
    seed: int,
    methods: Sequence[str],
    per_class: int,
    backbone: str = "pocket",
) -> list[dict[str, Any]]:
    """Ask each method about some test images of a data set."""
    splits = dict(lab.splits(data))
    images = splits["test"] = some_of_each(splits["test"], per_class, seed)
    few = Lab(lab.machine, lab.root, keep=True, progress=False)
    few.add(data, splits)
    facts = {"images": len(images), "per_class": per_class, "test_digest": images.digest}
    return [line | facts for line in measure(few, data, SHOTS, seed, methods, backbone)]


def tables(lines: Lines) -> dict[str, str]:
    """Return accuracies on those halves of the sets that have lines, and verdicts on the sets for
    reporting."""
    halves = {title: scores(lines, sets, SHOTS) for title, sets in HALVES.items()}
    found = {title: half for title, half in halves.items() if half}
    rows = [
        [f"`{name}`", *(f"{average(half[name]):.1f}" for half in found.values())]
        for name in METHODS
    ]
    heads = [f"{len(half['zero-shot'])} sets for {title}" for title, half in found.items()]
    reporting = found["reporting"]
    differences = {name: against(reporting, name, "zero-shot") for name in METHODS[1:]}
    verdicts = [
        [f"`{name}`", "`zero-shot`", *cells]
        for name, cells in with_verdicts(differences, 1).items()
    ]
    return {
        "test time": markdown(["method", *heads], rows),
        "test-time verdicts": markdown(["method", "against", *TESTED], verdicts),
    }


def main() -> None:
    parser = make_parser(__doc__, REPORTING)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--per-class", type=int, default=10, help="test images of each class")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    done = {(line["data"], line["seed"], line["method"]) for line in lines}
    lab = Lab(root=args.root, keep=True, progress=False)
    for seed, data in itertools.product(args.seeds, args.data):
        left = [name for name in args.methods if (data, seed, name) not in done]
        found = measured(lab, data, seed, left, args.per_class)
        append_lines(args.out, found)
        for line in found:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
