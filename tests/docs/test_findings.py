"""The figures of the documents' tables are those of the records in docs/results."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest

from rmadapter.artifacts.record import Record
from rmadapter.bench.report.groups import common_targets, group_records, label, rows_of
from rmadapter.bench.report.read import read_records
from rmadapter.bench.report.stats import correct, half_width, paired
from rmadapter.bench.report.tables import columns_of, differences, rankings

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


def test_where_2sfs_is_above_zero_shot() -> None:
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    runs = [record for record in base_to_novel("4", "methods") if record.method.name == "2sfs"]
    gains: dict[str, dict[str, list[float]]] = {"base": {}, "novel": {}}
    for record in runs:
        for score in record.scores:
            assert score.accuracy is not None
            assert score.zero_shot is not None
            gains[score.name].setdefault(record.task.data, []).append(
                score.accuracy - score.zero_shot
            )
    ahead = {
        name: sum(fmean(each) > 0 for each in of_sets.values()) for name, of_sets in gains.items()
    }
    assert (ahead, len(gains["base"])) == ({"base": 7, "novel": 4}, 7)
    assert "above zero-shot's on each of the seven data sets, its novel accuracy on four" in text
    minutes = [round(record.seconds["total"] / 60) for record in runs]
    assert (
        f"A run took {min(minutes)} to {max(minutes)} minutes of one core, beside other work"
        in text
    )


def test_what_is_said_of_promptkd() -> None:
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    gaps, minutes = {}, {}
    for shots in ("4", "16"):
        runs = [
            record
            for record in base_to_novel(shots, "methods")
            if record.method.name == "prompt-kd"
        ]
        below: dict[str, list[float]] = {}
        for record in runs:
            base = record.scores[0]
            below.setdefault(record.task.data, []).append(
                (base.zero_shot or 0) - (base.accuracy or 0)
            )
        assert {name: len(found) for name, found in below.items()} == dict.fromkeys(
            {*EVERY} & {*below}, 3
        )
        assert len(below) == 6
        gaps[shots] = [f"{fmean(below[data]):.0f}" for data in ("pacs/photo", "office_caltech/web")]
        minutes[shots] = [round(record.seconds["total"] / 60) for record in runs]
    few, many = (" and ".join(some) for some in gaps.values())
    assert (
        f"its base accuracy lies {few} points below zero-shot's with 4 shots, and {many} with 16"
        in text
    )
    few, many = (f"{min(some)} to {max(some)}" for some in minutes.values())
    assert f"A run took {few} minutes of one core with 4 shots and {many} with 16" in text


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


def test_what_is_said_of_other_domains_and_data_sets() -> None:
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    every = records("transfer")

    def of(protocol: str, source: str, target: str, *methods: str) -> list[float]:
        some = [r for r in every if (r.protocol, r.task.data) == (protocol, source)]
        seeds = 1 if protocol == "cross-dataset" else 3
        return [mean([r for r in some if r.method.name == m], target, seeds) or 0 for m in methods]

    names = ("mma-adamw", "rmadapter-plain", "rmadapter", "zero-shot")
    *three, zero = of("domain-generalization", "pacs/photo", "pacs/sketch", *names)
    fell = [zero - value for value in three]
    assert f"falls {fell[0]:.0f} points below zero-shot, the adapters alone {fell[1]:.0f};" in text
    assert f"lies {-fell[2]:.0f} above" in text
    plain, ours = of(
        "domain-generalization", "office_caltech/web", "average", "rmadapter-plain", "rmadapter"
    )
    assert f"the adapters alone are {plain - ours:.0f} points above RMAdapter" in text
    methods = {r.method.name for r in every if r.protocol == "domain-generalization"}
    best = {m: of("domain-generalization", "pacs/photo", "average", m) for m in methods}
    assert max(best, key=best.__getitem__) == "tip-adapter-f"
    tip, plus = of(
        "domain-generalization", "office_caltech/web", "average", "tip-adapter-f", "rmadapter-plus"
    )
    assert f"is {plus - tip:.0f} points below RMAdapter+" in text
    both = [
        [r for r in every if (r.protocol, r.method.name) == ("cross-dataset", m)]
        for m in ("rmadapter", "zero-shot")
    ]
    found = paired(*both, "average")
    assert found
    assert f"within a point on average ({found.low:.1f} to {found.high:+.1f})" in text
    others = [
        of("cross-dataset", "caltech101", name, "rmadapter", "zero-shot")
        for name in ("dtd10", *SETS[1::2])
    ]
    apart = np.array([ours - zero for ours, zero in others])
    half, middle = half_width(apart), apart.mean()
    assert half
    words = f"{middle:+.1f} ({middle - half:.1f} to {middle + half:+.1f})"
    assert f"over the other three targets the difference from zero-shot is {words}" in text
    ours, zero = of("cross-dataset", "caltech101", "all", "rmadapter", "zero-shot")
    assert f"with {ours - zero:.0f} points more on its source" in text


def test_what_is_said_of_the_sets_that_chose_nothing() -> None:
    some = [r for r in base_to_novel("16", "photographs") if r.task.data in SETS]
    of = {
        name: [r for r in some if r.method.name == name]
        for name in ("rmadapter", "zero-shot", "mma")
    }
    found, every = {}, {}
    for metric in ("base", "hm"):
        pairs = {(a, b): paired(of[a], of[b], metric) for a, b in combinations(of, 2)}
        found[metric] = correct({key: pair for key, pair in pairs.items() if pair})[
            "rmadapter", "zero-shot"
        ]
        every[metric] = found[metric].verdict
    assert every == {"base": "not shown", "hm": "not shown"}
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    three = {name: [r for r in own if r.task.data != "pacs/photo"] for name, own in of.items()}
    without = paired(three["rmadapter"], three["zero-shot"], "hm")
    assert without
    words = f"{without.difference:.1f} points ({without.low:.1f} to {without.high:.1f}, three sets)"
    assert f"Without it RMAdapter's gain in HM over zero-shot is {words}" in text
    base, hm = found["base"], found["hm"]
    assert (
        f"{base.difference:.1f} points more base accuracy than zero-shot ({base.low:.1f} to {base.high:.1f})"
        in text
    )
    assert f"and {hm.difference:.1f} more HM ({hm.low:.1f} to {hm.high:.1f})" in text
    many = [r for r in base_to_novel("16", "methods") if r.task.data in SETS]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"gains {hm.difference:.1f} points of HM over zero-shot (95 % interval {hm.low:.1f} to {hm.high:.1f}"
        in readme
    )
    for other, words in (
        ("mma", "no difference from MMA ({})"),
        ("mma-adamw", "or mma-adamw ({}) is shown"),
    ):
        pair = paired(
            *([r for r in many if r.method.name == name] for name in ("rmadapter", other)), "hm"
        )
        assert pair
        assert pair.verdict == "not shown"
        assert words.format(f"{pair.difference:.1f}, {pair.low:.1f} to {pair.high:.1f}") in readme
    grocery = measured("16", "methods", sets=["grocery"])["grocery", "linear-probe"].split(" / ")[0]
    ours = measured("16", "photographs")["grocery", "rmadapter"].split(" / ")[0]
    assert f"A linear probe has {grocery} on grocery, where RMAdapter has [{ours}]" in text
    probe = paired(
        *([r for r in many if r.method.name == name] for name in ("linear-probe", "rmadapter")),
        "base",
    )
    assert probe
    assert (
        f"{probe.difference:.1f} points more base accuracy than RMAdapter on the four ({probe.low:.1f} to"
        in text
    )
    [group] = [group for group in group_records(many) if group.track == "ranked"]
    [column] = [column for column in columns_of(group) if column.metric == "base"]
    among = differences(rows_of(common_targets(group.records)), "RMAdapter", column)
    assert [name for name, pair in among.items() if pair.verdict != "not shown"] == []
    assert f"among all {len(among) + 1} ranked methods" in text
    assert f"among {len(among) + 1} methods it does not" in text


def test_what_is_said_of_curves() -> None:
    [(_, heads, rows)] = tables(FINDINGS, r"`few-shot` on (\S+)")
    assert len(rows) == 12
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    curves = {
        name.strip("`"): dict(zip(map(int, heads), cells, strict=True)) for name, *cells in rows
    }
    for shots in (1, 2, 4):
        best = max(curves, key=lambda name: float(curves[name][shots]))
        assert best == "rmadapter-plus"
    known = {name: float(curve[8]) for name, curve in curves.items() if curve[8] != "–"}
    assert known["rmadapter-plus"] == known["mma-adamw"] == max(known.values())
    behind = [
        float(curves["linear-probe"][n]) - float(curves["rmadapter"][n]) for n in (1, 2, 4, 8)
    ]
    assert f"lies {min(behind):.0f} to {max(behind):.0f} points below a linear probe" in text
    assert "on average, and no interval over the four sets excludes 0" in text
    for shots in (1, 2, 4, 8):
        some = [r for r in records("transfer") if (r.protocol, r.task.shots) == ("few-shot", shots)]
        own, probe = (
            [r for r in some if r.method.name == name] for name in ("rmadapter", "linear-probe")
        )
        pair = paired(own, probe, "all")
        assert pair
        assert pair.low is not None
        assert pair.high is not None
        assert pair.low < 0 < pair.high
    apart = [
        float(curves["linear-probe"][n]) - float(curves["rmadapter-plain"][n]) for n in (1, 2, 4)
    ]
    assert max(map(abs, apart)) < 4
    for _, _, tested in tables(FINDINGS, r"difference of `few-shot` on (\S+)"):
        assert [cells[-1] for cells in tested] == ["not shown"] * 5


def test_what_is_said_of_many_methods() -> None:
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    found, verdicts = {}, {}
    for shots, sets in ((4, SETS), (16, SETS), (4, None)):
        some = [
            r for r in base_to_novel(str(shots), "methods") if sets is None or r.task.data in sets
        ]
        [group] = [group for group in group_records(some) if group.track == "ranked"]
        (found[shots, sets],) = (
            ranks for column, ranks in rankings(group).items() if column.metric == "hm"
        )
        rows = rows_of(common_targets(group.records))
        pairs = {
            (c.metric, k): d
            for c in columns_of(group)
            for k, d in differences(rows, "RMAdapter", c).items()
        }
        verdicts[shots, sets] = {
            key: pair for key, pair in pairs.items() if pair.verdict != "not shown"
        }
    [(which, tcp)] = verdicts[4, SETS].items()
    assert which == ("novel", "TCP")
    assert f"by {tcp.difference:.1f} points ({tcp.low:.1f} to {tcp.high:.1f})" in text
    behind = verdicts[4, None]
    order = [("base", name) for name in ("RMAdapter+", "both linear probes", "2SFS")]
    assert behind.keys() == {*order}
    assert (
        "by {:.0f}, {:.0f} and {:.0f} points".format(*(-behind[key].difference for key in order))
        in text
    )
    four, sixteen, ranks = found[4, SETS], found[16, SETS], found[4, None]
    assert four.labels[:2] == ("MMRL", "RMAdapter+")
    assert sixteen.labels[:2] == ("MMRL", "RMAdapter's adapters alone")
    said = f"of the {len(four.labels)} methods that can name new classes, with 4 shots ({four.mean[0]:.1f}) and with 16"
    assert f"{said} ({sixteen.mean[0]:.1f}, of {len(sixteen.labels)})" in text
    assert f"is second with 4 shots ({four.mean[1]:.1f})" in text
    cells = measured("4", "methods")
    base = {key: float(cells[key].split(" / ")[0]) for key in cells if key[0] in SETS}
    assert all(base[data, "linear-probe"] > base[data, "rmadapter"] for data in SETS)
    methods = {name for _, name in base}
    means = {
        name: fmean(base[data, name] for data in SETS) for name in methods - {"tda", "prompt-kd"}
    }
    assert max(means, key=means.__getitem__) == "rmadapter-plus"
    assert (
        abs(means["text-refiner"] - means["zero-shot"])
        < 2
        > abs(means["clip-adapter"] - means["zero-shot"])
    )
    four_sets = [table for table in tables(FINDINGS, SHOTS) if {*SETS} <= {*table[1]}]
    [(_, _, rows)] = [table for table in four_sets if table[0].groups() == ("4", "methods")]
    assert {name.strip("`") for name, *_ in rows} == means.keys()
    assert f"{len(means)} methods with 4 shots" in text
    assert "Over the seven data sets" in text
    assert ranks.labels[:2] == ("RMAdapter+", "2SFS")
    assert f"2SFS is second ({ranks.mean[1]:.1f})" in text
    assert f"RMAdapter+ has the best mean rank ({ranks.mean[0]:.1f})" in text


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
