"""The figures of the documents' tables are those of the records in docs/results."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.groups import label
from rmadapter.bench.report.read import read_records
from rmadapter.bench.report.stats import correct, paired

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "docs/studies/findings.md"
MUST = (ROOT / "README.md", FINDINGS)  # where there must be such a table
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/studies").glob("*.md")]
PAGES = [ROOT / "README.md", *sorted(PAGES)]
SHOTS = r"(\d+) shots?, (\w+)"  # and the study
SETS = (
    "dtd10",
    "neu_steel",
    "pacs/photo",
    "sign_digits",
)  # of the many methods; nothing was chosen on them
EVERY = (*SETS, "caltech101", "grocery", "rsscn7", "trashnet", "office_caltech/web")
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES]
)


def records(study: str) -> list[Record]:
    return read_records(ROOT / f"docs/results/{study}/records.jsonl").finished


def tables(page: Path, head: str) -> list[tuple[Any, list[str], list[list[str]]]]:
    """(groups of the first head, other heads, rows) of the tables whose first head matches."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^\|(.+)\|\n\|[-|: ]+\n((?:\|.*\n)+)", text, re.M)
    cut = [
        ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in (h, *b.splitlines()))
        for h, b in found
    ]
    every = [(next(lines), list(lines)) for lines in cut]
    return [
        (match, heads[1:], rows) for heads, rows in every if (match := re.fullmatch(head, heads[0]))
    ]


def mean(some: list[Record], metric: str, seeds: int = 3) -> float | None:
    """Over the seeds."""
    values = [record.metric(metric) for record in some]
    assert len(values) == seeds
    return None if None in values else fmean(values)  # type: ignore[type-var]


def base_to_novel(shots: str, study: str) -> list[Record]:
    wanted = ("base-to-novel", int(shots), "fp32")
    return [r for r in records(study) if (r.protocol, r.task.shots, r.precision) == wanted]


def measured(*which: str, sets: Collection[str] = ()) -> dict[tuple[str, str], str]:
    """Cells of the tables by data set and method: means over seeds, median training time. sets:
    empty for all."""
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in (r for r in base_to_novel(*which) if not sets or r.task.data in sets):
        runs.setdefault((record.task.data, record.method.name), []).append(record)
    means = {
        key: [mean(found, name) for name in ("base", "novel", "hm")] for key, found in runs.items()
    }
    cells = {}
    for method in {method for _, method in runs}:
        own = [values for (_, name), values in means.items() if name == method]
        means["average", method] = [None if None in c else fmean(c) for c in zip(*own, strict=True)]  # type: ignore[type-var]
        seconds = [
            run.seconds["train"]
            for (_, name), found in runs.items()
            if name == method
            for run in found
        ]
        cells["training, s", method] = f"{median(seconds):.1f}"
    return cells | {
        key: " / ".join("–" if v is None else f"{v:.1f}" for v in values)
        for key, values in means.items()
    }


@each_page
def test_figures_of_the_tables_are_those_of_the_records(page: Path) -> None:
    """Data sets as rows and methods as columns, or the other way."""
    found = tables(page, SHOTS)
    assert found or page not in MUST
    for match, heads, rows in found:
        cells = measured(*match.groups(), sets={*heads, *(name for name, *_ in rows)} & {*EVERY})
        for name, *values in rows:
            for column, value in zip(heads, values, strict=True):
                key = (name.strip("`").lower(), column.lower())
                assert value == cells.get(key, cells.get(key[::-1])), f"{name}, {column}"


@each_page
def test_differences_are_those_of_the_records(page: Path) -> None:
    """Verdicts are corrected for the rows of a table with the same metric."""
    found = tables(page, f"difference at {SHOTS}")
    assert found or page != FINDINGS
    for match, _, rows in found:
        check_differences(base_to_novel(*match.groups()), rows)


def check_differences(some: list[Record], rows: list[list[str]]) -> None:
    """Rows called METHOD - METHOD, METRIC, where a method is its label or its name."""
    asked = {name: re.fullmatch(r"(.+) - (.+), (\w+)", name).groups() for name, *_ in rows}  # type: ignore[union-attr]
    pairs = {
        name: paired(
            *([r for r in some if method in (r.method.name, label(r))] for method in methods),
            metric,
        )
        for name, (*methods, metric) in asked.items()
    }
    for metric in {metric for *_, metric in asked.values()}:
        pairs |= correct(
            {name: pair for name, pair in pairs.items() if pair and asked[name][2] == metric}
        )
    for name, *cells in rows:
        d = pairs[name]
        assert d
        interval, p = f"{d.low:.2f} to {d.high:.2f}", "–" if d.t is None else f"{d.t:.3f}"
        assert cells == [f"{d.difference:+.2f}", interval, str(d.sets), p, d.verdict], name


@each_page
def test_figures_of_other_protocols_are_those_of_the_records(page: Path) -> None:
    """Rows are names of methods; columns are metrics, or numbers of shots, of which "all" is the
    mean over data sets. Each target counts as a data set."""
    found, tested = (
        tables(page, rf"{start}`([\w-]+)` (?:on|from) (\S+)") for start in ("", "difference of ")
    )
    assert (len(found), len(tested)) == ((4, 4) if page == FINDINGS else (0, 0))
    for match, heads, rows in found:
        some = transferred(*match.groups())
        for name, *cells in rows:
            for head, cell in zip(heads, cells, strict=True):
                own = [r for r in some if r.method.name == name.strip("`")]
                own = [r for r in own if not head.isdigit() or r.task.shots == int(head)]
                count = (
                    len({r.task.data for r in some})
                    if head.isdigit()
                    else 1
                    if match[1] == "cross-dataset"
                    else 3
                )
                value = mean(own, "all" if head.isdigit() else head, count) if own else None
                assert cell == ("–" if value is None else f"{value:.1f}"), (
                    f"{match[0]}, {name}, {head}"
                )
    for match, _, rows in tested:
        check_differences(transferred(*match.groups()), rows)


def transferred(protocol: str, sources: str) -> list[Record]:
    """Records by the head of a table: of data sets, and with @ and a number of so many shots."""
    data, _, shots = sources.partition("@")
    some = [
        r for r in records("transfer") if r.protocol == protocol and r.task.data in data.split(",")
    ]
    return [r for r in some if not shots or r.task.shots == int(shots)]


def test_the_photographs_are_described() -> None:
    text = (ROOT / "docs/studies/photographs.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    classes = {name: int(cells[1]) for name, *cells in rows[1:]}
    runs = base_to_novel("16", "methods") + base_to_novel("4", "methods")
    assert classes == {
        run.task.data: sum(score.classes for score in run.scores[:2]) for run in runs
    }
    of = {
        part: {name for name, *cells in rows[1:] if cells[-1] == part}
        for part in ("choosing", "reporting")
    }
    assert of["reporting"] == {*SETS}
    assert of["choosing"] == {*EVERY} - {*SETS, "grocery"}
