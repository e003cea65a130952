"""Compare the methods that read features alone, family by family, by test accuracy on all classes.

    python research/scripts/families.py --root DATA --out research/results/families.jsonl --seeds 1
    python research/scripts/families.py --out research/results/families.jsonl --tables \\
        --beside research/results/choice.jsonl research/results/learning.jsonl \\
        --page research/studies/families.md

A line is one method on one task: a data set, a number of shots and a seed. Finished lines are kept:
repeat the command to resume. For each number of shots, the sets for choosing choose a member of
each family; the sets for reporting compare these.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_verdicts,
)

from rmadapter.methods.uses import track_of
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task

Scores: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]  # by method and set, of its draws

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "no shots": ("zero-shot", "zero-shot-ensemble", "tda", "stata"),
    "training-free": (
        *(
            "tip-adapter",
            "gda",
            "proker",
            "rehark",
            "ss-text",
            "ss-text-plus",
            "ss-text-u",
            "ridge",
        ),
    ),
    "linear classifiers": (
        *("linear-probe", "linear-probe-zero-shot", "linear-probe-pair", "clap", "lp-plus-plus"),
    ),
    "behind the encoder": ("clip-adapter", "hoso-adapter", "biclip", "tip-adapter-f"),
}
# Those that train through the encoders; the first is compared with the others.
BESIDE = (
    *("rmadapter-plus", "rmadapter", "coop-few-shot"),
    *("mmrl-few-shot", "mmrl-plus-plus-few-shot", "promptsrc-few-shot", "heba", "mail"),
)
# The settings of their authors' few-shot experiments, where these differ from those of base to
# novel: files vit_b16_few_shot.yaml of both MMRLs; vit_b16_c2_ep50_batch4_4+4ctx_few_shot.yaml of
# PromptSRC, with the average over epochs of six of its eleven data sets.
RECIPES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "mmrl-few-shot": ("mmrl", {"epochs": 50, "batch_size": 32, "regularisation": 0.5}),
    "mmrl-plus-plus-few-shot": (
        "mmrl-plus-plus",
        {"epochs": 100, "batch_size": 32, "learning_rate": 0.002},
    ),
    "promptsrc-few-shot": ("promptsrc", {"epochs": 50, "mean": 30.0, "std": 30.0}),
}
THROUGH = "through the encoders"
LARGE = ("caltech101", "grocery")  # on which these were not fitted: in a table of their own
CHOOSING, REPORTING = (
    tuple(data for data in sets if data not in LARGE) for sets in (CHOOSE_ALL, REPORT_ALL)
)


# Measuring


def measure(
    lab: Lab, data: str, shots: int, seed: int, methods: Sequence[str], backbone: str = "pocket"
) -> list[dict[str, Any]]:
    """Run each method on the test split."""
    lines = []
    for name in methods:
        method, own = RECIPES.get(name, (name, {}))
        values = {"shots": shots, "seed": seed, "backbone": backbone, **own}
        run = Request.make(values, method, data=data)
        record = run_task(run.task, run.method, lab, method).record
        lines.append(
            {
                "data": data,
                "shots": shots,
                "seed": seed,
                "method": name,
                "classes": len(lab.draw(run.task).train.classes),
                "test": record.metric("all"),
                "train_seconds": record.seconds["train"],
                "split_digest": record.split_digest,
                "backbone": record.backbone.model_dump(),
                "versions": record.versions,
            }
        )
    return lines


# Tables


def scores(lines: Lines, sets: Sequence[str], shots: int) -> dict[str, dict[str, list[float]]]:
    """Return accuracies with a number of shots, by method, set and draw."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["shots"] == shots and line["data"] in sets:
            found[line["method"]][line["data"]].append(line["test"])
    return found


