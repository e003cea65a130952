"""benchmarks/folder.py: a whole command taken apart."""

from __future__ import annotations

import folder


def test_the_parts_are_the_whole_and_hold_nothing_twice() -> None:
    found = [
        {"seconds": 20.0 + i, "frozen": 4.0, "train": 5.0, "evaluate": 6.0, "total": 15.0}
        for i in (0, 9, 1)
    ]
    row = folder.row("x", found, {"start": 2.0, "train": 1.0, "test": 1.5})
    assert row == {
        "run": "x", "seconds": 21.0,
        "start": 2.0, "decode": 2.5, "frozen": 3.0, "train": 5.0, "evaluate": 4.5, "rest": 4.0,
    }  # fmt: skip
    assert sum(row[part] for part in folder.PARTS) == row["seconds"]
