"""The report of a set of records: Markdown, LaTeX, CSV, JSON and one self-contained HTML page."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import Record
from rmadapter.bench.protocols import PROTOCOLS
from rmadapter.bench.report import paper
from rmadapter.bench.report.figures import TRADE_OFF, Figure, make_figures
from rmadapter.bench.report.format import Table, tex, to_csv, to_latex, to_markdown
from rmadapter.bench.report.groups import Group, cell, group_records, label
from rmadapter.bench.report.read import SUMMARY, Results, read_records
from rmadapter.bench.report.summary import finding
from rmadapter.bench.report.tables import machines, make_tables, total_seconds
from rmadapter.support.files import write_text
from rmadapter.support.html import template
from rmadapter.support.locks import exclusive
from rmadapter.support.plots import duration
from rmadapter.task import AKIN


@dataclass(frozen=True)
class Section:
    """All that a report says about one group."""

    group: Group
    about: str
    tables: list[Table]
    figures: list[Figure]

    @property
    def title(self) -> str:
        return self.group.title


def write_reports(results: Path, out: Path) -> dict[str, Any]:
    """Read all records of `results`, a folder or a file of lines, and write to `out`: report.md,
    .tex, .html, .json, tables/*.csv, figures/*.svg, and the records themselves, sorted, as
    records.jsonl.

    Returns what report.json holds: {"finding": {"title", "sentences"}, "runs", "unfinished",
    "seconds", "sections": [{"title", "protocol", "axis", "backbone", "shots", "shared", "tables"}],
    "paper": what `paper.check` measured, "notes"}. The same records give the same bytes. Raises
    UserError when there is no record, pandas is missing, another process is at work in `out`, or it
    cannot be written to.
    """
    found = read_records(results)
    sections = [_section(group) for group in group_records(found.finished)]
    table, figure = _namer(), _namer()
    sections = [
        replace(
            section,
            tables=[replace(part, name=table(part.name)) for part in section.tables],
            figures=[part._replace(name=figure(part.name)) for part in section.figures],
        )
        for section in sections
    ]
    told = finding([section.group for section in sections])
    scatter = next(
        (
            f
            for s in sections
            if s.group is told.group
            for f in s.figures
            if f.name.endswith(TRADE_OFF)
        ),
        None,
    )
    summary = _summary(found, sections) | {
        "finding": {"title": told.title, "sentences": told.sentences}
    }
    last = _appendix(found, summary["paper"])
    page = template("bench.html.j2", duration=duration)
    files = {
        **{
            f"tables/{table.name}.csv": to_csv(table)
            for section in sections
            for table in section.tables
        },
        **{
            f"figures/{figure.name}.svg": _alone(figure)
            for section in sections
            for figure in section.figures
        },
        "report.md": _markdown(sections, summary, last, scatter),
        "report.tex": _latex(sections),
        "report.html": page.render(
            sections=sections, summary=summary, appendix=last, scatter=scatter
        ),
        "records.jsonl": "".join(
            record.line() for record in sorted([*found.finished, *found.unfinished], key=cell)
        ),
        SUMMARY: json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
    }
    with exclusive(out):  # two at once would mix their files
        for name, text in files.items():
            write_text(out / name, text)
    return summary


def _namer() -> Callable[[str], str]:
    """Names for files: a number is added to one that is taken."""
    taken: Counter[str] = Counter()

    def own(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}-{taken[name]}"

    return own


def _alone(figure: Figure) -> str:
    """The SVG as a file of its own, with a background, as there is no page behind it."""
    return figure.svg.replace("<svg", '<svg style="background:#fff"', 1)


def _section(group: Group) -> Section:
    settings = ", ".join(f"{name} {_value(value)}" for name, value in group.shared.items())
    text = PROTOCOLS[group.protocol].text
    about = f"{text[0].upper()}{text[1:]}. All runs share: {settings}."
    return Section(group, about, make_tables(group), make_figures(group))


def _value(value: Any) -> str:
    return ", ".join(f"“{v}”" for v in value) if isinstance(value, (list, tuple)) else str(value)


def _summary(found: Results, sections: Sequence[Section]) -> dict[str, Any]:
    return {
        "runs": len(found.finished),
        "unfinished": len(found.unfinished),
        "seconds": round(total_seconds(found.finished), 1),
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
        "paper": [line for line in paper.check(found.finished) if line["status"] != "not measured"],
        "notes": found.notes,
    }


def _appendix(found: Results, checked: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Title -> lines: agreement with the paper, runs without figures, what was left out, shared
    groups, versions."""
    judged = [line for line in checked if line["within"] is not None]
    outside = [
        f"{line['table']}, {line['row']}, {line['figure']}: {line['ours']:.2f}, the paper has {line['paper']:.2f}"
        for line in judged
        if not line["within"]
    ]
    agreement = f"{len(judged) - len(outside)} of {len(judged)} figures lie within {paper.TOLERANCE:.1f} points"
    versions: dict[str, set[str]] = defaultdict(set)
    for record in found.finished:
        for name, version in record.versions.items():
            versions[name].add(version)
    weights = {
        f"weights of {record.backbone.name}: {record.backbone.digest}" for record in found.finished
    }
    akin = {r.task.data: note for r in found.finished for note in r.notes if note.startswith(AKIN)}
    made_with = [f"{name} {', '.join(sorted(some))}" for name, some in sorted(versions.items())]
    parts = {
        "Against the paper": [f"{agreement}{'; these do not:' if outside else '.'}", *outside]
        if judged
        else [],
        "Runs without figures": list(map(_unfinished, found.unfinished)),
        "Left out": found.notes,
        "Groups in both train and test": [f"{data}: {note}" for data, note in akin.items()],
        "Made with": [*made_with, *machines(found.finished), *sorted(weights)],
    }
    return {title: lines for title, lines in parts.items() if lines}


def _unfinished(record: Record) -> str:
    task = record.task
    where = f"{record.protocol}, {record.backbone.name}, {task.shots} shots, seed {task.seed}"
    return f"{label(record)} on {task.data} ({where}): {': '.join(filter(None, [record.status, record.reason]))}"


def _markdown(
    sections: Sequence[Section],
    summary: dict[str, Any],
    appendix: dict[str, list[str]],
    scatter: Figure | None,
) -> str:
    told = f"{summary['runs']} runs, {duration(summary['seconds'])} in all: [records.jsonl](records.jsonl)."
    parts, seen = (
        [f"# {summary['finding']['title']}", " ".join(summary["finding"]["sentences"])],
        set[str](),
    )
    parts = [*filter(None, parts), *([_picture(scatter)] if scatter else []), told]
    for section in sections:
        parts += [f"## {section.title}", section.about]
        for table in section.tables:  # one page says everything once
            new = tuple(note for note in table.footnotes if note not in seen)
            parts.append(to_markdown(replace(table, footnotes=new)).rstrip())
            seen.update(new)
        parts += [_picture(figure) for figure in section.figures if figure is not scatter]
    parts.append("## Appendix")
    for title, lines in appendix.items():
        parts += [f"**{title}**", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _picture(figure: Figure) -> str:
    return f"![{figure.title}](figures/{figure.name}.svg)"


def _latex(sections: Sequence[Section]) -> str:
    parts = [
        "% Needs \\usepackage{booktabs}; wide tables may need \\usepackage{graphicx} and \\resizebox."
    ]
    for section in sections:
        parts += [rf"\subsection*{{{tex(section.title)}}}", tex(section.about)]
        parts += [to_latex(table).rstrip() for table in section.tables]
    return "\n\n".join(parts) + "\n"
