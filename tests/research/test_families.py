"""families.py: members chosen on some sets and compared on others, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
from studies import REPORT_ALL

from rmadapter.backbones import Backbone
from rmadapter.methods import traits_of
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine


def line(data: str, method: str, test: float, shots: int = 4, seed: int = 1) -> dict[str, Any]:
    return {
        "data": data, "shots": shots, "seed": seed, "method": method, "test": test,
        "split_digest": f"{data}{shots}",
    }  # fmt: skip


def both(method: str, choosing: tuple[float, float], reporting: list[float]) -> list[Any]:
    """Lines on two sets for choosing and on some for reporting."""
    sets = ("rooms", "clouds", "food", "sports")
    tests = (*choosing, *reporting)
    return [line(data, method, test) for data, test in zip(sets, tests, strict=True)]


LINES = [
    *both("gda", (60, 50), [40, 30]),
    *both("proker", (58, 56), [70, 70]),  # better on the sets for reporting alone
    *both("ss-text-u", (90, 90), [90, 90]),  # sees more than the shots
    *both("linear-probe", (70, 60), [50, 60]),
    *both("clap", (65, 60), [55, 61]),
]


def test_the_sets_for_choosing_choose_among_those_that_see_the_shots_alone() -> None:
    assert families.chosen(LINES, 4) == {
        "training-free": "proker", "linear classifiers": "linear-probe",
    }  # fmt: skip
    assert families.chosen(LINES, 16) == {}


def test_a_set_counts_once_with_the_mean_of_its_draws() -> None:
    found = {"food": [10.0, 30.0], "sports": [60.0]}
    assert families.average(found) == 40


def test_the_table_marks_the_chosen_and_leaves_out_a_part_of_the_sets() -> None:
    plus = [line("food", "rmadapter-plus", 99), line("rooms", "rmadapter-plus", 80)]
    table = families.accuracy_table(families.beside(LINES, plus), REPORT_ALL)
    rows = {row.split("|")[2].strip(): row for row in table.splitlines()[2:]}
    assert "| **70.0** |" in rows["`proker`"]
    assert "| 35.0 |" in rows["`gda`"]
    assert "| 90.0 |" in rows["`ss-text-u` (extra data)"]
    assert "| – |" in rows["`rmadapter-plus`"]  # one of two sets
    assert "`mail`" not in rows  # none


def test_only_lines_of_the_same_draw_are_put_beside() -> None:
    other = {**line("food", "rmadapter-plus", 99), "split_digest": "another"}
    assert families.beside(LINES, [other]) == LINES
    assert families.beside(LINES, [line("food", "zero-shot", 1)]) == LINES


def test_verdicts_are_over_the_sets_for_reporting_against_the_first_on_the_others() -> None:
    rows = families.verdict_table(LINES).splitlines()[2:]
    [cells] = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells[:4] == ["4", "`proker`", "`linear-probe`", "+15.0"]  # of 20 and 10
    assert cells[5] == "2"


def test_methods_that_train_through_the_encoders_are_compared_with_the_first_of_them() -> None:
    plus = [line("food", "rmadapter-plus", 60), line("sports", "rmadapter-plus", 70)]
    mail = [line("food", "mail", 50), line("sports", "mail", 64), line("rooms", "mail", 0)]
    rows = families.through_table([*LINES, *plus, *mail]).splitlines()[2:]
    [cells] = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells[:4] == ["4", "`mail`", "`rmadapter-plus`", "-8.0"]


def test_sets_with_many_classes_have_a_table_of_their_own() -> None:
    large = [line("caltech101", "gda", 80), line("grocery", "gda", 40)]
    part = [line("caltech101", "clap", 99)]
    lines = [*LINES, *large, *part]
    table = families.large_table(lines).splitlines()
    assert table[0] == "| method | caltech101, 4 | grocery, 4 |"
    assert table[2:] == ["| `gda` | 80.0 | 40.0 |"]
    for name in ("choosing", "reporting", "verdicts"):
        assert families.tables(lines)[name] == families.tables(LINES)[name]


def test_all_methods_of_the_families_read_features_alone() -> None:
    names = [name for some in families.FAMILIES.values() for name in some]
    assert len({*names}) == len(names)
    assert all(traits_of(name).reads == "features" for name in names)


@pytest.mark.slow
def test_a_task_is_measured_with_each_method(tiny_clip: Backbone, colors: Path) -> None:
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    names = [name for some in families.FAMILIES.values() for name in some]
    lines = families.measure(lab, colors.name, 2, 1, names, tiny_clip.name)
    assert [one["method"] for one in lines] == names
    assert all(0 <= one["test"] <= 100 for one in lines)
    assert len({one["split_digest"] for one in lines}) == 1
