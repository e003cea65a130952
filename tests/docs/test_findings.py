"""The figures of the documents' tables are those of the records in research/results."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import pytest

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.groups import label
from rmadapter.bench.report.read import read_records
from rmadapter.bench.report.stats import Paired, correct, paired
from rmadapter.metrics import harmonic_mean

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "docs/studies/findings.md"
RECORDS = ROOT / "research/results/findings.md"
MUST = (FINDINGS, RECORDS)  # pages that must have such a table
PAGES = [
    ROOT / "README.md",
    *sorted(page for folder in ("docs", "research") for page in (ROOT / folder).glob("*/*.md")),
]
SHOTS = r"(\d+) shots?, (\w+)"  # and the study
SETS = ("dtd10", "neu_steel", "pacs/photo", "sign_digits")  # for reporting
EVERY = (*SETS, "caltech101", "grocery", "rsscn7", "trashnet", "office_caltech/web")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


class Table(NamedTuple):
    match: re.Match[str]  # of the first head
    heads: list[str]  # the others
    rows: list[list[str]]


def tables(page: Path, head: str) -> list[Table]:
    """Return the tables of a page whose first head matches."""
    blocks = re.findall(r"^\|(.+)\|\n\|[-|: ]+\n((?:\|.*\n)+)", page.read_text("utf-8"), re.M)
    found = []
    for first, body in blocks:
        heads, *rows = (
            [cell.strip(" *") for cell in line.strip("|").split("|")]
            for line in (first, *body.splitlines())
        )
        match = re.fullmatch(head, heads[0])
        if match:
            found.append(Table(match, heads[1:], rows))
    return found


@cache
def records(study: str) -> list[Record]:
    return read_records(ROOT / f"research/results/{study}/records.jsonl").finished


def mean(some: list[Record], metric: str, runs: int = 3) -> float | None:
    """Average a metric over as many runs as there must be."""
    assert len(some) == runs
    values = [value for record in some if (value := record.metric(metric)) is not None]
    return fmean(values) if len(values) == runs else None


def written(values: Collection[float | None]) -> str:
    return " / ".join("–" if value is None else f"{value:.1f}" for value in values)


def base_to_novel(shots: str, study: str) -> list[Record]:
    wanted = ("base-to-novel", int(shots), "fp32")
    return [r for r in records(study) if (r.protocol, r.task.shots, r.precision) == wanted]


def measured(shots: str, study: str, sets: Collection[str]) -> dict[tuple[str, str], str]:
    """Return cells by data set and method: means over seeds, median training time. sets: empty for
    all."""
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in base_to_novel(shots, study):
        if not sets or record.task.data in sets:
            runs.setdefault((record.task.data, record.method.name), []).append(record)
    means = {
        key: [mean(some, metric) for metric in ("base", "novel", "hm")]
        for key, some in runs.items()
    }
    cells = {key: written(values) for key, values in means.items()}
    for method in {method for _, method in runs}:
        columns = zip(*(means[key] for key in means if key[1] == method), strict=True)
        average = [None if None in column else fmean(column) for column in columns]  # type: ignore[type-var]
        cells["average", method] = written(average)
        seconds = [r.seconds["train"] for key in runs if key[1] == method for r in runs[key]]
        cells["training, s (median)", method] = f"{median(seconds):.1f}"
    return cells | chance(runs)


def chance(runs: Mapping[tuple[str, str], Sequence[Record]]) -> dict[tuple[str, str], str]:
    """Return the cells of guessing among the classes of each half."""
    guesses = {}
    for (data, _), (first, *_) in runs.items():
        base, novel = (100 / score.classes for score in first.scores[:2])
        guesses[data] = [base, novel, harmonic_mean(base, novel)]
    average = [fmean(column) for column in zip(*guesses.values(), strict=True)]
    cells = {(data, "chance"): written(values) for data, values in guesses.items()}
    return {
        **cells,
        ("average", "chance"): written(average),
        ("training, s (median)", "chance"): "–",
    }


@each_page
def test_figures_of_the_tables_are_those_of_the_records(page: Path) -> None:
    """Data sets as rows and methods as columns, or the other way."""
    shown = tables(page, SHOTS)
    assert shown or page not in MUST
    for match, heads, rows in shown:
        sets = {*heads, *(name for name, *_ in rows)} & {*EVERY}
        cells = measured(match[1], match[2], sets)
        for name, *values in rows:
            for column, value in zip(heads, values, strict=True):
                key = (name.strip("`").lower(), column.lower())
                found = cells.get(key, cells.get(key[::-1], ""))
                assert value.replace(" ", "") == found.replace(" ", ""), f"{name}, {column}"


@each_page
def test_differences_are_those_of_the_records(page: Path) -> None:
    """Verdicts are corrected for the rows of a table with the same metric."""
    shown = tables(page, f"difference at {SHOTS}")
    assert shown or page not in (FINDINGS, RECORDS)
    for match, _, rows in shown:
        check_differences(base_to_novel(match[1], match[2]), rows)


def check_differences(some: list[Record], rows: list[list[str]]) -> None:
    """Check rows called METHOD - METHOD, METRIC, where a method is its label or its name."""
    metrics, pairs = {}, {}
    for name, *_ in rows:
        one, other, metrics[name] = re.fullmatch(r"(.+) - (.+), (\w+)", name).groups()  # type: ignore[union-attr]
        of = [[r for r in some if method in (r.method.name, label(r))] for method in (one, other)]
        pairs[name] = paired(*of, metrics[name])
    for metric in {*metrics.values()}:
        tested = {name: pair for name, pair in pairs.items() if pair and metrics[name] == metric}
        pairs |= correct(tested)
    for name, *cells in rows:
        d = pairs[name]
        assert d
        assert cells == shown_difference(d), name


def shown_difference(d: Paired) -> list[str]:
    """Write the cells of a difference."""
    interval = "–" if d.low is None else f"{d.low:.2f} to {d.high:.2f}"
    p = "–" if d.t is None else f"{d.t:.3f}"
    return [f"{d.difference:+.2f}", interval, str(d.sets), p, d.conclusion]


@each_page
def test_figures_of_other_protocols_are_those_of_the_records(page: Path) -> None:
    """Rows are names of methods; columns are metrics, or numbers of shots, of which "all" is the
    mean over data sets. Each target counts as a data set."""
    head = r"`([\w-]+)` (?:on|from) (\S+)"
    shown, tested = tables(page, head), tables(page, f"difference of {head}")
    assert (len(shown), len(tested)) == ((4, 4) if page == RECORDS else (0, 0))
    for match, heads, rows in shown:
        some = transferred(match[1], match[2])
        for name, *cells in rows:
            own = [r for r in some if r.method.name == name.strip("`")]
            for column, cell in zip(heads, cells, strict=True):
                value = transferred_mean(own, column, match[1], len({r.task.data for r in some}))
                assert cell == written([value]), f"{match[0]}, {name}, {column}"
    for match, _, rows in tested:
        check_differences(transferred(match[1], match[2]), rows)


def transferred(protocol: str, sources: str) -> list[Record]:
    """Return the records of a table: of data sets, and with @ and a number of so many shots."""
    data, _, shots = sources.partition("@")
    some = [
        r for r in records("transfer") if r.protocol == protocol and r.task.data in data.split(",")
    ]
    return [r for r in some if not shots or r.task.shots == int(shots)]


def transferred_mean(some: list[Record], column: str, protocol: str, sets: int) -> float | None:
    if not column.isdigit():
        runs = 1 if protocol == "cross-dataset" else 3
        return mean(some, column, runs) if some else None
    some = [record for record in some if record.task.shots == int(column)]
    return mean(some, "all", sets) if some else None


def test_the_table_of_photographs_has_the_classes_of_the_runs_and_the_halves() -> None:
    [(_, _, rows)] = tables(ROOT / "docs/studies/photographs.md", "set")
    classes = {name: int(cells[1]) for name, *cells in rows}
    runs = base_to_novel("16", "methods") + base_to_novel("4", "methods")
    tested = {run.task.data: sum(score.classes for score in run.scores[:2]) for run in runs}
    assert classes == tested
    reporting = {name for name, *cells in rows if cells[-1] == "reporting"}
    choosing = {name for name, *cells in rows if cells[-1] == "choosing"}
    assert (reporting, choosing) == ({*SETS}, {*EVERY} - {*SETS, "grocery"})
