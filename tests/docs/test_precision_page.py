"""What bfloat16 costs in accuracy, as benchmarks/README.md says it: recomputed from the records."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from rmadapter.metrics import confidence_interval

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")


def scores() -> dict[str, dict[tuple[str, int], list[float]]]:
    """Number format -> data set and seed -> base, novel and HM."""
    found: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(dict)
    for line in (ROOT / "docs/results/precision.jsonl").read_text().splitlines():
        record = json.loads(line)
        base, novel = (score["accuracy"] for score in record["scores"])
        task = record["task"]
        found[record["precision"]][task["data"], task["seed"]] = [
            base,
            novel,
            2 * base * novel / (base + novel),
        ]
    return found


def test_the_table_is_that_of_the_records() -> None:
    found = scores()
    assert found["bf16"].keys() == found["fp32"].keys()
    sets = sorted({data for data, _ in found["fp32"]})
    assert all({seed for data, seed in found["fp32"] if data == one} == {1, 2, 3} for one in sets)
    columns = []
    for place in range(3):
        changes = {
            data: fmean(
                found["bf16"][data, s][place] - found["fp32"][data, s][place] for s in (1, 2, 3)
            )
            for data in sets
        }
        columns.append(changes)
    for data in sets:
        assert (
            f"| {data} | " + " | ".join(f"{changes[data]:+.2f}" for changes in columns) + " |"
            in PAGE
        )
    means = [fmean(changes.values()) for changes in columns]
    assert f"| mean of {len(sets)} | " + " | ".join(f"{mean:+.2f}" for mean in means) + " |" in PAGE
    assert abs(means[2]) < 0.3
    halves = [confidence_interval(list(changes.values())) for changes in columns]
    ranges = [(mean - half, mean + half) for mean, half in zip(means, halves, strict=True)]
    cells = " | ".join(f"{low:.2f} to {high:.2f}" for low, high in ranges)
    assert f"| 95 % interval | {cells} |" in PAGE
    assert all(low < 0 < high for low, high in ranges)
