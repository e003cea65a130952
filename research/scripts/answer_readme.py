"""Make the figure and the table of README from the lines of the registered study.

python research/scripts/answer_readme.py README.md docs/answer.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import answer
import frontier
import learning
from studies import REPORT_ALL, Lines, markdown, read_lines, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "research/results"
SHOTS = 4
# Rows: name, method of R1, and variant of R2, where there is one.
ROWS: Mapping[str, tuple[str, str]] = {
    "zero-shot": ("zero-shot", "zero-shot"),
    "`linear-probe`": ("linear-probe", ""),
    "`ridge`": ("ridge", "ridge"),
    "`mmrl`": ("mmrl", "mmrl"),
    "`rmadapter-plain`": ("rmadapter-plain", "neither"),
    "RMAdapter": ("rmadapter", "both"),
    "`rmadapter-plus`": ("rmadapter-plus", answer.CHOSEN),
}


def recorded() -> tuple[Lines, Lines]:
    """Return the lines of R1 and of R2."""
    names = ("learning", "families", "choice")
    learnt = learning.merged([read_lines(RESULTS / f"{name}.jsonl") for name in names])
    return learnt, read_lines(RESULTS / "keeping.jsonl")


def table(learnt: Lines, kept: Lines) -> str:
    """Tabulate accuracies on the sets for reporting with SHOTS images per class: of all classes,
    and after training on half of them."""
    sets = learning.sets_of(REPORT_ALL)
    accuracies = learning.means(learnt, sets)
    some = answer.of_sets(kept, REPORT_ALL, SHOTS)
    cells = {row[0]: row[1:4] for row in answer.means(some)}
    rows = [["chance", learning.guessing(learnt, sets), *cells["chance"]]]
    for name, (method, variant) in ROWS.items():
        half = cells[variant] if variant else ["–"] * 3
        rows.append([name, f"{accuracies[method][SHOTS]:.1f}", *half])
    return markdown(["4 images per class", "all classes", "base", "novel", "both"], rows)


def figure(learnt: Lines, kept: Lines) -> Figure:
    """Draw both figures of the study side by side."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(12, 4.2), dpi=110, facecolor="white", layout="constrained")
    left, right = drawing.subplots(1, 2)
    learning.plot(left, learnt)
    frontier.plot(right, kept)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return drawing


def words(drawing: Figure) -> str:
    """Return what the legends of a figure say."""
    return "; ".join(text for axes in drawing.axes for text in axes.get_legend_handles_labels()[1])


def main() -> None:
    page, out = map(Path, sys.argv[1:])
    learnt, kept = recorded()
    show({"answer": table(learnt, kept)}, page)
    drawing = figure(learnt, kept)
    drawing.savefig(out, metadata={"Description": words(drawing)})


if __name__ == "__main__":
    main()