def average(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over sets of the means over draws."""
    return fmean(map(fmean, accuracies.values()))


def chosen(lines: Lines, shots: int) -> dict[str, str]:
    """Return the member of each family that is best on the sets for choosing, of those that use
    nothing but the shots."""
    found = scores(lines, CHOOSING, shots)
    best = {}
    for family, names in FAMILIES.items():
        ranked = [name for name in names if name in found and track_of(name, {}) == "ranked"]
        if ranked:
            best[family] = max(ranked, key=lambda name: average(found[name]))
    return best


def accuracy_table(lines: Lines, sets: Sequence[str]) -> str:
    """Show mean accuracies over sets by method and number of shots; – where a method lacks one of
    the sets. The member of its family that the sets for choosing choose is bold; a track that is
    not the ranked one stands behind the name."""
    few = sorted({line["shots"] for line in lines})
    tables = [scores(lines, sets, shots) for shots in few]
    picks = [chosen(lines, shots) for shots in few]
    rows = []
    for family, names in {**FAMILIES, THROUGH: BESIDE}.items():
        for name in names:
            if not any(name in table for table in tables):
                continue
            cells = []
            for table, pick in zip(tables, picks, strict=True):
                whole = len(table[name]) == max(map(len, table.values()))
                text = f"{average(table[name]):.1f}" if whole else "–"
                cells.append(f"**{text}**" if pick.get(family) == name else text)
            track = track_of(RECIPES[name][0] if name in RECIPES else name, {})
            note = "" if track == "ranked" else f" ({track})"
            rows.append([family, f"`{name}`{note}", *cells])
    heads = [f"{shots} shot{'s' * (shots > 1)}" for shots in few]
    return markdown(["family", "method", *heads], rows)


def large_table(lines: Lines) -> str:
    """Show accuracies on each of the sets with many classes, by method and number of shots, of
    which one is left out."""
    few = sorted({line["shots"] for line in lines} - {1})
    columns = [scores(lines, [data], shots) for data in LARGE for shots in few]
    rows = []
    for name in itertools.chain(*FAMILIES.values()):
        found = [f"{average(table[name]):.1f}" for table in columns if name in table]
        if len(found) == len(columns):
            rows.append([f"`{name}`", *found])
    return markdown(["method", *(f"{data}, {shots}" for data in LARGE for shots in few)], rows)


def verdict_table(lines: Lines) -> str:
    """Compare the chosen members with the best of them on the sets for choosing, on the sets for
    reporting."""
    differences: dict[tuple[str, str, str], list[list[float]]] = {}
    for shots in sorted({line["shots"] for line in lines}):
        choosing, reporting = (scores(lines, sets, shots) for sets in (CHOOSING, REPORTING))
        picks = chosen(lines, shots)
        first = max(picks.values(), key=lambda name: average(choosing[name]))
        others = [name for name in picks.values() if name != first]
        if "rmadapter-plus" in reporting:
            others.append("rmadapter-plus")
        for name in others:
            differences[str(shots), name, first] = against(reporting, name, first)
    return tested_together(differences)


def through_table(lines: Lines) -> str:
    """Compare methods that train through the encoders with the first of them, over those of the
    sets for reporting that have both."""
    differences: dict[tuple[str, str, str], list[list[float]]] = {}
    first, *others = BESIDE
    for shots in sorted({line["shots"] for line in lines}):
        reporting = scores(lines, REPORTING, shots)
        names = [name for name in others if name in reporting and first in reporting]
        for name in names:
            differences[str(shots), name, first] = against(reporting, name, first)
    return tested_together(differences)


def tested_together(differences: Mapping[tuple[str, str, str], Sequence[Sequence[float]]]) -> str:
    """Tabulate differences by shots, method and what it is compared with, corrected for all of
    them."""
    named = {" ".join(key): sets for key, sets in differences.items()}
    rows = [
        [shots, f"`{name}`", f"`{first}`", *cells]
        for (shots, name, first), cells in zip(
            differences, with_verdicts(named, 1).values(), strict=True
        )
    ]
    return markdown(["shots", "method", "against", *TESTED], rows)


def against(found: Scores, name: str, first: str) -> list[list[float]]:
    """Return the differences of two methods, by set and draw."""
    return [
        [one - other for one, other in zip(found[name][data], found[first][data], strict=True)]
        for data in found[first]
        if data in found[name]
    ]


def beside(lines: Lines, others: Lines) -> list[Line]:
    """Return the lines, and those of methods that train through the encoders on the same shots."""
    drawn = {(line["data"], line["shots"], line["seed"]): line["split_digest"] for line in lines}
    same = [
        line
        for line in others
        if line["method"] in BESIDE
        and drawn.get((line["data"], line["shots"], line["seed"])) == line["split_digest"]
    ]
    return [*lines, *same]


def tables(lines: Lines) -> dict[str, str]:
    """Return all tables by their names on the page."""
    found = {}
    for title, sets in (("choosing", CHOOSING), ("reporting", REPORTING)):
        count = len({line["data"] for line in lines if line["data"] in sets})
        found[title] = f"{count} sets\n\n{accuracy_table(lines, sets)}"
    found["verdicts"] = verdict_table(lines)
    found["through"] = through_table(lines)
    found["large"] = large_table(lines)
    return found


def main() -> None:
    parser = make_parser(__doc__, (*CHOOSE_ALL, *REPORT_ALL))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    members = [*itertools.chain(*FAMILIES.values())]
    parser.add_argument("--methods", nargs="+", default=members, help="by default all families")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="lines of slower methods on these shots"
    )
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        others = [line for file in args.beside for line in read_lines(file)]
        show(tables(beside(lines, others)), args.page)
        return
    done = {(line["data"], line["shots"], line["seed"], line["method"]) for line in lines}
    for seed, data in itertools.product(args.seeds, args.data):
        lab = Lab(root=args.root, keep=True, progress=False)
        for shots in args.shots:
            left = [name for name in args.methods if (data, shots, seed, name) not in done]
            measured = measure(lab, data, shots, seed, left)
            append_lines(args.out, measured)
            for line in measured:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
