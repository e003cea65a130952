"""reconstruction_tables.py: means, differences and effects over data sets, against scipy and
known sums."""

from __future__ import annotations

from typing import Any

import pytest
import reconstruction
import reconstruction_tables as tables
from scipy.stats import ttest_rel

BASE = {
    "a": {"neither": (60, 62), "reconstruction": (61, 61)},
    "b": {"neither": (70, 70), "reconstruction": (75, 73)},
    "c": {"neither": (50, 54), "reconstruction": (56, 54)},
}
FIXED = {"backbone": "pocket", "precision": "bf16", "shots": 16, "fields": {}}
FIXED |= {"novel": 50.0, "hm": 55.0}
FIXED |= {"zero_shot_base": 40.0, "zero_shot_novel": 45.0, "zero_shot_hm": 42.4}


def line(data: str, seed: int, variant: str, base: float, **more: Any) -> dict[str, Any]:
    inside = dict.fromkeys(tables.INSIDE, 0.5)
    run = {"data": data, "seed": seed, "variant": variant, "base": base}
    return {**run, **inside, **FIXED, **more}


LINES = [
    line(data, seed, variant, value)
    for data, variants in BASE.items()
    for variant, values in variants.items()
    for seed, value in enumerate(values)
]


def test_a_data_set_counts_once_in_a_difference() -> None:
    mean, half = tables.difference(LINES, "reconstruction", "neither", "base")
    expected = ttest_rel([61, 74, 55], [61, 70, 52])
    low, high = expected.confidence_interval()
    assert mean == pytest.approx(7 / 3)
    assert (mean - half, mean + half) == pytest.approx((low, high))  # type: ignore[operator]
    assert tables.by_set(LINES, "neither", "base") == {"a": 61, "b": 70, "c": 52}
    table = tables.differences(LINES, [("reconstruction", "neither")], ("base",))
    assert f"| reconstruction - neither | base | +2.33 | {low:.2f} to {high:.2f} | 3 |" in table
    assert table.endswith(f"not shown, at most {high:.1f} |")


def test_only_seeds_that_both_variants_have_are_compared() -> None:
    more = [*LINES, line("a", 7, "neither", 99), line("d", 0, "neither", 1)]
    assert tables.difference(more, "reconstruction", "neither", "base")[0] == pytest.approx(7 / 3)


def test_each_dial_becomes_a_variant() -> None:
    dials = {"base at 0.5": 50.0, "novel at 0.5": 50.0}
    one = line("a", 1, "neither, dialled", 60, fields={"dials": [0.5]}, **dials)
    [turned] = tables.dialled([one])[1:]
    assert (turned["variant"], turned["base"], turned["hm"]) == ("alpha times 0.5", 50.0, 50.0)


def test_effects_of_combined_factors_are_recovered() -> None:
    """From a model of added effects, on each data set, though seven factors share eight
    trainings."""
    lines = []
    for name, fields in reconstruction.combined():
        on = {factor for factor, value in tables.FACTORS.items() if fields.get(factor) == value}
        effects = {"norm": 2.0, "epochs": -1.0, "share": 0.0, "local": 0.0, "alpha": 0.0}
        hm = 50.01 + 0.5 * bool(fields["lambda_text_con"])
        if name.endswith("reconstruction"):
            hm += 3
            effects |= {"share": 4.0, "local": -6.0, "alpha": 5.0}
        hm += sum(effects.get(factor, 0.0) for factor in on)
        lines += [
            line(d, 1, name, 60.0, hm=hm + m, fields=fields) for d, m in (("a", 0), ("b", 20))
        ]
    rows = [row.strip("| ").split(" | ") for row in tables.combinations(lines).splitlines()]
    assert len(rows) == 2 + 8 + 8
    shown = {row[0].removeprefix("effect of "): row[1:] for row in rows[-8:]}
    expected = {
        "norm": ["+2.0", "+2.0", "+0.0"],
        "30 epochs": ["-1.0", "-1.0", "+0.0"],
        "constraint": ["+0.5", "+0.5", "+0.0"],
        "alpha 0.3": ["+0.0", "+5.0", "+5.0"],
        "share none": ["–", "–", "+4.0"],
        "into the trunk": ["–", "–", "-6.0"],
        "mean": ["60.8", "65.3", "+4.5"],
    }
    assert {name: shown[name] for name in expected} == expected


def test_each_backbone_has_a_row_of_its_own_differences() -> None:
    values = {"pocket": (50.0, 53.0, 40.0), "other": (70.0, 68.0, 71.0)}
    lines = [line("rsscn7", 1, "neither", 0, shots=4)]
    for backbone, bases in values.items():
        for variant, base in zip(tables.MAIN, bases, strict=False):
            for data, more in (("rsscn7", 0), ("trashnet", 2)):
                lines.append(line(data, 1, variant, base + more, backbone=backbone))
    _, _, first, other = tables.backbones(lines).splitlines()
    assert first.startswith("| pocket | 40.0 / 45.0 / ")
    assert "| 51.0 / 50.0 / 55.0 | +3.0 |" in first
    assert "| -10.0 |" in first
    assert other.startswith("| other |")
    assert "| -2.0 |" in other
