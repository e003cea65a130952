"""Compare `pocket-3` with `pocket` where there are images to learn from.

    python research/scripts/pocket_3.py --root DATA --out research/results/pocket_3.jsonl --seeds 1
    python research/scripts/pocket_3.py --out research/results/pocket_3.jsonl --tables \\
        --page docs/reference/pocket.md

On each backbone, with 4, 16 and all training images of a class, RMAdapter+ trains as `fit` lets it:
ten passes, and five at twice the rate over all images. Logistic regression is that of all_images.py
with all images. Both backbones compute in bfloat16. Finished lines are kept: repeat the command to
resume.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from all_images import HALF, LEFT_OUT, REGRESSION, Scores, regression
from families import against
from fewer_steps import DEFAULT, measure
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

from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine

NEW, OLD = BACKBONES = ("pocket-3", "pocket")
SHOTS = {4: "4 images", 16: "16 images", 0: "all images"}  # of a class
WAYS = (
    *((f"RMAdapter+, {text}", shots, True) for shots, text in SHOTS.items()),
    (f"{REGRESSION}, {SHOTS[0]}", 0, False),
)  # title, shots, and whether it is RMAdapter+


def lines_of(lab: Lab, data: str, seed: int, backbone: str, shots: int) -> list[dict[str, Any]]:
    """Train on some images of each class of a set; return the lines of what was asked."""
    way = DEFAULT if shots else HALF
    lines = measure(lab, data, seed, [way], backbone, shots)
    if not shots:
        lines.append(regression(lab, data, seed, backbone))
    return [{**line, "backbone_name": backbone, "shots": shots} for line in lines]


def scores(lines: Lines, shots: int, trained: bool) -> Scores:
    """Return the accuracies of one of `WAYS` by backbone, set and draw."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["shots"] == shots and trained == (line["variant"] != REGRESSION):
            found[line["backbone_name"]][line["data"]].append(line["test"])
    return found


def common(found: Scores, sets: tuple[str, ...]) -> Scores:
    """Keep the sets that both backbones have."""
    both = [data for data in sets if all(data in found[backbone] for backbone in BACKBONES)]
    return {backbone: {data: found[backbone][data] for data in both} for backbone in BACKBONES}


def table(lines: Lines, sets: tuple[str, ...]) -> str:
    """Tabulate both backbones, and how far the new one is ahead."""
    by_way = {title: common(scores(lines, shots, trained), sets) for title, shots, trained in WAYS}
    known = {title: found for title, found in by_way.items() if found[NEW]}
    verdicts = with_verdicts({t: against(found, NEW, OLD) for t, found in known.items()}, 1)
    rows = []
    for title, found in known.items():
        means = [fmean(map(fmean, found[backbone].values())) for backbone in (OLD, NEW)]
        rows.append([title, *(f"{mean:.1f}" for mean in means), *verdicts[title]])
    return markdown(["accuracy in %, mean of the sets", f"`{OLD}`", f"`{NEW}`", *TESTED], rows)


def tables(lines: Lines) -> Mapping[str, str]:
    """Return the tables by their names on the page."""
    halves = {"choosing": CHOOSE_ALL, "reporting": REPORT_ALL}
    asked = {line["data"] for line in lines}
    return {
        f"pocket-3: {name}": table(lines, sets)
        for name, sets in halves.items()
        if asked.intersection(sets)
    }


def main() -> None:
    sets = [name for name in (*CHOOSE_ALL, *REPORT_ALL) if name not in LEFT_OUT]
    parser = make_parser(__doc__, sets)
    parser.add_argument("--shots", type=int, nargs="+", default=[*SHOTS], help="of a class")
    parser.add_argument("--backbones", nargs="+", default=[*BACKBONES])
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    done = {(x["data"], x["seed"], x["backbone_name"], x["shots"]) for x in lines}
    for seed, data, shots in itertools.product(args.seeds, args.data, args.shots):
        lab = Lab(Machine(precision="bf16"), args.root, keep=True, progress=False)
        for backbone in args.backbones:
            if (data, seed, backbone, shots) in done:
                continue
            found = lines_of(lab, data, seed, backbone, shots)
            append_lines(args.out, found)
            for line in found:
                shown = (line["data"], backbone, shots, line["variant"], round(line["test"], 1))
                print(json.dumps([*shown, line["cpu_seconds"]]), flush=True)


if __name__ == "__main__":
    main()
