"""Measure what labelling on the page of `rmadapter app` is worth: test accuracy by labels given, in
each order that the page offers.

    python research/scripts/label_curve.py --root DATA --out research/results/label_curve.jsonl
    python research/scripts/label_curve.py --out research/results/label_curve.jsonl --tables \\
        --page research/studies/label.md --figure research/studies/label.svg

A person who makes no mistakes labels 200 images drawn at random from the train split, a screen at a
time; the model is the page's. A line is one data set, draw and order. Finished lines are kept:
repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from studies import Line, Lines, append_lines, make_parser, markdown, read_lines, show
from suggest_rules import DEFAULT, RANDOM

from rmadapter.data.duplicates import groups
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.support.files import write_text
from rmadapter.support.html import COLOURS, canvas
from rmadapter.support.machine import versions
from rmadapter_studio.order import ORDERS as OFFERED, SURE, choose
from rmadapter_studio.quick import Encoded, fit

SETS = ("food", "pacs/photo", "sports")
ORDERS = (RANDOM, DEFAULT, SURE)  # of the page
HEAP, TEST = 200, 500  # images, at most
THIRD = 60  # labels, at most a third
SCREEN = 10  # images that are labelled before the order is asked for again
ENOUGH = 0.9  # of the accuracy with all labels
KEY = ("data", "draw", "order")
CURVES = {RANDOM: ("ink", "--"), DEFAULT: ("adapted", "-"), "margin": ("zero-shot", "-"),
          SURE: ("zero-shot", ":")}  # fmt: skip


class Heap:
    """Unlabelled images of a data set, and test images that are never labelled."""

    def __init__(self, lab: Lab, data: str, draw: int, backbone: str = "pocket") -> None:
        splits = lab.splits(data)
        drawn = {
            part: splits[part].subset(some_of(len(splits[part]), most, draw))
            for part, most in (("train", HEAP), ("test", TEST))
        }
        heap, test = drawn["train"], drawn["test"]
        task = Request.make({"shots": 0, "backbone": backbone}, "zero-shot", data=data).task
        self.backbone = lab.backbone(backbone)
        cache = lab.train_cache(task)
        features = torch.cat([cache.features(images)[0].float() for images in (heap, test)])
        self.size, self.classes = len(heap), heap.classes
        together = groups(heap.looks(), heap.groups)
        alone = range(self.size, self.size + len(test))  # no test image is a copy of another
        self.encoded = Encoded(
            tuple(map(str, range(self.size + len(test)))),
            F.normalize(features, dim=-1).numpy(),
            together_with(together.tolist(), alone),
        )
        self.truth = [images.classes[label] for images in (heap, test) for label in images.labels]

    def curve(self, order: str, seed: int) -> dict[str, Any]:
        """Label all of the heap in an order.

        labels: how many were given. test: accuracy in % after so many. accepted: how many of them
        were the first proposal, so that a key accepts them.
        """
        labels: dict[str, str] = {}
        found: dict[str, list[Any]] = {"labels": [], "test": [], "accepted": []}
        accepted = 0
        while True:
            quick = fit(self.encoded, self.backbone, self.classes, labels)
            answers = [quick.best(row, 1)[0][0] for row in range(len(self.truth))]
            hits = [answers[row] == self.truth[row] for row in range(self.size, len(self.truth))]
            found["labels"].append(len(labels))
            found["test"].append(round(100 * fmean(hits), 4))
            found["accepted"].append(accepted)
            left = [row for row in range(self.size) if str(row) not in labels]
            if not left:
                return found
            for one in choose(quick, left, order, SCREEN, seed + len(labels)):
                for row in (one.row, *one.copies):
                    accepted += answers[row] == self.truth[row]
                    labels[str(row)] = self.truth[row]


def some_of(count: int, most: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(count), min(count, most)))


def together_with(numbers: Sequence[int], alone: Sequence[int]) -> np.ndarray:
    """Return group numbers, followed by new ones for images on their own."""
    first = max(numbers, default=-1) + 1
    return np.array([*numbers, *range(first, first + len(alone))], int)


# Tables


def needed(line: Line) -> int:
    """Return the first number of labels with ENOUGH of the accuracy that all labels give."""
    enough = ENOUGH * line["test"][-1]
    pairs = zip(line["labels"], line["test"], strict=True)
    return int(next(labels for labels, test in pairs if test >= enough))


def at(line: Line, count: int) -> float:
    """Return the accuracy with the last number of labels that is not above a count."""
    pairs = zip(line["labels"], line["test"], strict=True)
    return float([test for labels, test in pairs if labels <= count][-1])


def table(lines: Lines) -> str:
    """Tabulate for each set and order: accuracies, the labels that are enough, and the share of
    proposals that were right, as means over draws."""
    rows = []
    counts = (0, 20, THIRD, HEAP)
    for data, order in itertools.product(SETS, CURVES):
        some = [line for line in lines if (line["data"], line["order"]) == (data, order)]
        if some:
            accuracies = (f"{fmean(at(line, count) for line in some):.1f}" for count in counts)
            labels = ", ".join(str(needed(line)) for line in some)
            accepted = fmean(100 * line["accepted"][-1] / line["labels"][-1] for line in some)
            rows.append([data, order, *accuracies, labels, f"{accepted:.0f} %"])
    head = [f"{count} labels" for count in counts]
    share = f"labels to {ENOUGH:.0%} of the last, each draw"
    return markdown(["data set", "order", *head, share, "proposals right"], rows)


def drawn(lines: Lines) -> str:
    """Draw test accuracy by labels as SVG: the mean over data sets and draws, by order, with the
    accuracy after a third of the labels."""
    with canvas(6.4, 4.0, "labels", "Test accuracy by labels given") as (axes, out):
        for order, (colour, style) in CURVES.items():
            some = [line for line in lines if line["order"] == order]
            counts = range(0, HEAP + 1, SCREEN)
            means = [fmean(at(line, count) for line in some) for count in counts]
            label = f"{order}: {fmean(at(line, THIRD) for line in some):.1f} with {THIRD}"
            axes.plot(counts, means, color=COLOURS[colour], linestyle=style, label=label)
        axes.set(xlabel="labels given", ylabel="test accuracy, %")
        axes.legend(loc="lower right")
    return out[0]


def main() -> None:
    parser = make_parser(__doc__, SETS)
    parser.add_argument("--page", type=Path, help="put the table into this page")
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show({"labels": table(lines)}, args.page)
        if args.figure:
            write_text(args.figure, drawn(lines))
        return
    done = {tuple(line[name] for name in KEY) for line in lines}
    for data, draw in itertools.product(args.data, args.seeds):
        heap = Heap(Lab(root=args.root, keep=True, progress=False), data, draw)
        for order in OFFERED:
            if (data, draw, order) not in done:
                line = {"data": data, "draw": draw, "order": order, **heap.curve(order, draw)}
                append_lines(args.out, [{**line, "versions": versions()}])
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
