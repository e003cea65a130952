"""mechanism_tables.py: tables of lines whose figures are known."""

from __future__ import annotations

from typing import Any

import answer
import mechanism_tables
import pytest

SETS = ("food", "sports", "dtd10")


def line(data: str, variant: str, base: float, novel: float, **more: Any) -> dict[str, Any]:
    frontier = [[50.0, 60.0, 50.0]] * 10 + [[base, novel, 60.0]]
    facts = {"data": data, "draw": 1, "variant": variant, "shots": 4, "base": 0}
    facts |= {"images": 200, "confused": [1.0, 1.0]}
    return facts | {"frontier": frontier} | more


def test_prepared_adapters_are_compared_with_those_alone() -> None:
    names = ("neither", *answer.MECHANISM)
    lines = [
        line(data, name, 80, 40 + i + j, shots=16, **({"explained": 0.1 * i} if j else {}))
        for i, data in enumerate(SETS)
        for j, name in enumerate(names)
    ]
    lines.append(line("euro_coins", "branch first", 80, 99, shots=16, explained=0.9))  # no rivals
    found = mechanism_tables.prepared(lines)
    assert found["R3"].splitlines()[0].startswith("| 3 sets, in % |")
    assert "| neither | – | 80.0 | 41.0 | 60.0 |" in found["R3"]
    assert "| branch first | 10.0 (0.0 to 20.0) | 80.0 | 44.0 | 60.0 |" in found["R3"]
    *draws, test = found["R3, novel by draw"].splitlines()[2:]
    assert draws[0] == "| dtd10, draw 1 | +1.0 | +2.0 | +3.0 | +4.0 |"
    shares = [(0.40, 0.41), (0.41, 0.42), (0.42, 0.43)]
    squares = [0.01**2 * 100 / (a * (1 - a) + b * (1 - b)) for a, b in shares]
    assert f"| {sum(squares):.1f} (p 1) |" in test
    rows = found["R3, novel"].splitlines()[2:]
    assert len(rows) == len(answer.MECHANISM)
    assert rows[0].startswith("| as usual - neither | +1.0 |")


def test_the_number_of_novel_images_makes_all_shares_whole() -> None:
    """A third of novel images and a seventh of the others: of 24 images, 3 and 21."""
    frontier = [[100 / 7, 33.3333, 0.0], [28.5714, 66.6667, 50.0]]
    facts = {"data": "food", "frontier": frontier, "confused": [14.2857, 0.0], "images": 24}
    assert mechanism_tables.novel_images(facts | {"confused": [4.7619, 0.0]}) == 3
    with pytest.raises(ValueError, match="food"):
        mechanism_tables.novel_images(facts | {"images": 9})


def test_a_row_for_each_number_of_classes_and_loss() -> None:
    lines = [
        line("caltech101", name, 80, 40 + place) | {"base": base}
        for base in (10, 25)
        for place, name in enumerate(mechanism_tables.LOSSES)
    ]
    rows = mechanism_tables.classes(lines)["R4"].splitlines()[2:]
    assert rows[0] == "| 10 | neither | 80.0 | 40.0 | 60.0 | 53.3 | – |"
    assert rows[-1] == "| 25 | both | 80.0 | 43.0 | 60.0 | 55.9 | +3.0 |"


def test_the_best_settings_are_those_of_the_choosing_sets() -> None:
    """HM of 80 and 40 is 53.3, of 80 and 80 is 80. Draws that the trials lack do not count."""
    lines = [
        line("weather", name, 80, 40) | {"draw": 2, "frontier": [[9, 9, 9]] * 11}
        for name in answer.TUNED
    ]
    for name in answer.TUNED:
        fixed = answer.VARIANTS[name][1]
        for variant, novel in ((name, 40.0), (f"{name} #1", 10.0), (f"{name} #2", 80.0)):
            settings = {"settings": {**fixed, "alpha": 0.25}}
            lines += [line(data, variant, 80, novel, **settings) for data in ("weather", "clouds")]
        # what is for reporting does not choose
        lines += [line(data, f"{name} #1", 80, 100) for data in SETS]
        lines += [line(data, f"{name} #2", 80, 50 + i) for i, data in enumerate(SETS)]
        lines += [line(data, name, 80, 40) for data in SETS]
    found = mechanism_tables.tuned(lines)
    [row] = [row for row in found["R6, choosing"].splitlines() if row.startswith("| mma |")]
    assert row.startswith("| mma | 53.3 | mma #2 | 80.0 |")
    assert "mma #2 - mma | +11.0 |" in found["R6, novel"]
    assert "#1" not in "".join(found.values())
    assert row.endswith("| alpha=0.25 |")


def test_a_reading_is_compared_on_the_draws_that_all_variants_have() -> None:
    names = dict.fromkeys(name for pair in answer.ADAPTED for name in pair)
    lines = [
        line(data, name, 80, 40 + (i + 1) * ("adapted" in name), auroc=50.0, chance=[50, 50, 25])
        for i, data in enumerate(SETS)
        for name in names
    ]
    lines += [line("euro_coins", name, 80, 99, auroc=50.0, chance=[50, 50, 25]) for name in (
        "neither", "both, adapted")]  # fmt: skip
    found = mechanism_tables.adapted(lines)
    assert found["R7, reporting, 4 shots"].splitlines()[0].startswith("| 3 sets, in % |")
    rows = found["R7, reporting, 4 shots, novel"].splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        f"{one} - {other}" for one, other in answer.ADAPTED
    ]
    assert all(" | +2.0 | " in row for row in rows)
    assert "R7, reporting, 16 shots" not in found
