"""Draw the figure of docs/studies/findings.md: RMAdapter's differences from other methods with 16
shots, from the records of `bench`.

    python research/scripts/findings.py research/results/photographs/records.jsonl \\
        docs/studies/findings.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from forest import SERIES, Interval, forest

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.read import read_records
from rmadapter.bench.report.stats import paired
from rmadapter.support.files import write_text

SHOTS = 16
OTHERS = {
    "zero-shot": "zero-shot",
    "mma": "MMA",
    "rmadapter-plain": "its adapters alone",
    "mma-adamw": "MMA trained like it",
    "mmrl": "MMRL",
}


def drawn(records: Sequence[Record]) -> str:
    """Draw RMAdapter's differences from each of OTHERS on the same shots, as SVG."""
    of = {
        name: [r for r in records if r.method.name == name and r.task.shots == SHOTS]
        for name in ("rmadapter", *OTHERS)
    }
    rows = {}
    for name, called in OTHERS.items():
        row, sets = {}, 0
        for figure in SERIES:
            d = paired(of["rmadapter"], of[name], figure.lower())
            if d is None or d.low is None or d.high is None:
                raise ValueError(f"too few runs of {name}")
            row[figure], sets = Interval(d.difference, d.low, d.high), d.sets
        rows[f"RMAdapter - {called},\n{sets} sets"] = row
    return forest(rows, "differences", "Differences of RMAdapter from other methods, in points")


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    write_text(out, drawn(read_records(source).finished))


if __name__ == "__main__":
    main()
