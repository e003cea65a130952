"""int8_study.py: its table compares each way with float32, by set and on average."""

from __future__ import annotations

from typing import Any

from int8_study import FP32, table


def row(way: str, accuracy: float, rate: float, chosen: bool = False) -> dict[str, Any]:
    sizes = {"MB": 20.0, "same": 98.0, "difference": 0.01}
    return {"way": way, "accuracy": accuracy, "rate": rate, "chosen": chosen, **sizes}


def test_the_table_has_a_line_of_each_set_and_the_means() -> None:
    first = [row(FP32, 50, 10), row("smooth", 49, 30, True), row("blocks", 50, 20)]
    second = [row(FP32, 60, 10), row("smooth", 57, 20), row("blocks", 61, 20, True)]
    text = table([{"data": d, "images": 10, "rows": r} for d, r in (("a", first), ("b", second))])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert {(line[0], line[2]): (line[5], line[9]) for line in lines[2:]} == {
        ("a", "smooth"): ("-1.0", "3.00"), ("b", "blocks"): ("+1.0", "2.00"),
        ("mean of 2", FP32): ("+0.0", "1.00"), ("mean of 2", "smooth"): ("-2.0", "2.50"),
        ("mean of 2", "taken"): ("+0.0", "2.50"), ("mean of 2", "blocks"): ("+0.5", "2.00"),
    }  # fmt: skip
