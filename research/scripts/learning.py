"""Answer R1 of research/studies/registration.md: test accuracy on all classes by images per class.

    python research/scripts/families.py SETS --root DATA \\
        --out research/results/learning.jsonl --seeds 1 \\
        --shots 1 --methods rmadapter-plus rmadapter rmadapter-plain mma mma-adamw mmrl
    python research/scripts/learning.py research/results/{learning,families,choice}.jsonl \\
        --pages docs/studies/answer.md --figure docs/studies/learning.svg

The lines of other studies count where they are of the same draw. A number of shots is tested once
all its runs are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from forest import interval
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
    Line,
    Lines,
    markdown,
    read_lines,
    show,
    with_verdicts,
)

from rmadapter.support.files import write_text
from rmadapter.support.html import COLOURS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAW = 1
SHOTS = (1, 2, 4, 8, 16)
LEFT_OUT = ("caltech101", "grocery")  # their 181 classes cost as much as all others
BEST = "rmadapter-plus"  # what the others are tested against
METHODS = (
    *("zero-shot", "linear-probe", "linear-probe-pair", "ridge", "tip-adapter-f"),
    *("rmadapter", "rmadapter-plain", BEST, "mmrl", "mma", "mma-adamw"),
)
# Those with more draws, by the study of the choice; with so many images per class.
DRAWN_AGAIN, DRAWS, DRAWN_SHOTS = ("linear-probe", "linear-probe-pair", "rmadapter"), (1, 2, 3), 4
# Drawn curves: name, colour, line and marker.
CURVES = {
    BEST: ("RMAdapter+", "adapted", "-", "D"),
    "mmrl": ("MMRL", "ink", "-", "s"),
    "rmadapter-plain": ("adapters alone", "adapted", "--", "^"),
    "linear-probe": ("linear probe", "zero-shot", "-", "o"),
    "ridge": ("ridge", "zero-shot", "--", "v"),
    "rmadapter": ("RMAdapter", "adapted", ":", "P"),
    "mma": ("MMA", "ink", "--", "X"),
    "zero-shot": ("zero-shot", "ink", ":", "."),
}


def sets_of(names: Sequence[str]) -> list[str]:
    """Return the data sets that R1 asks about among these."""
    return [name for name in names if name not in LEFT_OUT]


def shots_of(count: int) -> str:
    return f"{count} shot{'s' * (count > 1)}"


def merged(files: Sequence[Lines]) -> list[Line]:
    """Return the lines of R1, each task and method once.

    Raises ValueError if two lines of a task are not of the same shots, or of a method and task do
    not agree.
    """
    found: dict[tuple[str, int, str], Line] = {}
    digests: dict[tuple[str, int], str] = {}
    for line in (line for lines in files for line in lines):
        task = (line["data"], line["shots"])
        if line["seed"] != DRAW or line["method"] not in METHODS or task[1] not in SHOTS:
            continue
        if digests.setdefault(task, line["split_digest"]) != line["split_digest"]:
            raise ValueError(f"{task}: lines of different shots")
        first = found.setdefault((*task, line["method"]), line)
        if first["test"] != line["test"]:
            raise ValueError(f"{task}: two accuracies of {line['method']}")
    return [*found.values()]


def accuracies(lines: Lines, sets: Sequence[str], shots: int) -> dict[str, dict[str, float]]:
    """Return the accuracies with a number of shots by method and data set."""
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["shots"] == shots and line["data"] in sets:
            found.setdefault(line["method"], {})[line["data"]] = line["test"]
    return found


def means(lines: Lines, sets: Sequence[str]) -> dict[str, dict[int, float]]:
    """Average each method over all of the sets, for each number of shots where it has them."""
    found: dict[str, dict[int, float]] = {name: {} for name in METHODS}
    for shots in SHOTS:
        for name, by_set in accuracies(lines, sets, shots).items():
            if len(by_set) == len(sets):
                found[name][shots] = fmean(by_set.values())
    return found


def complete(lines: Lines, shots: int) -> bool:
    """Whether all runs with a number of shots are there."""
    sets = sets_of((*CHOOSE_ALL, *REPORT_ALL))
    by_method = accuracies(lines, sets, shots)
    return all(len(by_method.get(name, ())) == len(sets) for name in METHODS)


def guessing(lines: Lines, sets: Sequence[str]) -> str:
    """Return the mean accuracy of guesses in %, "–" while a set's number of classes is unknown."""
    classes = {line["data"]: line["classes"] for line in lines if "classes" in line}
    return f"{fmean(100 / classes[name] for name in sets):.1f}" if {*sets} <= {*classes} else "–"


