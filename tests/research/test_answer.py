"""answer.py: what the registered study measures, on tables and images whose answers are
known."""

from __future__ import annotations

from typing import Any

import answer
import numpy as np
import pytest

from rmadapter.backbones import Backbone
from rmadapter.data.image_set import ImageSet
from rmadapter.runs.lab import Lab

LABELS = [0, 0, 1, 1, 2, 2, 3, 3]  # of which 0 and 1 are trained
IMAGES = ImageSet.from_lists(
    [np.full((4, 4, 3), i, np.uint8) for i in range(8)], [f"class {i}" for i in LABELS]
)


def table(*answers: int) -> np.ndarray:
    """Make probabilities that are surest of these classes."""
    return np.array([[0.7 if column == best else 0.1 for column in range(4)] for best in answers])


def test_accuracies_of_halves_are_among_their_own_classes() -> None:
    found = answer.measures(table(0, 2, 1, 3, 2, 0, 3, 3), table(*LABELS), IMAGES, 2)
    assert found["frontier"][0] == [100, 100, 100]  # the untouched model
    # images 1 and 3 are answered with new classes, but all trained ones are level: the first wins
    assert found["frontier"][-1] == [75, 100, 62.5]
    assert found["confused"] == [50, 25]
    assert len(found["frontier"]) == len(answer.SHARES)
    assert found["chance"] == [50, 50, 25]


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    ours = np.array([[0.9, 0, 0.1, 0], [0.6, 0, 0.4, 0], [0.5, 0, 0.5, 0], [0.7, 0, 0.3, 0]])
    images = IMAGES.subset([0, 1, 4, 6])
    assert answer.measures(ours, ours, images, 2)["auroc"] == 75  # 0.6 against 0.7 is wrong


def test_novel_accuracy_at_a_base_accuracy_is_read_off_the_best_line() -> None:
    frontier = [[50, 60, 0], [60, 64, 0], [80, 40, 0], [70, 50, 0]]
    assert answer.novel_at(frontier, 55) == 64  # more base accuracy, and more novel
    assert answer.novel_at(frontier, 70) == pytest.approx(52)
    assert answer.novel_at(frontier, 80) == 40
    assert np.isnan(answer.novel_at(frontier, 81))
    one, other = {"frontier": frontier}, {"frontier": [[50, 60, 0], [70, 45, 0]]}
    assert answer.at_equal_base(one, other) == pytest.approx(52 - 45)
    assert answer.at_equal_base(other, one) == pytest.approx(45 - 52)


def test_without_the_largest_the_first_crossing_from_an_end_counts() -> None:
    frontier = [[50, 60, 0], [60, 64, 0], [80, 40, 0], [70, 50, 0]]
    assert answer.crossing(frontier, 75) == pytest.approx(46)  # between 64 and 40
    assert answer.crossing(frontier[::-1], 75) == pytest.approx(45)  # between 50 and 40
    assert answer.crossing(frontier[1:], 60) == 64
    assert np.isnan(answer.crossing(frontier, 81))
    one, other = {"frontier": frontier}, {"frontier": [[50, 60, 0], [75, 45, 0], [75, 44, 0]]}
    assert answer.at_equal_crossing(one, other, 1) == pytest.approx(46 - 45)
    assert answer.at_equal_crossing(one, other, -1) == pytest.approx(45 - 44)


def test_what_was_looked_at_afterwards_counts_all_sets() -> None:
    """Both halves of the data sets count for the losses, those for reporting for the rest."""
    sets = ("rooms", "pacs/photo", "pacs/sketch", "food", "sports", "dtd10")
    lines = [
        line(data, 1, variant, 40 + (place if variant == "both" else 0))
        for place, data in enumerate(sets)
        for variant in ("both", "neither")
    ]
    found = answer.tables(lines)
    [row] = found["afterwards: losses, 4 shots"].splitlines()[2:]
    assert row.startswith("| 4 | both - neither | 5 | +0.0 | +2.7 (0.2 to 5.2) |")
    [row] = found["afterwards: novel at equal base"].splitlines()[2:]
    assert row.split(" | ")[2] == "4"


def test_what_a_table_shows_is_corrected_for_all_tables() -> None:
    """Differences of 6 to 10 points are shown by themselves, and less clearly among the tables of
    two figures."""
    sets = ("food", "sports", "dtd10", "grocery", "chess_pieces")
    lines = [
        line(data, 1, variant, 40 + (6 + place) * (variant == "both"))
        for place, data in enumerate(sets)
        for variant in ("both", "neither")
    ]
    rows = [row.split(" | ") for row in
            answer.tables(lines)["afterwards: corrected together"].splitlines()[2:]]  # fmt: skip
    assert [row[1:3] for row in rows] == [["novel", "both - neither"],
                                          ["novel at equal base", "both - neither"]]  # fmt: skip
    for row in rows:
        assert float(row[-1].removesuffix(" |")) == pytest.approx(2 * float(row[-2]), abs=2e-3)


