"""The report of a set of records: Markdown, LaTeX, CSV, JSON and one self-contained HTML page.

A title and three sentences sum up the records; they say no more than the test over data sets shows.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypedDict

from rmadapter.artifacts.record import Record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.bench.report import paper
from rmadapter.bench.report.backbones import backbone_tables
from rmadapter.bench.report.figures import TRADE_OFF, Figure, make_figures
from rmadapter.bench.report.format import Table, setting_text, tex, to_csv, to_latex, to_markdown
from rmadapter.bench.report.groups import (
    TRANSFER,
    Group,
    by_size,
    common_targets,
    counted,
    describe_shots,
    experiment_of,
    group_records,
    label,
    machines,
    rows_of,
    total_seconds,
)
from rmadapter.bench.report.read import RECORDS, SUMMARY, Results, read_records
from rmadapter.bench.report.stats import ENOUGH, LEVEL, Paired
from rmadapter.bench.report.tables import (
    columns_of,
    differences,
    make_tables,
    reference,
)
from rmadapter.errors import UserError
from rmadapter.support.files import write_text
from rmadapter.support.html import duration, template
from rmadapter.support.locks import exclusive
from rmadapter.task import SHARED_GROUPS

MAIN = "base-to-novel"  # the protocol to sum up if it was run


@dataclass(frozen=True)
class Section:
    """All that a report says about one group."""

    group: Group
    about: str
    tables: list[Table]
    figures: list[Figure]

    @property
    def title(self) -> str:
        """The title of the group."""
        return self.group.title


class FindingSummary(TypedDict):
    """The finding in report.json."""

    title: str
    sentences: tuple[str, ...]


class _Base(TypedDict):
    """What each report.json has. sections: {"title", "protocol", "axis", "backbone", "shots",
    "shared", "tables"} each. paper: what `paper.check` measured."""

    runs: int
    unfinished: int
    seconds: float
    sections: list[dict[str, object]]
    paper: list[paper.Check]
    notes: list[str]
    finding: FindingSummary


class Summary(_Base, total=False):
    """The content of report.json. backbones: the tables of methods by backbones, if wanted."""

    backbones: list[dict[str, object]]


def write_reports(results: Path, out: Path, backbones: bool = False) -> Summary:
    """Read all records of `results`, a folder or a file of lines, and write to `out`: report.md,
    .tex, .html, .json, tables/*.csv, figures/*.svg, and the records themselves, sorted, as
    records.jsonl.

    backbones: whether to add tables of methods by backbones. Returns what report.json holds. The
    same records give the same bytes. Raises UserError when there is no record, or no experiment on
    several backbones that are wanted, pandas is missing, another process is at work in `out`, or it
    cannot be written to.
    """
    read = read_records(results)
    sections = _number_names([_section(group) for group in group_records(read.finished)])
    finding = summarise([section.group for section in sections])
    figures = [f for s in sections if s.group is finding.group for f in s.figures]
    scatter = next((figure for figure in figures if figure.name.endswith(TRADE_OFF)), None)
    summary = _summary(read, sections, finding)
    across = _across(sections) if backbones else []
    if across:
        summary["backbones"] = [asdict(one) for one in across]
    appendix = _appendix(read, summary["paper"])
    page = template("bench.html.j2", duration=duration)
    html = page.render(
        sections=sections, summary=summary, appendix=appendix, scatter=scatter, across=across
    )
    files = {f"tables/{table.name}.csv": to_csv(table) for table in across}
    for section in sections:
        files |= {f"tables/{table.name}.csv": to_csv(table) for table in section.tables}
    for section in sections:
        for figure in section.figures:  # there is no page behind it, so it has a background
            svg = figure.svg.replace("<svg", '<svg style="background:#fff"', 1)
            files[f"figures/{figure.name}.svg"] = svg
    records = sorted([*read.finished, *read.unfinished], key=experiment_of)
    files |= {
        "report.md": _markdown(sections, summary, appendix, scatter, across),
        "report.tex": _latex(sections, across),
        "report.html": html,
        RECORDS: "".join(record.line() for record in records),
        SUMMARY: json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
    }
    with exclusive(out):  # two at once would mix their files
        for name, text in files.items():
            write_text(out / name, text)
    return summary


def _across(sections: Sequence[Section]) -> list[Table]:
    """Return tables of methods by backbones, each with a name of its own. Raises UserError if there
    are none."""
    tables = backbone_tables([section.group for section in sections])
    if not tables:
        raise UserError(
            "--backbones: no two backbones were run with the same protocol, shots and settings; "
            "run `rmadapter bench` with each into a folder below RESULTS"
        )
    taken = Counter[str]()
    numbered = []
    for one in tables:
        taken[one.name] += 1
        count = taken[one.name]
        numbered.append(one if count == 1 else replace(one, name=f"{one.name}-{count}"))
    return numbered


def _number_names(sections: Sequence[Section]) -> list[Section]:
    """Give every table and every figure a name of its own."""
    taken: Counter[tuple[str, str]] = Counter()

    def unique(kind: str, name: str) -> str:
        taken[kind, name] += 1
        count = taken[kind, name]
        return name if count == 1 else f"{name}-{count}"

    numbered = []
    for section in sections:
        tables = [replace(table, name=unique("table", table.name)) for table in section.tables]
        figures = [f._replace(name=unique("figure", f.name)) for f in section.figures]
        numbered.append(replace(section, tables=tables, figures=figures))
    return numbered


def _section(group: Group) -> Section:
    settings = ", ".join(f"{name} {setting_text(value)}" for name, value in group.shared.items())
    text = PROTOCOLS[group.protocol].text
    if group.protocol == "few-shot":
        text = f"all classes, {_describe_span(group)}"
    about = f"{text[0].upper()}{text[1:]}. All runs share: {settings}."
    return Section(group, about, make_tables(group), make_figures(group))


def _describe_span(group: Group) -> str:
    """Describe the numbers of shots of a few-shot group, as "1 to 16 shots"."""
    shots = sorted({record.task.shots for record in group.records}, key=by_size)
    if len(shots) < 3 or 0 in shots:
        return describe_shots(*shots)
    return f"{shots[0]} to {shots[-1]} shots"


def _summary(read: Results, sections: Sequence[Section], finding: Finding) -> Summary:
    checks = paper.check(read.finished)
    return {
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
        ],
        "paper": [check for check in checks if check["status"] != "not measured"],
        "notes": read.notes,
        "finding": {"title": finding.title, "sentences": finding.sentences},
    }


def _appendix(read: Results, checks: Sequence[paper.Check]) -> dict[str, list[str]]:
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


def _agreement(checks: Sequence[paper.Check]) -> list[str]:
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
    return [f"{count} {paper.TOLERANCE:.1f} points{end}", *outside]


def _describe_unfinished(record: Record) -> str:
    task = record.task
    run = f"{record.protocol}, {record.backbone.name}, {task.shots} shots, seed {task.seed}"
    reason = ": ".join(filter(None, [record.status, record.reason]))
    return f"{label(record)} on {task.data} ({run}): {reason}"


def _markdown(
    sections: Sequence[Section], summary: Summary, appendix: Mapping[str, Sequence[str]],
    scatter: Figure | None, across: Sequence[Table],
) -> str:  # fmt: skip
    finding = summary["finding"]
    count = summary["runs"]
    total = duration(summary["seconds"])
    parts = [f"# {finding['title']}"]
    parts += [" ".join(finding["sentences"])] if finding["sentences"] else []
    parts += [_image(scatter)] if scatter else []
    parts.append(f"{count} runs, {total} in all: [records.jsonl](records.jsonl).")
    seen: set[str] = set()
    for section in sections:
        parts += [f"## {section.title}", section.about]
        for table in section.tables:  # one page says everything once
            new = tuple(note for note in table.footnotes if note not in seen)
            parts.append(to_markdown(replace(table, footnotes=new)).rstrip())
            seen.update(new)
        parts += [_image(figure) for figure in section.figures if figure is not scatter]
    parts += ["## Methods by backbones"] if across else []
    parts += [to_markdown(one).rstrip() for one in across]
    parts.append("## Appendix")
    for title, lines in appendix.items():
        parts += [f"**{title}**", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _image(figure: Figure) -> str:
    return f"![{figure.title}](figures/{figure.name}.svg)"


def _latex(sections: Sequence[Section], across: Sequence[Table]) -> str:
    parts = [
        "% Needs \\usepackage{booktabs}; wide tables may need \\usepackage{graphicx} and "
        "\\resizebox."
    ]
    for section in sections:
        parts += [rf"\subsection*{{{tex(section.title)}}}", tex(section.about)]
        parts += [to_latex(table).rstrip() for table in section.tables]
    parts += [r"\subsection*{Methods by backbones}"] if across else []
    parts += [to_latex(one).rstrip() for one in across]
    return "\n\n".join(parts) + "\n"


class Finding(NamedTuple):
    """The summary of records. group: the one it is about; None if no two methods were compared."""

    group: Group | None
    title: str
    sentences: tuple[str, ...]


class Comparison(NamedTuple):
    """Differences of one row to the others. figure: the name of what they differ in."""

    first: str
    figure: str
    pairs: Mapping[str, Paired]


def summarise(groups: Sequence[Group]) -> Finding:
    """Sum up a group that compares methods: base-to-novel if there is one, tested over the most
    data sets, then of the most methods, then with the most shots."""
    comparisons = [(group, _comparison(group)) for group in groups]
    compared = [(group, comparison) for group, comparison in comparisons if comparison.pairs]
    if not compared:
        count = counted(sum(len(group.records) for group in groups), "run")
        return Finding(None, f"{count}, and no two methods to compare", ())

    def importance(item: tuple[Group, Comparison]) -> tuple[bool, int, int, tuple[bool, int]]:
        group, comparison = item
        sets = max(pair.sets for pair in comparison.pairs.values())
        return group.protocol == MAIN, sets, len(comparison.pairs), by_size(group.shots or 0)

    group, comparison = max(compared, key=importance)
    return Finding(group, _title(comparison), _sentences(group, comparison))


def _comparison(group: Group) -> Comparison:
    """Compare the rows of a group as in the table of pairs, in its main figure."""
    rows = rows_of(common_targets(group.records))
    first = reference(rows)
    if first is None or not group.compared:
        return Comparison("", "", {})
    column = columns_of(group)[-1]  # HM, the targets, or the most shots
    figure = "accuracy on the targets" if group.protocol in TRANSFER else column.head
    return Comparison(first, figure, differences(rows, first, column))


def _title(comparison: Comparison) -> str:
    first, figure, pairs = comparison
    counts = {pair.sets for pair in pairs.values()}
    if max(counts) < ENOUGH:
        verb = "is" if counts == {1} else "are"
        others = _name_rows(list(pairs))
        return f"{_sets(pairs)} {verb} too few to compare {first} with {others} in {figure}"
    labels: dict[str, list[str]] = {"ahead of": [], "behind": [], "not shown to differ from": []}
    words = {"ahead": "ahead of", "behind": "behind"}
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


def _sentences(group: Group, comparison: Comparison) -> tuple[str, ...]:
    first, figure, pairs = comparison
    other, pair = max(pairs.items(), key=lambda item: abs(item[1].difference))
    interval = ""
    if pair.low is not None and pair.high is not None:
        interval = f"95 % interval {_signed(pair.low)} to {_signed(pair.high)}, "
    verdicts = {"ahead": "is shown", "behind": "is shown", "not shown": "is not shown"}
    verdict = verdicts.get(pair.verdict, "is not tested")
    rows = len(rows_of(group.records))
    holm = f"; p is corrected by Holm for {len(pairs)} comparisons" if len(pairs) > 1 else ""
    return (
        f"This is of {group.title}: {len(group.records)} runs, {rows} rows, "
        f"{counted(len(group.datasets), 'data set')}, {counted(len(group.seeds), 'seed')}.",
        f"The largest difference in {figure} is that of {first} to {other}, "
        f"{_signed(pair.difference)} points ({interval}n = {pair.sets}), which {verdict}.",
        f"A difference is shown where Student's t over data sets gives p below {LEVEL}, "
        f"on {ENOUGH} of them or more{holm}.",
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
