"""Draw the picture of docs/studies/performance.md: a training step of MMA by classes, public code,
ours, and the machine's limit.

    python research/benchmarks/drawing.py research/results/benchmarks/public.json \\
        docs/studies/performance.svg

The limit is the time in which the machine, at its rate of large matrix products in the same run,
does the products that a step cannot do without (`work.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rmadapter.support.files import read_json, write_text
from rmadapter.support.html import COLOURS, canvas

METHOD = "mma"
LINES = {
    "public": ("its public code", "o"),
    "fp32": ("ours, float32", "s"),
    "bf16": ("ours, bfloat16", "D"),
}


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    write_text(out, drawn(read_json(source)[METHOD]))


def drawn(rows: list[dict[str, Any]]) -> str:
    """Draw an SVG with a line for each code, and a dotted one for the limit of either number
    format."""
    rows = sorted(rows, key=lambda row: row["classes"])
    classes = [row["classes"] for row in rows]
    colours = dict(
        zip(LINES, (COLOURS["zero-shot"], COLOURS["adapted"], COLOURS["ink"]), strict=True)
    )
    with canvas(5.2, 3.4, "step", "Seconds of a training step by number of classes") as (axes, out):
        for kind, (label, marker) in LINES.items():
            axes.plot(
                classes,
                [row[f"{kind}_seconds"] for row in rows],
                color=colours[kind],
                marker=marker,
                label=label,
            )
            if kind != "public":
                least = [row["least_operations"] / row[f"{kind}_gflops"] / 1e9 for row in rows]
                axes.plot(
                    classes,
                    least,
                    color=colours[kind],
                    linestyle=":",
                    label=f"limit in {label.split()[-1]}",
                )
        axes.set(xlabel="classes", ylabel="seconds", xscale="log", yscale="log")
        axes.set_xticks(classes, [str(count) for count in classes])
        axes.minorticks_off()
        axes.set_yticks(ticks := [1, 2, 5, 10, 20, 50], [str(tick) for tick in ticks])
        axes.legend(fontsize="small")
    return out[0]


if __name__ == "__main__":
    main()
