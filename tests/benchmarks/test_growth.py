"""benchmarks/growth.py at a few small points, and its exponents by hand. What it measures is not
asserted."""

from __future__ import annotations

import growth
import pytest


def test_an_exponent_is_the_slope_between_the_last_two_points() -> None:
    points = [
        {"images": 1, "a_seconds": 9.0, "b_seconds": 9.0, "a_mb": 1.0, "process_peak_mb": 1.0},
        {
            "images": 10, "a_seconds": 1.0, "b_seconds": 0.001, "a_mb": 30.0,
            "process_peak_mb": 900.0,
        },
        {
            "images": 100, "a_seconds": 100.0, "b_seconds": 10.0, "a_mb": 300.0,
            "process_peak_mb": 9000.0,
        },
    ]  # fmt: skip
    assert growth.exponents("images", points) == {
        "a_seconds": pytest.approx(2),
        "a_mb": pytest.approx(1),
    }
    assert growth.exponents("images", points[:1]) == {}
