"""studies.py and forest.py: tables find their place on several pages, and a figure has the
intervals of the tables."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from forest import interval
from studies import append_lines, read_lines, show, with_verdicts

PLACE = "before\n\n<!-- {} -->\n\nold\n\n<!-- end -->\n\nafter\n"


def test_each_table_goes_to_the_page_that_has_its_place(tmp_path: Path) -> None:
    study, records = tmp_path / "study.md", tmp_path / "records.md"
    study.write_text(PLACE.format("short"))
    records.write_text(PLACE.format("long") + PLACE.format("longer"))
    show({"longer": "| c |", "short": "| a |", "long": "| b |"}, study, records)
    assert study.read_text() == PLACE.format("short").replace("old", "| a |")
    expected = [PLACE.format(name).replace("old", cell) for name, cell in
                (("long", "| b |"), ("longer", "| c |"))]  # fmt: skip
    assert records.read_text() == "".join(expected)


def test_appended_lines_say_when_they_were_finished(tmp_path: Path) -> None:
    file, before = tmp_path / "lines.jsonl", datetime.now(timezone.utc).replace(microsecond=0)
    append_lines(file, [{"data": "food"}])
    append_lines(file, [{"data": "sports"}, {"data": "dtd10"}])
    lines = read_lines(file)
    assert [line["data"] for line in lines] == ["food", "sports", "dtd10"]
    for line in lines:
        assert before <= datetime.fromisoformat(line["finished"]) <= datetime.now(timezone.utc)


def test_a_table_without_a_place_changes_no_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PLACE.format("here"))
    with pytest.raises(ValueError, match="elsewhere"):
        show({"here": "| a |", "elsewhere": "| b |"}, page)
    assert page.read_text() == PLACE.format("here")


def test_the_interval_of_a_figure_is_that_of_the_table() -> None:
    draws = [[1.0, 2.0, 3.5], [0.5, 1.0, 4.0], [2.0, 2.5, 2.0], [-1.0, 0.0, 0.5]]
    points, ends, *_ = with_verdicts({"one - other": draws})["one - other"]
    mean, low, high = interval(draws)
    assert (f"{mean:+.2f}", f"{low:.2f} to {high:.2f}") == (points, ends)
    with pytest.raises(ValueError, match="three data sets"):
        interval(draws[:2])