def accuracy_table(lines: Lines, sets: Sequence[str]) -> str:
    """Tabulate the means over sets; "–" until all runs of a cell are there."""
    chance = guessing(lines, sets)
    rows = [["chance", *[chance] * len(SHOTS)]]
    for name, by_shots in means(lines, sets).items():
        cells = (f"{by_shots[shots]:.1f}" if shots in by_shots else "–" for shots in SHOTS)
        rows.append([f"`{name}`", *cells])
    return markdown([f"{len(sets)} sets, in %", *map(shots_of, SHOTS)], rows)


def verdicts(lines: Lines, sets: Sequence[str], shots: int) -> str:
    """Test each method against BEST with a number of shots, corrected for these rows."""
    by_method = accuracies(lines, sets, shots)
    best = by_method[BEST]
    differences = {
        f"{name} - {BEST}": [[by_method[name][data] - best[data]] for data in sets]
        for name in METHODS
        if name != BEST
    }
    rows = [[name, *cells] for name, cells in with_verdicts(differences, 1).items()]
    return markdown([f"accuracy, {shots_of(shots)}", *TESTED], rows)


def draws_table(lines: Lines) -> str:
    """Tabulate how far DRAWN_AGAIN are behind BEST in each of DRAWS, over the data sets for
    reporting."""
    sets = sets_of(REPORT_ALL)
    found = {
        (line["method"], line["data"], line["seed"]): line["test"]
        for line in lines
        if line["shots"] == DRAWN_SHOTS
    }
    rows = []
    for name in DRAWN_AGAIN:
        differences = [
            [found[name, data, draw] - found[BEST, data, draw] for draw in DRAWS] for data in sets
        ]
        means = [fmean(column) for column in zip(*differences, strict=True)]
        mean, low, high = interval(differences)
        cells = [f"{value:+.1f}" for value in (*means, mean)]
        rows.append([f"{name} - {BEST}", *cells, f"{low:.1f} to {high:.1f}"])
    head = [f"accuracy, {shots_of(DRAWN_SHOTS)}, {len(sets)} sets"]
    return markdown([*head, *(f"draw {n}" for n in DRAWS), "all draws", "95 % interval"], rows)


def tables(lines: Lines) -> dict[str, str]:
    """Return all tables by their names on the page."""
    found = {}
    for title, names in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        sets = sets_of(names)
        found[f"learning, {title}"] = accuracy_table(lines, sets)
    for shots in SHOTS:
        if complete(lines, shots):
            sets = sets_of(REPORT_ALL)
            found[f"learning, reporting: {shots_of(shots)}"] = verdicts(lines, sets, shots)
    return found


def plot(axes: Axes, lines: Lines) -> None:
    """Plot CURVES on the sets for reporting, with the last accuracy of each."""
    found = means(lines, sets_of(REPORT_ALL))
    for name, (label, colour, style, marker) in CURVES.items():
        points = sorted(found[name].items())
        if not points:
            continue
        shots, last = points[-1]
        axes.plot(
            *zip(*points, strict=True), color=COLOURS[colour], linestyle=style, marker=marker,
            markersize=4, label=f"{label}, {shots}: {last:.1f}",
        )  # fmt: skip
    axes.set(xlabel="images per class", ylabel="accuracy on all classes, %", xscale="log")
    axes.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def drawn(lines: Lines) -> str:
    """Draw `plot` as SVG."""
    with canvas(6.4, 4.4, "learning", "Test accuracy by images per class") as (axes, out):
        plot(axes, lines)
    return out[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the tables")
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    args = parser.parse_args()
    files = [read_lines(file) for file in args.files]
    lines, every = merged(files), [line for some in files for line in some]
    show(tables(lines) | {"learning, draws": draws_table(every)}, *args.pages)
    if args.figure:
        write_text(args.figure, drawn(lines))


if __name__ == "__main__":
    main()
