"""Measure how many of the labels that `rmadapter suspects` calls wrong are wrong, by how far the
logit of the other class must be above that of the label. The table is in docs/studies/suspects.md.

    python research/scripts/alarms.py --root DATA --out research/results/alarms.jsonl
    python research/scripts/alarms.py --out research/results/alarms.jsonl --tables

A share of the training labels of a set is changed at random, as in suspects.py, whose rule runs
with the backbone of the product, `pocket-3`. A line is one set, share and seed. Finished lines are
kept: repeat the command to resume.
"""

from __future__ import annotations

from itertools import product
from math import nan
from statistics import fmean

import numpy as np
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
)
from suspects import METHOD, PROBE, Study, flipped

from rmadapter.backbones.packaged import POCKET_3
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.runs.lab import Lab
from rmadapter.runs.labels import doubted_labels
from rmadapter.support.machine import versions

LARGE = ("caltech101", "grocery")  # 80 classes or more: left out for their time
SHOTS = 24
SHARES = (1, 5, 10)  # per cent of the labels
MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
WANTED = 0.5  # of the alarms are right, where 5 % of the labels are wrong


def line(study: Study, share: int, seed: int) -> dict[str, object]:
    """Change labels, and count the alarms of each margin and those that are right."""
    true = np.array(study.images.labels)
    labels = flipped(true, None, share, len(study.images.classes), seed)
    probe = LinearProbe(search_steps=0, C=PROBE["C"])
    rows, table = study.answers(labels, probe, METHOD, seed)
    wrong = (labels != true)[rows]
    doubts = doubted_labels(table, labels[rows])
    alarms = {
        f"{margin:g}": [wrong[one.row] for one in doubts if one.margin >= margin]
        for margin in MARGINS
    }
    return {
        "data": study.data,
        "share": share,
        "seed": seed,
        "images": len(rows),
        "flips": int(wrong.sum()),
        "alarms": {margin: [len(hits), int(sum(hits))] for margin, hits in alarms.items()},
        "backbone": study.lab.backbone(study.task.backbone).digest,
        "versions": versions(),
    }


def figures(lines: Lines, sets: tuple[str, ...], share: int, margin: float) -> list[float]:
    """Return the share of alarms that are right, that of wrong labels found, and alarms per 100
    images, in percent; each set's lines are added up, and sets are averaged. The first is of the
    sets with an alarm."""
    by_set: dict[str, np.ndarray] = {}
    for one in lines:
        if one["data"] in sets and one["share"] == share:
            called, hits = one["alarms"][f"{margin:g}"]
            counts = np.array([called, hits, one["flips"], one["images"]])
            by_set[one["data"]] = by_set.get(one["data"], 0) + counts
    alarmed = [counts for counts in by_set.values() if counts[0]]
    return [
        100 * fmean(hits / called for called, hits, _, _ in alarmed) if alarmed else nan,
        100 * fmean(hits / flips for _, hits, flips, _ in by_set.values()),
        100 * fmean(called / images for called, _, _, images in by_set.values()),
    ]


def chosen(lines: Lines) -> float:
    """Return the least margin from which on, on the sets for choosing, WANTED of the alarms are
    right where 5 % of the labels are wrong."""
    return next(m for m in MARGINS if figures(lines, CHOOSE_ALL, 5, m)[0] >= 100 * WANTED)


def tables(lines: Lines) -> str:
    """Make the table of docs/studies/suspects.md."""
    heads = [f"{kind}, {share} %" for kind in ("choosing", "reporting") for share in SHARES]
    rows = []
    for margin in MARGINS:
        cells = [
            ", ".join(f"{value:.0f}" for value in figures(lines, sets, share, margin))
            for sets in (CHOOSE_ALL, REPORT_ALL)
            for share in SHARES
        ]
        rows.append([f"{margin:g}", *cells])
    return markdown(["margin: right, found, alarms", *heads], rows)


def main() -> None:
    sets = [name for name in (*CHOOSE_ALL, *REPORT_ALL) if name not in LARGE]
    args = make_parser(__doc__, sets).parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(tables(lines))
        print(f"\nchosen: {chosen(lines):g}")
        return
    done = {(one["data"], one["share"], one["seed"]) for one in lines}
    lab = Lab(root=args.root, progress=False)
    for data in args.data:
        todo = [key for key in product(SHARES, args.seeds) if (data, *key) not in done]
        study = Study(lab, data, SHOTS, POCKET_3) if todo else None
        for share, seed in todo:
            assert study is not None
            append_lines(args.out, [line(study, share, seed)])
            print(data, share, seed, flush=True)


if __name__ == "__main__":
    main()
