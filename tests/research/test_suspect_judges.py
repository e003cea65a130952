"""suspect_judges.py: judges of flipped labels on a small set, and tables by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import suspect_judges
from suspects import METHOD, PROBE, Study

from rmadapter import Lab
from rmadapter.backbones import Backbone
from rmadapter.data.read import read_images


def test_a_judge_of_true_labels_is_asked_about_flipped_ones(
    tiny_clip: Backbone, colors: Path
) -> None:
    lab = Lab(progress=False)
    lab.add("colors", read_images(colors, progress=False))
    lab.add_backbone(tiny_clip)
    study = Study(lab, "colors", 8, tiny_clip.name)
    judge = suspect_judges.Judge(tiny_clip.name, METHOD, PROBE)
    found = suspect_judges.measure(study, judge)
    ideal = suspect_judges.measure(study, judge._replace(true=True))
    assert found["flips"] == ideal["flips"] == round(0.1 * len(study.images))
    assert ideal["accuracy"] == 100  # colours are easy to tell apart
    assert ideal["average_precision"] == 1
    assert found["backbone"] == tiny_clip.digest


def line(data: str, judge: str, precision: float, accuracy: float = 60.0) -> dict[str, Any]:
    facts = {"data": data, "judge": judge, "accuracy": accuracy}
    return facts | {"average_precision": precision}


def test_tables_compare_judges_over_sets() -> None:
    first, second, *_ = suspect_judges.JUDGES
    sets = dict(zip(("trashnet", "dtd10", "neu_steel"), (0.4, 0.6, 0.9), strict=True))
    lines = [line(data, first, own) for data, own in sets.items()]
    lines += [line(data, second, own + 0.05 + place / 100, 70.0)
              for place, (data, own) in enumerate(sets.items())]  # fmt: skip
    found = suspect_judges.tables(lines)
    assert f"| {first} | 60.0 | 0.63 |" in found["judges"]
    assert f"| {second} | 0.45 | 0.66 | 0.97 |" in found["judges by set"]
    [row] = found["judges, compared"].splitlines()[2:]
    assert row.startswith(f"| {second} | +6.0 |")
    partly = suspect_judges.tables([*lines, line("trashnet", "RMAdapter+ on `pocket`", 0.9)])
    assert partly == found  # a judge that lacks a set is left out


def test_each_judge_also_learns_from_true_labels() -> None:
    for name, judge in suspect_judges.JUDGES.items():
        assert judge.true == name.endswith("true labels")
        assert f"on `{judge.backbone}`" in name
        assert suspect_judges.JUDGES[name.partition(",")[0]] == judge._replace(true=False)
