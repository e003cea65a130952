"""Show what `fit` without a method was worth when it chose one: the accuracy of the method that it
chose, of each candidate and of the paper's method, and how far its probabilities could be trusted.

    python research/scripts/choice.py --out research/results/choice.jsonl --tables \\
        --page docs/studies/choice.md

A line is one method on one task: a data set, a number of shots and a seed. The study is finished:
the library chooses no method any more, so this script measures nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    Line,
    Lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_interval,
)

Task: TypeAlias = tuple[str, int, int]  # data set, shots, seed
Tasks: TypeAlias = Mapping[Task, Mapping[str, Line]]  # lines by method

# In order of preference, which the choosing sets decided.
CANDIDATES = (
    *("rmadapter-plus", "linear-probe", "linear-probe-pair", "linear-probe-zero-shot"),
    *("tip-adapter-f", "zero-shot", "zero-shot-ensemble"),
)
PAPER = "rmadapter"
AUTO = "auto"
ERRORS = ("error", "error_untouched", "error_best", "error_by_chance")
SAID, WRONG = 0.6, 0.1  # a probability, and a share of wrong answers


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
    for name in (AUTO, *CANDIDATES, PAPER):
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
    parser = make_parser(__doc__, seeds=False)
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    if not args.tables:
        parser.error("only --tables is left: the library chooses no method any more")
    show(tables(read_lines(args.out)), args.page)


if __name__ == "__main__":
    main()
