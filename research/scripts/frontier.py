"""Draw R2 of research/studies/registration.md: accuracy on novel classes against accuracy on the
trained ones, as a model is mixed with the untouched one.

    python research/scripts/frontier.py research/results/keeping.jsonl docs/studies/keeping.svg
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import answer
import learning
import numpy as np
from studies import REPORT_ALL, Lines, read_lines

from rmadapter.support.files import write_text
from rmadapter.support.html import COLOURS, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOTS = 4
SPAN = 14  # points of novel accuracy on the axis, at least
# Variants of answer.py, drawn as these methods in learning.py.
CURVES: Mapping[str, str] = {
    answer.CHOSEN: learning.BEST,
    "mmrl": "mmrl",
    "neither": "rmadapter-plain",
    "both": "rmadapter",
    "ridge": "ridge",
    "mma": "mma",
}


def frontiers(lines: Lines, shots: int) -> dict[str, np.ndarray]:
    """Average base and novel accuracy [S, 2] of each of CURVES, for each share of the trained
    model, over the data sets for reporting; each set is the mean of its domains and draws."""
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in CURVES}
    for line in answer.of_sets(lines, REPORT_ALL, shots):
        if line["variant"] in CURVES:
            data = line["data"].split("/")[0]
            points = np.array(line["frontier"])[:, :2]
            found[line["variant"]].setdefault(data, []).append(points)
    counts = [{data: len(some) for data, some in sets.items()} for sets in found.values()]
    if any(one != counts[0] for one in counts):
        raise ValueError("curves of different draws cannot be compared")
    return {
        name: np.mean([np.mean(some, axis=0) for some in sets.values()], axis=0)
        for name, sets in found.items()
    }


def plot(axes: Axes, lines: Lines, shots: int = SHOTS) -> None:
    """Plot the frontiers, with the accuracies of each trained model."""
    found = frontiers(lines, shots)
    for name, points in found.items():
        label, colour, style, marker = learning.CURVES[CURVES[name]]
        base, novel = points[-1]
        axes.plot(
            *points.T, color=COLOURS[colour], linestyle=style, marker=marker, markersize=5,
            markevery=[len(points) - 1], label=f"{label} {base:.1f} / {novel:.1f}",
        )  # fmt: skip
    untouched = found["both"][0]
    label = f"zero-shot {untouched[0]:.1f} / {untouched[1]:.1f}"
    axes.plot(*untouched, "o", color=COLOURS["zero-shot"], markersize=7, label=label)
    low, high = axes.get_ylim()
    spare = max(SPAN - (high - low), 0) / 2  # or small differences would look large
    axes.set_ylim(low - spare, high + spare)
    axes.set(xlabel="accuracy on trained classes, %", ylabel="accuracy on novel classes, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="base / novel")


def drawn(lines: Lines) -> str:
    """Draw `plot` as SVG."""
    with canvas(6.4, 4.4, "keeping", "Novel accuracy against base accuracy") as (axes, out):
        plot(axes, lines)
    return out[0]


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    write_text(out, drawn(read_lines(source)))


if __name__ == "__main__":
    main()
