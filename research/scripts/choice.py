"""Measure what `fit` without a method is worth: the accuracy of the method that it chooses, of each
candidate and of the paper's method, and how far its probabilities can be trusted.

    python research/scripts/choice.py --root DATA --out research/results/choice.jsonl
    python research/scripts/choice.py --out research/results/choice.jsonl --tables \\
        --page docs/studies/choice.md

A line is one method on one task: a data set, a number of shots and a seed. Finished tasks are kept:
repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from choice_rule import CANDIDATES, choose, methods_for
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
    with_interval,
)

from rmadapter import metrics
from rmadapter.artifacts.record import HeldOut
from rmadapter.methods import DEFAULT, PREFERRED
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task

Task: TypeAlias = tuple[str, int, int]  # data set, shots, seed
Tasks: TypeAlias = Mapping[Task, Mapping[str, Line]]  # lines by method

AUTO, BEST = "auto", "best in hindsight"
MINUTES = 600.0  # to choose: on a busy machine, nothing is left out for its time
ERRORS = ("error", "error_untouched", "error_best", "error_by_chance")
SAID, WRONG = 0.6, 0.1  # a probability, and a share of wrong answers


# Measuring


def measure(lab: Lab, data: str, shots: int, seed: int, whole: bool) -> list[dict[str, Any]]:
    """Choose among the candidates, and run each of them and the paper's method on the test split.
    whole: answer all folds by slow candidates, too."""
    request = Request.make({"shots": shots, "seed": seed}, PREFERRED, data=data)
    folds = Folds.make(request.task, lab.draw(request.task), lab, FOLDS)
    methods = methods_for(folds.images.labels)
    chosen = choose(folds, methods, MINUTES)
    lines = []
    for name in (*methods, DEFAULT):
        run = Request.make({"shots": shots, "seed": seed}, name, data=data)
        counted = folds.answered(run.method, name)
        temperature = folds.temperature(
            run.method, name, counted or folds.wanted(run.method, promise=False)
        )
        tempered = folds.tempered(run.method, name, temperature or 1)
        held_out = HeldOut.of(tempered.table, tempered.labels) if tempered else None
        outcome = run_task(run.task, run.method, lab, name)
        [evaluation], record = outcome.evaluations, outcome.record
        line = {
            "data": data,
            "shots": shots,
            "seed": seed,
            "method": name,
            "chosen": name == chosen,
            "folds": [len(part) for part in folds.parts],
            "answered": counted,
            "right": "",
            "seconds": 0.0,
            "test": record.metric("all"),
            "train_seconds": record.seconds["train"],
            **trust(evaluation.probabilities, evaluation.labels, temperature, held_out),
            "split_digest": record.split_digest,
            "backbone": record.backbone.model_dump(),
            "versions": record.versions,
        }
        if name in methods and counted:
            answers = folds.answers(run.method, name, count=None if whole else counted)
            labels = np.array(folds.judged.labels)[: len(answers.table)]
            right = answers.table.argmax(1) == labels
            line["right"] = "".join("1" if hit else "0" for hit in right)
            line["seconds"] = round(answers.seconds, 1)
        lines.append(line)
    return lines


def trust(
    table: np.ndarray, labels: np.ndarray, temperature: float | None, held_out: HeldOut | None
) -> dict[str, Any]:
    """Return the calibration error on test images at a temperature, at 1 and at the best one, and
    what so many images would show of a model that says exactly how often it is right; and how many
    answers, and right ones, have the probability SAID, and are sure if WRONG may be wrong."""
    right = table.argmax(1) == labels
    sure = metrics.tempered(table, temperature or 1).max(1)
    best = metrics.tempered(table, metrics.temperature(table, labels)).max(1)
    said = sure >= SAID
    asked = sure >= (held_out.sure_from(WRONG) if held_out else 1 - WRONG)
    return {
        "images": len(labels),
        "temperature": temperature,
        "error": metrics.calibration_error(sure, right),
        "error_untouched": metrics.calibration_error(table.max(1), right),
        "error_best": metrics.calibration_error(best, right),
        "error_by_chance": by_chance(sure),
        "said": [int(said.sum()), int(right[said].sum())],
        "asked": [int(asked.sum()), int(right[asked].sum())],
    }


def by_chance(sure: np.ndarray, draws: int = 200) -> float:
    """Return the mean calibration error where answers with these probabilities [N] are right just
    as often; it is above 0 because N is finite."""
    rng = np.random.default_rng(0)
    errors = (metrics.calibration_error(sure, rng.random(len(sure)) < sure) for _ in range(draws))
    return round(fmean(errors), 4)


# Tables


def by_task(lines: Lines, sets: Sequence[str]) -> dict[Task, dict[str, Line]]:
    """Return the lines of each task on these sets by method; `AUTO` is the chosen one's."""
    tasks: dict[Task, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        if line["data"] in sets:
            task = tasks[line["data"], line["shots"], line["seed"]]
            task[line["method"]] = line
            if line["chosen"]:
                task[AUTO] = line
    return tasks


def per_set(tasks: Tasks, name: str, shots: int | None = None) -> dict[str, float]:
    """Return the mean over a set's tasks of how many points a method is behind the best candidate
    of the task. shots: of the tasks, None for all."""
    points: dict[str, list[float]] = defaultdict(list)
    for (data, few, _), of in tasks.items():
        if shots in (None, few):
            best = max(of[candidate]["test"] for candidate in CANDIDATES)
            points[data].append(best - of[name]["test"])
    return {data: fmean(values) for data, values in points.items()}


def accuracy_table(tasks: Tasks) -> str:
    """Compare the methods: points behind the best candidate of each task, by shots, averaged over
    sets; and the difference from `AUTO` with its 95 % interval over sets."""
    shots = sorted({few for _, few, _ in tasks})
    count = f"points behind the best of {len(CANDIDATES)}"
    heads = [count, *(f"{few} shots" for few in shots), "all", f"more than {AUTO}"]
    ours, rows = per_set(tasks, AUTO), []
    for name in (AUTO, *CANDIDATES, DEFAULT):
        theirs = per_set(tasks, name)
        columns = [per_set(tasks, name, few) for few in shots]
        means = [f"{fmean(column.values()):.1f}" for column in [*columns, theirs]]
        extra = [theirs[data] - ours[data] for data in theirs]
        rows.append([name, *means, "" if name == AUTO else with_interval(extra)])
    return markdown(heads, rows)


def trust_table(tasks: Tasks) -> str:
    """Show how far the probabilities of `AUTO` can be trusted: calibration errors, averaged over
    sets, and shares of all answers that are sure and of these that are right."""
    heads = ["shots", "calibration error", "before", "at best", "by chance"]
    heads += [f"said {SAID:.0%}", "right"]
    heads += [f"asked {1 - WRONG:.0%}", "right"]
    rows = []
    for few in sorted({few for _, few, _ in tasks}):
        lines = [of[AUTO] for (_, shots, _), of in tasks.items() if shots == few]
        cells = [mean_over_sets(lines, key) for key in ERRORS]
        for key in ("said", "asked"):
            sure, right = (sum(line[key][i] for line in lines) for i in (0, 1))
            cells += [f"{100 * sure / sum(line['images'] for line in lines):.0f} %"]
            cells += [f"{100 * right / sure:.0f} %" if sure else "–"]
        rows.append([f"{few}", *cells])
    return markdown(heads, rows)


def mean_over_sets(lines: Lines, key: str) -> str:
    """Return the mean of the means of the sets; – if a line lacks the figure."""
    if not all(key in line for line in lines):
        return "–"
    values: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        values[line["data"]].append(line[key])
    return f"{fmean(map(fmean, values.values())):.1f}"


def chosen_table(tasks: Tasks) -> str:
    """Count which method was chosen, by shots."""
    shots = sorted({few for _, few, _ in tasks})
    counts = Counter((of[AUTO]["method"], few) for (_, few, _), of in tasks.items())
    names = [name for name in CANDIDATES if any(counts[name, few] for few in shots)]
    rows = [[name, *(f"{counts[name, few]}" for few in shots)] for name in names]
    return markdown(["chosen", *(f"{few} shots" for few in shots)], rows)


def tables(lines: Lines) -> dict[str, str]:
    """Return all tables by their names on the page."""
    found = {}
    for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        tasks = by_task(lines, sets)
        if tasks:
            count = f"{len({data for data, _, _ in tasks})} sets, {len(tasks)} tasks"
            found[f"{title}: accuracy"] = f"{count}\n\n{accuracy_table(tasks)}"
            found[f"{title}: chosen"] = chosen_table(tasks)
            found[f"{title}: trust"] = trust_table(tasks)
    return found


def main() -> None:
    parser = make_parser(__doc__, (*CHOOSE_ALL, *REPORT_ALL))
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    parser.add_argument("--whole", action="store_true", help="all folds of slow candidates, too")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    done = {(line["data"], line["shots"], line["seed"]) for line in lines}
    for seed, data in itertools.product(args.seeds, args.data):
        lab = Lab(root=args.root, keep=True, progress=False)
        for shots in [few for few in args.shots if (data, few, seed) not in done]:
            measured = measure(lab, data, shots, seed, args.whole)
            append_lines(args.out, measured)
            for line in measured:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
