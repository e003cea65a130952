"""benchmarks/growth.py at a few small points, and its exponents by hand. What it measures is not
asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import figures
import growth
import pytest

from tests.helpers.models import CLIP_TEXT, write_model


@pytest.mark.slow
def test_every_study_leaves_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "ASKED", 20)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 5}
    model = write_model(
        tmp_path / "model", {"vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "layers": 5}}
    )
    parts = {
        "classes": ["text", "step", "answers", "page"],
        "images": ["scan", "frozen", "predict", "page", "duplicates"],
        "templates": ["text"],
    }
    for study, points in (("classes", "3"), ("images", "20"), ("templates", "1")):
        given = [
            "growth.py",
            "--backbone",
            str(model),
            "--allocator",
            "default",
            "--batch",
            "2",
            "--study",
            study,
        ]
        given += ["--points", points, str(2 * int(points)), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", given)
        growth.main()
    found = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert list(found) == ["classes", "images", "templates"]
    for study, names in parts.items():
        first, second = found[study]["points"]
        assert second[study] == 2 * first[study]
        for name in names:
            assert f"{name}_seconds" in first
            assert first[f"{name}_wall"] > 0
        assert "torch" in found[study]["versions"]
    assert (tmp_path / "out" / "growth.png").stat().st_size > 1000
    text = figures.growth(found)
    assert all(f"Growth with {study}" in text for study in parts)
    assert "| 40 |" in text


def test_an_exponent_is_the_slope_between_the_last_two_points() -> None:
    points = [
        {"images": 1, "a_seconds": 9.0, "b_seconds": 9.0, "a_mb": 1.0, "process_peak_mb": 1.0},
        {
            "images": 10,
            "a_seconds": 1.0,
            "b_seconds": 0.001,
            "a_mb": 30.0,
            "process_peak_mb": 900.0,
        },
        {
            "images": 100,
            "a_seconds": 100.0,
            "b_seconds": 10.0,
            "a_mb": 300.0,
            "process_peak_mb": 9000.0,
        },
    ]
    assert growth.exponents("images", points) == {
        "a_seconds": pytest.approx(2),
        "a_mb": pytest.approx(1),
    }
    assert growth.exponents("images", points[:1]) == {}


def test_names_are_all_different() -> None:
    assert len({*growth.named(10_000)}) == 10_000
