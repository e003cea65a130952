"""demo_draws.py: its table, and the sentences of research/studies/demo.md, from its lines."""

from __future__ import annotations

from typing import Any

import demo_draws


def line(draw: int, method: str, base: list[float], novel: list[float]) -> dict[str, Any]:
    return {"draw": draw, "method": method, "base": base, "novel": novel}


def test_changes_are_averaged_over_draws() -> None:
    lines = [
        line(1, "rmadapter", [60, 70, 9], [50, 50, 9]),
        line(0, "rmadapter", [70, 76, 9], [60, 57, 9]),
        line(0, "rmadapter-plus", [70, 90, 9], [60, 57, 9]),
    ]
    rows = [row.split("|")[1:-1] for row in demo_draws.table(lines, "rmadapter").splitlines()[2:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["base classes", "70.0, 60.0", "76.0, 70.0", "+8.0", "± 25.4"]
    assert cells[1] == ["novel classes", "60.0, 50.0", "57.0, 50.0", "-1.5", "± 19.1"]
    assert cells[2][1] == "64.6, 54.5"
