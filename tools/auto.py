"""What `--method auto` is worth: its candidates over folds of the shots, and on the test split,
task by task.

    python tools/auto.py caltech101 rsscn7 pacs/photo --root DATA --out docs/results/auto.jsonl

    python tools/auto.py --out docs/results/auto.jsonl --tables

A line is one candidate on one task; which of them `auto` takes follows from the lines, and --tables
says what that is worth. Finished lines are kept: start it again to go on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from lines import keep, kept, parser

from rmadapter.methods.auto import CANDIDATES, preferred
from rmadapter.metrics import confidence_interval
from rmadapter.runs.auto import pick
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task

Task = tuple[str, int, int]  # data set, shots, seed


AUTO, BEST = "auto", "best in hindsight"
CHOOSING = (
    "caltech101",
    "rsscn7",
    "trashnet",
    "office_caltech/web",
)  # on which the order of candidates was chosen


def accuracies(
    lines: Sequence[Mapping[str, Any]], order: Sequence[str] = CANDIDATES
) -> dict[Task, dict[str, float]]:
    """Test accuracies on each task that has all candidates: of each of them, of what `auto` takes,
    and of the best."""
    tasks: dict[Task, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        tasks[line["data"], line["shots"], line["seed"]][line["candidate"]] = line
    found = {}
    for task, by_name in tasks.items():
        if set(order) <= set(by_name):
            names = preferred(order, task[1])
            bits = [
                np.frombuffer(bytes.fromhex(by_name[name]["right"]), np.uint8) for name in names
            ]
            hits = np.stack(
                [np.unpackbits(b, count=by_name[names[0]]["images"]).astype(bool) for b in bits]
            )
            fixed = {name: float(by_name[name]["test"]) for name in order}
            found[task] = {**fixed, AUTO: fixed[names[pick(hits)]], BEST: max(fixed.values())}
    return found


def regrets(
    found: Mapping[Task, Mapping[str, float]], shots: int | None = None
) -> dict[str, dict[str, float]]:
    """Points behind the best in hindsight, averaged over a set's shots and seeds: name -> set ->
    points."""
    parts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (data, few, _), values in found.items():
        if shots in (None, few):
            for name, value in values.items():
                parts[name][data].append(values[BEST] - value)
    return {
        name: {data: fmean(some) for data, some in sets.items()} for name, sets in parts.items()
    }


def show(found: Mapping[Task, Mapping[str, float]]) -> None:
    """Print points behind the best in hindsight over the sets for choosing, the others and all, by
    shots; and how many more than `auto`, with the 95 % interval over sets."""
    for title, wanted in (("for choosing", [True]), ("other", [False]), ("all", [True, False])):
        some = {task: values for task, values in found.items() if (task[0] in CHOOSING) in wanted}
        shots = sorted({task[1] for task in some})
        full, by_shots = regrets(some), [regrets(some, few) for few in shots]
        heads = [
            f"{title}: {len({task[0] for task in some})} sets, {len(some)} tasks",
            *(f"{few} shots" for few in shots),
        ]
        print("\n| " + " | ".join([*heads, "all", "more than auto"]) + " |")
        print("|---" * (len(heads) + 2) + "|")
        for name, sets in full.items():
            extra = np.array([points - full[AUTO][data] for data, points in sets.items()])
            means = [fmean(part[name].values()) for part in [*by_shots, full]]
            interval = (
                f"{extra.mean():+.1f} ± {confidence_interval(extra):.1f}"
                if name not in (AUTO, BEST)
                else ""
            )
            if name != BEST:
                print(
                    "| " + " | ".join([name, *(f"{mean:.1f}" for mean in means), interval]) + " |"
                )


def trial(
    lab: Lab, data: str, shots: int, seed: int, name: str, folds: Folds | None
) -> tuple[dict[str, Any], Folds]:
    """One candidate: which images it gets right over the folds (bits in hexadecimal), and its test
    accuracy."""
    wanted = Request.make({"shots": shots, "seed": seed}, name, data=data)
    folds = folds or Folds.make(wanted.task, lab.draw(wanted.task), lab, FOLDS)
    found = folds.answers(wanted.method, name)
    right = found.table.argmax(1) == np.array(folds.judged.labels)
    record = run_task(wanted.task, wanted.method, lab, name).record
    return {
        "folds": len(folds),
        "images": len(right),
        "right": np.packbits(right).tobytes().hex(),
        "seconds": round(found.seconds, 1),
        "test_images": record.scores[0].images,
        "test": record.metric("all"),
        "test_seconds": record.seconds["train"],
        "split_digest": record.split_digest,
        "backbone": record.backbone.model_dump(),
        "versions": record.versions,
    }, folds


def main() -> None:
    words = parser(__doc__, CHOOSING)
    words.add_argument("--candidates", nargs="+", default=CANDIDATES)
    words.add_argument("--shots", type=int, nargs="+", default=[2, 4, 16])
    args = words.parse_args()
    lines = kept(args.out)
    if args.tables:
        show(accuracies(lines, args.candidates))
        return
    done = {(line["data"], line["shots"], line["seed"], line["candidate"]) for line in lines}
    for data in args.data:
        lab = Lab(root=args.root, keep=True, progress=False)
        for seed in args.seeds:
            for shots in args.shots:
                folds = None
                for name in args.candidates:
                    if (key := (data, shots, seed, name)) in done:
                        continue
                    found, folds = trial(lab, data, shots, seed, name, folds)
                    line = {
                        **dict(zip(("data", "shots", "seed", "candidate"), key, strict=True)),
                        **found,
                    }
                    keep(args.out, [line])
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
