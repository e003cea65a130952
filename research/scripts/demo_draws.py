"""Measure the task of the demo over draws of images: which pictograms are trained on, which tested.

    python research/scripts/demo_draws.py --out research/results/demo_draws.jsonl
    python research/scripts/demo_draws.py --out research/results/demo_draws.jsonl --tables \\
        --page research/studies/demo.md

    python research/scripts/demo_draws.py --out research/results/demo_draws_pocket_3.jsonl \\
        --backbone pocket-3 --methods rmadapter-plus
    python research/scripts/demo_draws.py --out research/results/demo_draws_pocket_3.jsonl \\
        --tables --page research/studies/demo.md

A line is one method on one draw. Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from studies import Line, Lines, append_lines, make_parser, markdown, read_lines, show

from rmadapter import metrics
from rmadapter.data.catalog.openmoji import load_openmoji
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task

METHODS = ("rmadapter", "rmadapter-plus", "ridge")  # the last one trains no adapter
DRAWS = (0, 1, 2, 3, 4)  # 0 is the demo's own
FIGURES = ("base", "novel")
BACKBONE, SHOTS = "pocket", 16  # of the first lines, and of those that do not name their shots


def measure(
    lab: Lab, draw: int, name: str, backbone: str = BACKBONE, shots: int = SHOTS
) -> dict[str, Any]:
    """Run a method on a draw of the pictograms, which the lab holds by that name."""
    values = {"classes": "base", "seed": 1, "backbone": backbone, "shots": shots}
    run = Request.make(values, name, data=f"OpenMoji {draw}")
    record = run_task(run.task, run.method, lab, name).record
    line: dict[str, Any] = {"draw": draw, "method": name, "shots": shots}
    for figure in FIGURES:
        score = record.score(figure)
        assert score is not None
        line[figure] = [record.metric(figure, zero_shot=True), record.metric(figure), score.images]
    return line | {
        "settings": record.model_dump(mode="json")["method"]["settings"],
        "seconds": record.seconds["train"],
        "split_digest": record.split_digest,
        "backbone": record.backbone.model_dump(),
        "versions": record.versions,
    }


def table(lines: Lines, method: str) -> str:
    """Tabulate accuracies before and after in each draw, and the mean change."""
    some = sorted((line for line in lines if line["method"] == method), key=lambda x: x["draw"])
    sides = [tuple(tuple(line[name][side] for name in FIGURES) for side in (0, 1)) for line in some]
    changed = {
        f"{name} classes": [(before[i], after[i]) for before, after in sides]
        for i, name in enumerate(FIGURES)
    }
    changed["harmonic mean"] = [
        (metrics.harmonic_mean(*before), metrics.harmonic_mean(*after)) for before, after in sides
    ]
    rows = []
    for title, pairs in changed.items():
        changes = [after - before for before, after in pairs]
        cells = [", ".join(f"{value:.1f}" for value in side) for side in zip(*pairs, strict=True)]
        rows.append(
            [
                title,
                *cells,
                f"{fmean(changes):+.1f}",
                f"± {metrics.confidence_interval(changes):.1f}",
            ]
        )
    head = [f"`{method}`, in %", "zero-shot, each draw", "adapted", "mean change", "95 % interval"]
    return markdown(head, rows)


def tables(lines: Lines) -> dict[str, str]:
    """Return a table by its name on the page for each backbone, number of shots and method."""
    found = {}
    for name, shots, backbone in sorted({key_of(line)[1:] for line in lines}):
        some = [line for line in lines if key_of(line)[1:] == (name, shots, backbone)]
        title = f"draws: {name}"
        if (shots, backbone) != (SHOTS, BACKBONE):
            title += f", {shots} images, {backbone}"
        found[title] = table(some, name)
    return found


def key_of(line: Line) -> tuple[int, str, int, str]:
    return line["draw"], line["method"], line.get("shots", SHOTS), line["backbone"]["name"]


def main() -> None:
    parser = make_parser(__doc__, seeds=False)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--shots", type=int, nargs="+", default=[SHOTS], help="of a class")
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--draws", type=int, nargs="+", default=[*DRAWS])
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    done = {key_of(line) for line in lines}
    for draw, name, shots in itertools.product(args.draws, args.methods, args.shots):
        if (draw, name, shots, args.backbone) in done:
            continue
        lab = Lab(progress=False)
        size = lab.backbone(args.backbone).image_size
        lab.add(f"OpenMoji {draw}", load_openmoji(size, seed=draw))
        line = measure(lab, draw, name, args.backbone, shots)
        append_lines(args.out, [line])
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
