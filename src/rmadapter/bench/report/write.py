"""The report of a set of records: Markdown, CSV, JSON and one self-contained HTML page.

A title and three sentences sum up the records; they say no more than the test over data sets shows.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rmadapter.artifacts.record import Record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.bench.report.backbones import backbone_tables
from rmadapter.bench.report.figures import TRADE_OFF, Figure, make_figures
from rmadapter.bench.report.format import Table, minus, setting_text, to_csv, to_markdown
from rmadapter.bench.report.groups import (
    TRANSFER,
    Group,
    by_size,
    counted,
    describe_shots,
    experiment_of,
    group_records,
    label,
    machines,
    shots_of,
    total_seconds,
)
from rmadapter.bench.report.printed import Check, printed_tables
from rmadapter.bench.report.read import RECORDS, SUMMARY, Results, read_records
from rmadapter.bench.report.stats import LEVEL, MIN_SETS, Paired
from rmadapter.bench.report.tables import make_tables
from rmadapter.errors import UserError, did_you_mean
from rmadapter.methods.citation import bibtex
from rmadapter.support.files import write_text
from rmadapter.support.html import duration, template
from rmadapter.support.locks import exclusive
from rmadapter.task import SHARED_GROUPS

MAIN = "base-to-novel"  # the protocol to sum up if it was run
ACROSS = "Methods by backbones"  # title of the section that no single group has


@dataclass(frozen=True)
class Section:
    """A section of a report: all that it says about one group, or about several backbones."""

    title: str
    about: str
    tables: list[Table]
    figures: list[Figure]
    group: Group | None = None


def write_reports(
    results: Path, out: Path, backbones: bool = False, reference: str = ""
) -> dict[str, object]:
    """Read all records of `results`, a folder or a file of lines, and write to `out`: report.md,
    .html, .json, references.bib, tables/*.csv, figures/*.svg, and the records themselves,
    sorted, as records.jsonl. The same records give the same bytes.

    Args:
        results: Folder or file of lines.
        out: Folder of the report.
        backbones: Whether to add tables of methods by backbones.
        reference: Method or row that the others are compared with; "" for `Group.reference`'s own.

    Returns:
        What report.json holds.

    Raises:
        UserError: There is no record, none of the reference, or no experiment on several backbones
            that are wanted; pandas is missing, another process is at work in `out`, or it cannot be
            written to.
    """
    read = read_records(results)
    groups = [replace(group, named=reference) for group in group_records(read.finished)]
    if reference and not any(group.named_rows for group in groups):
        known = {name: None for group in groups for name in group.rows}
        raise UserError(
            f"--reference {reference}: not among the results{did_you_mean(reference, known)}; "
            f"there are {', '.join(known)}"
        )
    sections = [_section(group) for group in groups]
    if backbones:
        sections.append(_section_of_backbones(groups))
    sections = _number_names(sections)
    finding = summarise(groups)
    figures = [f for s in sections if s.group is finding.group for f in s.figures]
    checks = printed_tables().check(read.finished, printed_tables().tolerance)
    content: dict[str, object] = {
        "finding": finding,
        "runs": len(read.finished),
        "experiments": len(groups),
        "seconds": round(total_seconds(read.finished), 1),
        "sections": _with_each_note_once(sections),
        "scatter": next((figure for figure in figures if figure.name.endswith(TRADE_OFF)), None),
        "appendix": _appendix(read, checks),
    }
    summary = _summary(read, sections, finding, checks)
    files = {
        f"tables/{table.name}.csv": to_csv(table)
        for section in sections
        for table in section.tables
    }
    for section in sections:
        for figure in section.figures:  # there is no page behind it, so it has a background
            svg = figure.svg.replace("<svg", '<svg style="background:#fff"', 1)
            files[f"figures/{figure.name}.svg"] = svg
    records = sorted([*read.finished, *read.unfinished], key=experiment_of)
    markdown = template("bench.md.j2", escape=False, duration=duration, markdown=to_markdown)
    cited = {one.name: one for one in (record.method for record in records)}
    entries = [bibtex(name, one.title, one.source) for name, one in sorted(cited.items())]
    files |= {
        "references.bib": "\n".join(filter(None, entries)),
        "report.md": markdown.render(content),
        "report.html": template("bench.html.j2", duration=duration).render(content),
        RECORDS: "".join(record.line() for record in records),
        SUMMARY: json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
    }
    with exclusive(out):  # two at once would mix their files
        for name, text in files.items():
            write_text(out / name, text)
    return summary


def _section(group: Group) -> Section:
    settings = ", ".join(f"{name} {setting_text(value)}" for name, value in group.shared.items())
    text = PROTOCOLS[group.protocol].text
    if group.protocol == "few-shot":
        text = f"all classes, {_describe_span(group)}"
    about = f"{text[0].upper()}{text[1:]}. All runs share: {settings}."
    return Section(group.title, about, make_tables(group), make_figures(group), group)


def _describe_span(group: Group) -> str:
    """Describe the numbers of shots of a few-shot group, as "1 to 16 shots"."""
    shots = shots_of(group.records)
    if len(shots) < 3 or 0 in shots:
        return describe_shots(*shots)
    return f"{shots[0]} to {shots[-1]} shots"


def _section_of_backbones(groups: Sequence[Group]) -> Section:
    tables = backbone_tables(groups)
    if not tables:
        raise UserError(
            "--backbones: no two backbones were run with the same protocol, shots and settings; "
            "run `rmadapter bench` with each into a folder below RESULTS"
        )
    return Section(ACROSS, "", tables, [])


def _number_names(sections: Sequence[Section]) -> list[Section]:
    """Give every table and every figure a name of its own."""
    taken: Counter[tuple[type, str]] = Counter()

    def unique(one: Table | Figure) -> str:
        taken[type(one), one.name] += 1
        count = taken[type(one), one.name]
        return one.name if count == 1 else f"{one.name}-{count}"

    numbered = []
    for section in sections:
        tables = [replace(table, name=unique(table)) for table in section.tables]
        figures = [figure._replace(name=unique(figure)) for figure in section.figures]
        numbered.append(replace(section, tables=tables, figures=figures))
    return numbered


def _with_each_note_once(sections: Sequence[Section]) -> list[Section]:
    """Leave out footnotes that stand below an earlier table: one page says everything once."""
    seen: set[str] = set()
    shown = []
    for section in sections:
        tables = []
        for table in section.tables:
            new = tuple(note for note in table.footnotes if note not in seen)
            seen.update(new)
            tables.append(replace(table, footnotes=new))
        shown.append(replace(section, tables=tables))
    return shown


def _summary(
    read: Results, sections: Sequence[Section], finding: Finding, checks: Sequence[Check]
) -> dict[str, object]:
    """Return the content of report.json. Methods by backbones are in it if they were wanted."""
    summary: dict[str, object] = {
        "runs": len(read.finished),
        "unfinished": len(read.unfinished),
        "seconds": round(total_seconds(read.finished), 1),
        "sections": [
            {
                "title": section.title,
                "protocol": section.group.protocol,
                "axis": section.group.axis,
                "backbone": section.group.backbone.model_dump(),
                "shots": section.group.shots,
                "shared": section.group.shared,
                "tables": [asdict(table) for table in section.tables],
            }
            for section in sections
            if section.group
        ],
        "paper": [check for check in checks if check["status"] != "not measured"],
        "notes": read.notes,
        "finding": {"title": finding.title, "sentences": finding.sentences},
    }
    across = [asdict(table) for one in sections if not one.group for table in one.tables]
    return summary | ({"backbones": across} if across else {})


def _appendix(read: Results, checks: Sequence[Check]) -> dict[str, list[str]]:
    """Return title -> lines: agreement with the paper, runs without figures, what was left out,
    shared groups, versions."""
    versions: dict[str, set[str]] = defaultdict(set)
    for record in read.finished:
        for name, version in record.versions.items():
            versions[name].add(version)
    packages = [f"{name} {', '.join(sorted(used))}" for name, used in sorted(versions.items())]
    weights = {
        f"weights of {record.backbone.name}: {record.backbone.digest}" for record in read.finished
    }
    shared_groups = {
        record.task.data: note
        for record in read.finished
        for note in record.notes
        if note.startswith(SHARED_GROUPS)
    }
    parts = {
        "Against the paper": _agreement(checks),
        "Runs without figures": list(map(_describe_unfinished, read.unfinished)),
        "Left out": read.notes,
        "Groups in both train and test": [f"{data}: {n}" for data, n in shared_groups.items()],
        "Made with": [*packages, *machines(read.finished), *sorted(weights)],
    }
    return {title: lines for title, lines in parts.items() if lines}


def _agreement(checks: Sequence[Check]) -> list[str]:
    """Count the printed figures that were reproduced, and list the others."""
    judged = [check for check in checks if check["within"] is not None]
    outside = [
        f"{check['table']}, {check['row']}, {check['figure']}: {check['ours']:.2f}, "
        f"the paper has {check['paper']:.2f}"
        for check in judged
        if not check["within"]
    ]
    if not judged:
        return []
    count = f"{len(judged) - len(outside)} of {len(judged)} figures lie within"
    end = "; these do not:" if outside else "."
    return [f"{count} {printed_tables().tolerance:.1f} points{end}", *outside]


def _describe_unfinished(record: Record) -> str:
    task = record.task
    run = f"{record.protocol}, {record.backbone.name}, {task.shots} shots, seed {task.seed}"
    reason = ": ".join(filter(None, [record.status, record.reason]))
    return f"{label(record)} on {task.data} ({run}): {reason}"


class Finding(NamedTuple):
    """The summary of records.

    Attributes:
        group: The group that it is about; None if no two methods were compared.
        title: Title of the report.
        sentences: What the test over data sets shows.
    """

    group: Group | None
    title: str
    sentences: tuple[str, ...]


def summarise(groups: Sequence[Group]) -> Finding:
    """Sum up the most important group that compares methods, in its main figure: HM, the targets,
    or the most shots."""
    by_group = [(group, group.differences(group.columns[-1])) for group in groups]
    compared = [(group, pairs) for group, pairs in by_group if pairs]
    if not compared:
        count = counted(sum(len(group.records) for group in groups), "run")
        return Finding(None, f"{count}, and no two methods to compare", ())
    group, pairs = max(compared, key=lambda found: _importance(*found))
    figure = "accuracy on the targets" if group.protocol in TRANSFER else group.columns[-1].head
    title = _title(group.reference, figure, pairs)
    return Finding(group, title, _sentences(group, figure, pairs))


def _importance(
    group: Group, pairs: Mapping[str, Paired]
) -> tuple[bool, int, int, tuple[bool, int]]:
    """Return the sort key of a group: base-to-novel, tested over the most data sets, then of the
    most methods, then with the most shots."""
    sets = max(pair.sets for pair in pairs.values())
    return group.protocol == MAIN, sets, len(pairs), by_size(group.shots or 0)


def _title(first: str, figure: str, pairs: Mapping[str, Paired]) -> str:
    counts = {pair.sets for pair in pairs.values()}
    if max(counts) < MIN_SETS:
        verb = "is" if counts == {1} else "are"
        others = _name_rows(list(pairs))
        return f"{_sets(pairs)} {verb} too few to compare {first} with {others} in {figure}"
    words = {"ahead": "ahead of", "behind": "behind"}
    labels: dict[str, list[str]] = {"ahead of": [], "behind": [], "not shown to differ from": []}
    for row, pair in pairs.items():
        labels[words.get(pair.verdict, "not shown to differ from")].append(row)
    *parts, last = [f"{word} {_name_rows(rows)}" for word, rows in labels.items() if rows]
    verdict = f"{', '.join(parts)} and {last}" if parts else last
    return f"{first} is {verdict} in {figure}, tested over {_sets(pairs)}"


def _name_rows(labels: Sequence[str]) -> str:
    return " and ".join(labels) if len(labels) < 3 else f"{len(labels)} others"


def _sets(pairs: Mapping[str, Paired]) -> str:
    counts = sorted({pair.sets for pair in pairs.values()})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {span} data set{'' if counts == [1] else 's'}"


def _sentences(group: Group, figure: str, pairs: Mapping[str, Paired]) -> tuple[str, ...]:
    other, pair = max(pairs.items(), key=lambda item: abs(item[1].difference))
    interval = ""
    if pair.low is not None and pair.high is not None:
        interval = f"95 % interval {_signed(pair.low)} to {_signed(pair.high)}, "
    verdicts = {"ahead": "is shown", "behind": "is shown", "not shown": "is not shown"}
    verdict = verdicts.get(pair.verdict, "is not tested")
    holm = f"; p is corrected by Holm for {len(pairs)} comparisons" if len(pairs) > 1 else ""
    return (
        f"This is of {group.title}: {len(group.records)} runs, {len(group.rows)} rows, "
        f"{counted(len(group.datasets), 'data set')}, {counted(len(group.seeds), 'seed')}.",
        f"The largest difference in {figure} is that of {group.reference} to {other}, "
        f"{_signed(pair.difference)} points ({interval}n = {pair.sets}), which {verdict}.",
        f"A difference is shown where Student's t over data sets gives p below {LEVEL}, "
        f"on {MIN_SETS} of them or more{holm}.",
    )


def _signed(value: float) -> str:
    return minus(f"{value:+.2f}")
