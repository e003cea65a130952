"""tools/reconstruction_tables.py: means and differences over data sets, beside scipy's."""

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


def line(data: str, seed: int, variant: str, base: float, **more: Any) -> dict[str, Any]:
    fixed = {
        "novel": 50.0,
        "hm": 55.0,
        "zero_shot_base": 40.0,
        "zero_shot_novel": 45.0,
        "zero_shot_hm": 42.4,
        "shots": 16,
        "fields": {},
    }
    fixed |= {"backbone": "pocket", "precision": "bf16"}
    inside = dict.fromkeys(tables.INSIDE, 0.5)
    return {"data": data, "seed": seed, "variant": variant, "base": base, **inside, **fixed, **more}


LINES = [
    line(data, seed, variant, value)
    for data, variants in BASE.items()
    for variant, values in variants.items()
    for seed, value in enumerate(values)
]


def test_a_data_set_counts_once() -> None:
    mean, half, p, sets = tables.difference(LINES, "reconstruction", "neither", "base")
    one, other = [61, 74, 55], [61, 70, 52]
    expected = ttest_rel(one, other)
    assert (mean, sets) == (pytest.approx(7 / 3), 3)
    assert p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))  # type: ignore[operator]
    assert tables.by_set(LINES, "neither", "base") == {"a": 61, "b": 70, "c": 52}
    table = tables.differences(LINES, [("reconstruction", "neither")], ("base",))
    assert f"| reconstruction - neither | base | +2.33 | {low:.2f} to {high:.2f} | 3 |" in table
    assert table.endswith("not shown |")


def test_only_seeds_that_both_have_are_compared() -> None:
    more = [*LINES, line("a", 7, "neither", 99), line("d", 0, "neither", 1)]
    assert tables.difference(more, "reconstruction", "neither", "base")[0] == pytest.approx(7 / 3)


def test_a_dial_is_a_variant_of_its_own() -> None:
    one = line(
        "a",
        1,
        "neither, dialled",
        60,
        fields={"dials": [0.5]},
        **{"base at 0.5": 50.0, "novel at 0.5": 50.0},
    )
    found = tables.dialled([one])
    assert [(each["variant"], each["base"], each["hm"]) for each in found[1:]] == [
        ("alpha times 0.5", 50.0, 50.0)
    ]


def test_effects_of_combined_factors_add_up() -> None:
    """What a model of added effects puts in comes out, on each data set, though seven factors share
    eight trainings."""
    lines = []
    for name, fields in reconstruction.combined():
        on = {factor for factor, value in tables.FACTORS.items() if fields.get(factor) == value}
        hm = (
            50.01
            + 2.0 * ("norm" in on)
            - 1.0 * ("epochs" in on)
            + 0.5 * bool(fields["lambda_text_con"])
        )
        if name.endswith("reconstruction"):
            hm += 3 + 4.0 * ("share" in on) - 6.0 * ("local" in on) + 5.0 * ("alpha" in on)
        lines += [
            line(data, 1, name, 60.0, hm=hm + more, fields=fields)
            for data, more in (("a", 0), ("b", 20))
        ]
    rows = [row.strip("| ").split(" | ") for row in tables.combinations(lines).splitlines()]
    found = {row[0].removeprefix("effect of "): row[1:] for row in rows[-8:]}
    assert found["norm"] == ["+2.0", "+2.0", "+0.0"]
    assert found["30 epochs"] == ["-1.0", "-1.0", "+0.0"]
    assert found["constraint"] == ["+0.5", "+0.5", "+0.0"]
    assert found["alpha 0.3"] == ["+0.0", "+5.0", "+5.0"]
    assert found["share none"] == ["–", "–", "+4.0"]
    assert found["into the trunk"] == ["–", "–", "-6.0"]
    assert found["mean"] == ["60.8", "65.3", "+4.5"]
    assert len(rows) == 2 + 8 + 8


def test_backbones_stand_side_by_side() -> None:
    values = {"pocket": (50.0, 53.0, 40.0), "other": (70.0, 68.0, 71.0)}
    lines = [
        line(data, 1, variant, value + more, backbone=backbone)
        for backbone, each in values.items()
        for variant, value in zip(tables.MAIN, each, strict=False)
        for data, more in (("rsscn7", 0), ("trashnet", 2))
    ]
    _, _, first, other = tables.backbones(
        [*lines, line("rsscn7", 1, "neither", 0, shots=4)]
    ).splitlines()
    assert first.startswith("| pocket | 40.0 / 45.0 / ")
    assert "| 51.0 / 50.0 / 55.0 | +3.0 |" in first
    assert "| -10.0 |" in first
    assert other.startswith("| other |")
    assert "| -2.0 |" in other
