"""fewtrans.py: ensembles over settings, and tables of lines whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fewtrans
import numpy as np
import pytest
from studies import REPORT_ALL

from rmadapter import Lab
from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images


def line(data: str, variant: str, each: list[float], ensemble: float, shots: int = 4) -> Any:
    facts = {"data": data, "shots": shots, "draw": 1, "variant": variant}
    return facts | {"each": each, "ensemble": ensemble}


def test_the_sets_are_eight_for_reporting() -> None:
    assert len(fewtrans.SETS) == 8
    assert {*fewtrans.SETS} < {*REPORT_ALL}


def test_a_rate_is_multiplied_and_a_wording_replaced() -> None:
    method, every = fewtrans.settings_of("full fine-tuning, images")
    assert method == "full-finetune"
    assert {one["sides"] for one in every} == {"image"}
    rates = [one["learning_rate"] for one in every]
    np.testing.assert_allclose(rates, [1e-6, 1e-5, 1e-4])
    method, every = fewtrans.settings_of("zero-shot, wordings")
    assert [one["templates"] for one in every] == [[wording] for wording in fewtrans.WORDINGS]


def test_seeds_differ_in_the_training_alone(tiny_clip: Backbone, colors: Path) -> None:
    _, every = fewtrans.settings_of("RMAdapter+, seeds")
    rate = fewtrans.METHODS["RMAdapter+"][3]
    assert [(one["seed"], one["learning_rate"]) for one in every] == [
        (1, rate),
        (2, rate),
        (3, rate),
    ]
    lab = Lab(progress=False)
    lab.add("colors", read_images(colors, progress=False))
    lab.add_backbone(tiny_clip)
    found = fewtrans.trial(lab, "colors", 4, "full fine-tuning, seeds", tiny_clip.name)
    other = fewtrans.trial(lab, "colors", 4, "linear probe", tiny_clip.name)
    assert found["split_digest"] == other["split_digest"]
    assert len(found["each"]) == 3


def test_the_ensemble_averages_probabilities(tiny_clip: Backbone, colors: Path) -> None:
    lab = Lab(progress=False)
    lab.add("colors", read_images(colors, progress=False))
    lab.add_backbone(tiny_clip)
    found = fewtrans.trial(lab, "colors", 4, "linear probe", tiny_clip.name)
    assert [one["C"] for one in found["settings"]] == pytest.approx([0.0316, 0.316, 3.16])
    assert len(found["each"]) == 3
    assert min(found["each"]) - 50 <= found["ensemble"] <= 100


def test_tables_compare_what_each_set_has() -> None:
    figures = {"adapters alone": 50.0, "RMAdapter+": 56.0, "linear probe": 52.0}
    lines = [
        line(data, variant, [10.0, own + place, 30.0], own + 1)
        for place, data in enumerate(("food", "dtd10", "pacs/photo"))
        for variant, own in (dict.fromkeys(fewtrans.METHODS, 54.0) | figures).items()
    ]
    lines += [
        line(data, variant, [51.0, 53.0 + place, 52.0], 54.0)
        for place, data in enumerate(("food", "dtd10", "pacs/photo"))
        for variant in fewtrans.SEEDED
    ]
    lines += [
        line(data, variant, [40.0, 42.0, 41.0, 38.0, 39.0], 43.0, shots)
        for data in ("food", "dtd10")
        for variant in fewtrans.WORDED
        for shots in fewtrans.SHOTS
    ]
    found = fewtrans.tables(lines)
    rows = found["4 images"].splitlines()
    assert rows[0].startswith("| 3 sets, in % |")
    assert "| full fine-tuning | 10.0 | 55.0 | 30.0 | 55.0 | 55.0 |" in rows
    [first, *_] = found["4 images, compared"].splitlines()[2:]
    assert first.startswith("| full fine-tuning - adapters alone | +4.0 |")
    assert "| zero-shot | 4 | 40.0 | 42.0 | 41.0 | 38.0 | 39.0 | 4.0 |" in found["wordings"]
    assert "16 images" not in found
    assert "| RMAdapter+ | 52.3 | 54.0 | 57.0 |" in found["4 images, seeds"].splitlines()
    steps = found["4 images, seeds, compared"].splitlines()[-2:]
    assert steps[0].startswith("| RMAdapter+, three seeds - one | +1.7 |")
    assert steps[1].startswith("| RMAdapter+, three rates - three seeds | +3.0 |")
