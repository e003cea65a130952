"""Check that the paper has the parts that JOSS requires, cites what its bibliography holds, and
names no result that does not stand on the page beside it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rmadapter.methods import METHODS

ROOT = Path(__file__).parents[2]
PARTS = [
    *("Summary", "Statement of need", "State of the field", "Software design", "Evidence"),
    *("AI usage disclosure", "Acknowledgements", "References"),
]
NUMBER = re.compile(r"(?<![\w.,+-])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?(?!\w|[.,]\d)")


def paper() -> tuple[dict[str, object], str]:
    """Return the metadata and the text."""
    _, head, body = (ROOT / "paper/paper.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert isinstance(metadata, dict)
    return metadata, body


def results() -> list[tuple[str, str]]:
    """Return each result of the evidence, and the page that it cites."""
    section = paper()[1].split("# Evidence\n")[1].split("\n# ")[0]
    points = re.findall(r"^- (.*?)(?=^- |^\n)", section + "\n\n", re.M | re.S)
    found = [re.fullmatch(r"(.+)See\s+`(docs/[\w/]+\.md)`\.\s*", point, re.S) for point in points]
    assert all(found)
    return [(match[1], match[2]) for match in found if match]


def test_the_paper_has_the_parts_of_the_journal_in_at_most_1000_words() -> None:
    metadata, body = paper()
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= {*metadata}
    assert re.findall(r"^# (.+)$", body, re.M) == PARTS
    assert len(body.split()) <= 1000


def test_citations_are_those_of_the_bibliography() -> None:
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "paper/paper.bib").read_text("utf-8"), re.M)
    assert len({*keys}) == len(keys)
    assert {*re.findall(r"@(\w+)", paper()[1])} == {*keys}


def test_each_figure_stands_on_the_page_that_it_cites() -> None:
    found = results()
    assert len(found) > 5
    for text, name in found:
        page = {*NUMBER.findall((ROOT / name).read_text(encoding="utf-8"))}
        figures = NUMBER.findall(text)
        assert figures, text
        for figure in figures:
            assert figure in page, f"{figure} does not stand in {name}"


def test_the_summary_counts_the_methods() -> None:
    assert f"It has {len(METHODS)} methods" in paper()[1]
