"""The study of strange images: rates, and tables of lines."""

from __future__ import annotations

import familiar
import numpy as np
import pytest

from rmadapter.answers.rejection import RejectionScore

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


def test_images_that_are_turned_away() -> None:
    own = RejectionScore((0.9,) * 78, (*np.linspace(0.1, 0.2, 78),), "folds")
    found = {"doubt": np.full(4, 0.1), "distance": np.array([0.15, 0.196, 0.199, 0.5])}
    assert familiar.turned_away(own, found) == 50  # k is 2


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


def test_tables_of_names_added() -> None:
    missed = {"own, nothing added": [4.0, 0, 0, 2.0], "own": [6.0, 0, 0, 3.0]}
    lines = [
        line("rooms", 80, 70) | {"added": {"10": missed | {"added": [away, 0, 0, size]}}}
        for away, size in ((50.0, 3.0), (70.0, 4.0))
    ]
    table = familiar.tables([*lines, line("food", 90, 90) | {"added": {}}])
    assert table["choosing: names added"].splitlines()[-1] == (
        "| 10 % | 2 | 4.0 | 6.0 | 60.0 | 3.50 |"
    )
    assert "reporting: names added" not in table


def test_newer_scores_stand_where_all_lines_have_them() -> None:
    newer = {"NegLabel": [66.0, 40.0]}
    with_newer = line("rooms", 80, 70)
    for kind in ("apart near", "apart far"):
        rates = with_newer[kind]
        assert isinstance(rates, dict)
        with_newer[kind] = rates | newer
    table = familiar.tables([with_newer])["choosing: 4 shots, rmadapter-plus"]
    assert table.splitlines()[-1] == "| NegLabel | 66.0 | 66.0 | 40.0 | 40.0 |"
    both = familiar.tables([with_newer, line("weather", 60, 70)])
    assert "NegLabel" not in both["choosing: 4 shots, rmadapter-plus"]
