"""Measure what `--method auto` is worth: its candidates over folds of the shots, and on the test
split, task by task.

    python tools/auto.py caltech101 rsscn7 pacs/photo --root DATA --out docs/results/auto.jsonl
    python tools/auto.py --out docs/results/auto.jsonl --tables

A line is one candidate on one task; which of them `auto` takes follows from the lines, and --tables
says what that is worth. Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from studies import (
    CHOOSE,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    with_interval,
)

from rmadapter.methods.auto import CANDIDATES, preferred
from rmadapter.runs.folds import FOLDS, Folds, pick
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task

Task: TypeAlias = tuple[str, int, int]  # data set, shots, seed
Accuracies: TypeAlias = Mapping[Task, Mapping[str, float]]  # by task, then by name

AUTO, BEST = "auto", "best in hindsight"
KEY = ("data", "shots", "seed", "candidate")


def accuracies(lines: Lines, order: Sequence[str] = CANDIDATES) -> dict[Task, dict[str, float]]:
    """Return test accuracies on each task that has all candidates: of each of them, of what `auto`
    takes, and of the best. order: of preference; it was chosen on CHOOSE."""
    tasks: dict[Task, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        tasks[line["data"], line["shots"], line["seed"]][line["candidate"]] = line
    tested = {}
    for task, by_name in tasks.items():
        if set(order) <= set(by_name):
            names = preferred(order, task[1])
            taken = names[pick([_hits(by_name[name]) for name in names])]
            fixed = {name: float(by_name[name]["test"]) for name in order}
            tested[task] = {**fixed, AUTO: fixed[taken], BEST: max(fixed.values())}
    return tested


def _hits(line: Line) -> np.ndarray:
    """Return which images the candidate got right over the folds, [N] of bool."""
    packed = np.frombuffer(bytes.fromhex(line["right"]), np.uint8)
    return np.unpackbits(packed, count=line["images"]).astype(bool)


def regrets(tested: Accuracies, shots: int | None = None) -> dict[str, dict[str, float]]:
    """Average the points behind the best in hindsight over a set's shots and seeds: name -> set ->
    points."""
    points: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (data, few, _), values in tested.items():
        if shots in (None, few):
            for name, value in values.items():
                points[name][data].append(values[BEST] - value)
    return {name: {data: fmean(p) for data, p in sets.items()} for name, sets in points.items()}


def show(tested: Accuracies) -> None:
    """Print points behind the best in hindsight over the sets for choosing, the others and all, by
    shots; and how many more than `auto`, with the 95 % interval over sets."""
    for title, wanted in (("for choosing", [True]), ("other", [False]), ("all", [True, False])):
        part = {task: values for task, values in tested.items() if (task[0] in CHOOSE) in wanted}
        shots = sorted({task[1] for task in part})
        full = regrets(part)
        columns = [*(regrets(part, few) for few in shots), full]
        count = f"{title}: {len({task[0] for task in part})} sets, {len(part)} tasks"
        heads = [count, *(f"{few} shots" for few in shots), "all", "more than auto"]
        rows = []
        for name, sets in full.items():
            if name == BEST:
                continue
            extra = np.array([points - full[AUTO][data] for data, points in sets.items()])
            means = [f"{fmean(column[name].values()):.1f}" for column in columns]
            rows.append([name, *means, "" if name == AUTO else with_interval(extra.tolist())])
        print("\n" + markdown(heads, rows))


def trial(
    lab: Lab, data: str, shots: int, seed: int, name: str, folds: Folds | None
) -> tuple[dict[str, Any], Folds]:
    """Run one candidate: which images it gets right over the folds (bits in hexadecimal), and its
    test accuracy."""
    request = Request.make({"shots": shots, "seed": seed}, name, data=data)
    folds = folds or Folds.make(request.task, lab.draw(request.task), lab, FOLDS)
    answers = folds.answers(request.method, name)
    right = answers.table.argmax(1) == np.array(folds.judged.labels)
    record = run_task(request.task, request.method, lab, name).record
    line = {
        "folds": len(folds),
        "images": len(right),
        "right": np.packbits(right).tobytes().hex(),
        "seconds": round(answers.seconds, 1),
        "test_images": record.scores[0].images,
        "test": record.metric("all"),
        "test_seconds": record.seconds["train"],
        "split_digest": record.split_digest,
        "backbone": record.backbone.model_dump(),
        "versions": record.versions,
    }
    return line, folds


def main() -> None:
    parser = make_parser(__doc__, CHOOSE)
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES)
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 16])
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(accuracies(lines, args.candidates))
        return
    done = {tuple(line[name] for name in KEY) for line in lines}
    for data in args.data:
        lab = Lab(root=args.root, keep=True, progress=False)
        for seed, shots in itertools.product(args.seeds, args.shots):
            folds = None
            for name in args.candidates:
                key = (data, shots, seed, name)
                if key not in done:
                    measured, folds = trial(lab, data, shots, seed, name, folds)
                    line = {**dict(zip(KEY, key, strict=True)), **measured}
                    append_lines(args.out, [line])
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