def test_classes_are_reordered_with_their_images() -> None:
    orders = {answer.permuted(IMAGES, draw).classes for draw in range(20)}
    assert len(orders) > 5
    for draw in range(3):
        found = answer.permuted(IMAGES, draw)
        names = [found.classes[label] for label in found.labels]
        assert names == [IMAGES.classes[label] for label in IMAGES.labels]
        assert found.classes == answer.permuted(IMAGES, draw).classes


def test_standard_errors_above_chance() -> None:
    assert answer.above_chance(60, 100, 2) == pytest.approx(2)
    assert answer.above_chance(25, 48, 4) == 0


def line(data: str, draw: int, variant: str, novel: float, **more: Any) -> dict[str, Any]:
    frontier = [[50.0, 60.0, 50.0]] * 10 + [[80.0, novel, 60.0]]
    figures = {"confused": [1.0, 2.0], "auroc": 50.0, "frontier": frontier}
    figures["chance"] = [25.0, 20.0, 10.0]
    return {
        "data": data,
        "draw": draw,
        "variant": variant,
        "shots": 4,
        "base": 0,
        **figures,
        **more,
    }


def test_domains_and_draws_of_one_set_count_once() -> None:
    sets = ("pacs/photo", "pacs/sketch", "food", "sports", "dtd10")
    gains = {"pacs/photo": 4.0, "pacs/sketch": 8.0, "food": 5.0, "sports": 7.0, "dtd10": 6.0}
    lines = [
        line(data, draw, variant, 40 + (gains[data] if variant == "constraint" else 0))
        for data in sets
        for draw in (1, 2)
        for variant in ("constraint", "neither")
    ]
    found = answer.tables(lines)
    row = found["reporting: 4 shots, novel"].splitlines()[-1]
    assert row.startswith("| constraint - neither | +6.0 |")
    assert row.split(" | ")[3] == "4"
    assert "| +0.0 | – | 4 | – | not shown |" in found["reporting: 4 shots, base"]
    assert "| neither | 80.0 | 40.0 | 60.0 | 1.0 | 2.0 | 50.0 |" in found["reporting: 4 shots"]
    assert "| chance | 25.0 | 20.0 | 10.0 | – | – | 50.0 |" in found["reporting: 4 shots"]
    assert "choosing: 4 shots" not in found


def test_fewer_base_classes_leave_the_others_out_of_both_parts() -> None:
    lab = Lab(keep=True, progress=False)
    many = ImageSet.from_lists([IMAGES.images[0]] * 16, [f"class {i % 8}" for i in range(16)])
    lab.add("plain", {"train": many, "test": many})
    whole = lab.splits(answer.drawn(lab, "plain", 3))["test"].classes
    few = lab.splits(answer.drawn(lab, "plain", 3, base=2))
    assert few["train"].classes == whole[:2]
    assert few["test"].classes == (*whole[:2], *whole[4:])
    assert (len(few["train"]), len(few["test"])) == (4, 12)
    names = [few["test"].classes[label] for label in few["test"].labels]
    assert names == [c for c in (many.classes[i] for i in many.labels) if c not in whole[2:4]]


def test_a_trial_asks_about_all_classes_at_once(tiny_clip: Backbone) -> None:
    lab, name = Lab(keep=True, progress=False), tiny_clip.name
    lab.add_backbone(tiny_clip)
    lab.add("plain", {"train": IMAGES, "test": IMAGES})
    found = answer.trial(lab, "plain", 1, 2, "ridge", name)
    assert len(found["trained"]) == 2
    assert found["images"] == 8
    untouched = answer.trial(lab, "plain", 1, 2, "zero-shot", name)
    assert found["frontier"][0] == untouched["frontier"][0] == untouched["frontier"][-1]
    asked = answer.unit(lab, "plain", 2, name)
    assert [asked["base"], asked["novel"]] == found["frontier"][0][:2]
    assert asked["keeps"] == (asked["novel_errors"] >= answer.ERRORS)


def test_random_settings_are_those_of_their_number() -> None:
    pytest.importorskip("optuna", reason="random settings need the extra 'tune'")
    method, settings, _ = answer.described("mma #3")
    assert method == "mma"
    assert settings == answer.described("mma #3")[1] != answer.described("mma #4")[1]
    without = answer.described("neither #3")[1]
    assert {name: without[name] for name in answer.NO_REC} == answer.NO_REC
    with pytest.raises(ValueError, match="other"):
        answer.known("other #3")


def test_a_mix_is_compared_with_the_model_itself() -> None:
    lines = [line(data, 1, "plus", 50) for data in ("sports", "food", "dtd10")]
    [row] = answer.mixed(lines)
    assert row[:2] == ["plus, mixed", "-10.0"]  # 50 in the middle of the frontier, 60 at its end
