"""label_curve.py: a heap is labelled to its end, and what its table says, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import label_curve
import pytest

from rmadapter.backbones import Backbone
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine

LINE: dict[str, Any] = {
    "data": "sports", "draw": 1, "order": "random",
    "labels": [0, 10, 20, 30], "test": [20.0, 44.0, 45.0, 50.0], "accepted": [0, 2, 7, 15],
}  # fmt: skip


def test_enough_labels_give_nine_tenths_of_the_last_accuracy() -> None:
    assert label_curve.needed(LINE) == 20
    assert label_curve.at(LINE, 19) == 44
    assert label_curve.at(LINE, 200) == 50


def test_the_table_averages_draws() -> None:
    other = {**LINE, "draw": 2, "test": [30.0, 48.0, 50.0, 50.0], "accepted": [0, 4, 9, 21]}
    [row] = label_curve.table([LINE, other]).splitlines()[2:]
    assert row == "| sports | random | 25.0 | 47.5 | 50.0 | 50.0 | 20, 10 | 60 % |"


@pytest.mark.real_plots
def test_the_figure_shows_the_accuracy_after_a_third_of_the_labels() -> None:
    lines = [{**LINE, "order": order} for order in label_curve.CURVES]
    svg = label_curve.drawn(lines)
    assert f">{label_curve.DEFAULT}: 50.0 with {label_curve.THIRD}</text>" in svg


@pytest.mark.parametrize("order", label_curve.ORDERS)
def test_every_image_of_a_heap_is_labelled_once(
    tiny_clip: Backbone, colors: Path, order: str
) -> None:
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    heap = label_curve.Heap(lab, colors.name, 1, tiny_clip.name)
    curve = heap.curve(order, 1)
    assert curve["labels"][0] == 0
    assert curve["labels"][-1] == heap.size
    assert sorted(curve["labels"]) == curve["labels"]
    assert all(
        0 <= accepted <= labels
        for accepted, labels in zip(curve["accepted"], curve["labels"], strict=True)
    )
    assert len(heap.truth) > heap.size  # the test images, which get no label
