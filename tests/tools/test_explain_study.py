"""tools/explain_study.py: its curves by hand, that it goes on where it was, and what follows from
its lines."""

from __future__ import annotations

from typing import Any

import explain_study
import pytest
import torch

from tests.helpers.studies import Study, study

__all__ = ["study"]  # a fixture


def line(data: str, first: list[float], random: list[float], row: int = 0) -> dict[str, Any]:
    scores = dict.fromkeys(explain_study.NAMES, random) | {"Grad-CAM": first}
    return {"data": data, "method": "m", "row": row, "right": True, "scores": scores}


def test_curves_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose probability is the share of the image's weight that is shown."""
    weight = torch.tensor([[0.7, 0.1], [0.1, 0.1]])

    def shares(fitted: Any, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels[:, 0] * weight).sum((1, 2))[:, None]

    monkeypatch.setattr(explain_study, "probabilities", shares)
    monkeypatch.setattr(explain_study, "SHARES", (0.25, 0.5))
    fitted: Any = None
    best, worst = (
        explain_study.curves(fitted, torch.ones(3, 2, 2), 0, torch.tensor(order), 2)
        for order in ([0, 1, 2, 3], [3, 2, 1, 0])
    )
    assert best == pytest.approx([0.75, 0.25])  # shown alone: 0.7, 0.8; covered: 0.3, 0.2 are left
    assert worst == pytest.approx([0.15, 0.85])


def test_better_than_random_by_more_than_the_interval() -> None:
    lines = [line(data, [0.8, 0.2], [0.5, 0.5], row) for data in "xyz" for row in (0, 1)]
    assert explain_study.mean(lines, "x", "m", "Grad-CAM") == pytest.approx((0.8, 0.2, 0.6))
    assert explain_study.ahead(lines, "m", "Grad-CAM", "random") == pytest.approx([0.6] * 3)
    assert explain_study.better(lines, "m", "Grad-CAM", "random")
    assert not explain_study.better(lines, "m", "centre", "random")
    mixed = [*lines[:4], *(line("z", [0.2, 0.8], [0.5, 0.5], row) for row in (0, 1))]
    assert not explain_study.better(mixed, "m", "Grad-CAM", "random")


def test_finished_lines_are_kept(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study(explain_study, "--images", "1")
    lines = study(explain_study, "--images", "2")
    assert len(lines) == len({x["row"] for x in lines}) == 2
    for found in lines:
        assert tuple(found["scores"]) == explain_study.NAMES
        assert all(0 <= value <= 1 for pair in found["scores"].values() for value in pair)
    study(explain_study, "--tables")
    assert "| linear-probe | insertion | deletion | more than random |" in capsys.readouterr().out
