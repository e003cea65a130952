"""The study of strange images: rates, and tables of lines."""

from __future__ import annotations

import familiar
import numpy as np
import pytest

OURS, PARTS = familiar.OURS, familiar.PARTS


def line(data: str, ours: float, other: float, away: float | None = None) -> dict[str, object]:
    rates = {OURS: [ours, 50.0], **{part: [other, 60.0] for part in PARTS}}
    found: dict[str, object] = {"data": data, "shots": 4, "seed": 1, "method": "rmadapter-plus"}
    found |= {"apart near": rates, "apart far": rates}
    return (
        found if away is None else found | {"away": dict.fromkeys(("known", "near", "far"), away)}
    )


def test_rates_by_hand() -> None:
    known, other = np.arange(100.0), np.array([-1.0, 94.5, 200.0, 300.0])
    area, passed = familiar.apart(known, other)
    assert area == pytest.approx(100 * (0 + 95 + 100 + 100) / 400)
    assert passed == 25  # 95 % of the known are at most 94.05


def test_far_images_are_of_the_same_half() -> None:
    others = familiar.far_of("caltech101")
    assert {*others} == {*familiar.CHOOSE_ALL} - {"caltech101", "office_caltech/web"}
    assert "dtd10" in familiar.far_of("pacs/photo")


def test_tables_average_sets() -> None:
    lines = [line("rooms", 80, 70, 4.0), line("weather", 60, 70), line("food", 90, 90)]
    tables = familiar.tables(lines)
    rows = tables["choosing: 4 shots, rmadapter-plus"].splitlines()
    assert rows[2] == "| strangeness | 70.0 | 70.0 | 50.0 | 50.0 |"
    assert (
        "| near: strangeness - doubt | +0.0 |"
        in (tables["choosing: 4 shots, rmadapter-plus, differences"])
    )
    away = tables["choosing: 4 shots, rmadapter-plus, turned away"].splitlines()[-1]
    assert away == "| 1 | 4.0 | 4.0 | 4.0 |"
    assert "reporting: 4 shots, rmadapter-plus" in tables
