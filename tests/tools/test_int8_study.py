"""tools/int8_study.py: rows of every way, and its table. The data sets themselves take minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from int8_study import FP32, table


def test_the_table_has_a_line_of_each_set_and_the_means() -> None:
    def row(way: str, accuracy: float, rate: float, chosen: bool = False) -> dict[str, Any]:
        return {
            "way": way, "MB": 20.0, "accuracy": accuracy, "same": 98.0, "difference": 0.01,
            "rate": rate, "chosen": chosen,
        }  # fmt: skip

    first = {
        "data": "a",
        "images": 10,
        "rows": [row(FP32, 50, 10), row("smooth", 49, 30, True), row("blocks", 50, 20)],
    }
    second = {
        "data": "b",
        "images": 10,
        "rows": [row(FP32, 60, 10), row("smooth", 57, 20), row("blocks", 61, 20, True)],
    }
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table([first, second]).splitlines()
    ]
    found = {(line[0], line[2]): (line[5], line[9]) for line in lines[2:]}
    assert found == {
        ("a", "smooth"): ("-1.0", "3.00"), ("b", "blocks"): ("+1.0", "2.00"),
        ("mean of 2", FP32): ("+0.0", "1.00"), ("mean of 2", "smooth"): ("-2.0", "2.50"),
        ("mean of 2", "taken"): ("+0.0", "2.50"), ("mean of 2", "blocks"): ("+0.5", "2.00"),
    }  # fmt: skip


def test_the_docs_have_the_table_of_the_lines() -> None:
    docs = Path(__file__).parents[2] / "docs"
    lines = [json.loads(line) for line in (docs / "results/int8.jsonl").read_text().splitlines()]
    page = (docs / "deploy.md").read_text(encoding="utf-8")
    assert table(lines) in page
