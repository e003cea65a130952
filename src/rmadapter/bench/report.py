"""The report of a folder of runs: Markdown, LaTeX, CSV, JSON and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmadapter.bench import paper
from rmadapter.bench.figures import Figure, make_figures
from rmadapter.bench.findings import findings
from rmadapter.bench.records import REPORT, Group, Results, Run, group_runs, read_runs
from rmadapter.bench.render import Table, tex, to_csv, to_latex, to_markdown
from rmadapter.bench.tables import duration, machines, make_tables
from rmadapter.files import write_json, write_text
from rmadapter.report import page

TITLES = {
    "base-to-novel": "Base-to-novel generalisation",
    "cross-dataset": "Cross-dataset transfer",
    "domain-generalization": "Domain generalisation",
    "few-shot": "Few-shot classification",
    "ablation-components": "Ablation: components",
    "ablation-sharing": "Ablation: the projection that is shared",
    "ablation-layers": "Ablation: layers of the reconstruction branch",
    "ablation-objective": "Ablation: distance of the reconstruction",
    "sensitivity": "Sensitivity",
}
MEANING = {
    "base-to-novel": "Trained on the first half of the classes; each half is tested by itself.",
    "cross-dataset": "Trained on one data set, tested on others without another image of them.",
    "domain-generalization": "Trained on one domain, tested on the same classes in others.",
    "few-shot": "Trained and tested on all classes, with more and more images per class.",
    "sensitivity": "One field of the configuration varies, base-to-novel.",
}


@dataclass(frozen=True)
class Section:
    """All that a report says about one group."""

    group: Group
    title: str
    about: str
    findings: list[str]
    tables: list[Table]
    figures: list[Figure]


def write_reports(results: Path, out: Path) -> dict[str, Any]:
    """Read every run below `results` and write report.md, .tex, .html, .json, tables/*.csv and figures/*.svg to `out`.

    Returns what report.json holds: {"findings": [{"section", "text"}], "sections": [{"protocol", "backbone", "shots",
    "datasets", "seeds", "runs", "seconds", "tables": records, "figures"}], "paper": check against the paper's figures,
    "unfinished", "notes", "digests", "versions", "machines"}. The same runs give the same bytes.
    Raises UserError when there is no run, or `out` cannot be written to.
    """
    found = read_runs(results)
    sections = [_section(group) for group in group_runs(found.runs)]
    summary = _summary(found, sections)
    for section in sections:
        for table in section.tables:
            write_text(out / "tables" / f"{table.name}.csv", to_csv(table))
        for figure in section.figures:
            standalone = figure.svg.replace("<svg", '<svg style="background:#fff"', 1)
            write_text(out / "figures" / f"{figure.name}.svg", standalone)
    write_text(out / "report.md", _markdown(sections, summary))
    write_text(out / "report.tex", _latex(sections))
    html = page("bench.html.j2").render(sections=sections, summary=summary, duration=duration, appendix=appendix)
    write_text(out / "report.html", html)
    write_json(out / "report.json", summary)
    return summary


def _section(group: Group) -> Section:
    axis = f" to {group.axis}" if group.axis else ""
    shots = "" if group.shots is None else f", {group.shots} shot{'' if group.shots == 1 else 's'}"
    title = f"{TITLES[group.protocol]}{axis}: {group.backbone.name}{shots}"
    tables, figures = make_tables(group), make_figures(group)
    meaning = MEANING.get(group.protocol, "Base-to-novel, one choice of the method at a time.")
    about = [meaning, _about_paper(group, tables)]
    settings = ", ".join(f"{name} {_value(value)}" for name, value in group.shared.items())
    about += [f"All runs share: {settings}."] if settings else []
    return Section(group, title, " ".join(filter(None, about)), findings(group), tables, figures)


def _value(value: Any) -> str:
    return ", ".join(f"“{v}”" for v in value) if isinstance(value, (list, tuple)) else str(value)


def _about_paper(group: Group, tables: Sequence[Table]) -> str:
    if group.protocol in ("few-shot", "sensitivity", "ablation-objective"):
        return "The paper prints no table for this."
    if any(row.paper for table in tables for row in table.rows):
        return "Rows in italics are the paper's figures as they are printed, not measured here."
    return (
        "The paper has no figures for these data sets with this backbone and these shots: it measured OpenAI's "
        "ViT-B/16 with 16 shots on its own data sets."
    )


def _summary(found: Results, sections: Sequence[Section]) -> dict[str, Any]:
    checked = paper.check(found.runs)
    return {
        "kind": REPORT,
        "findings": [{"section": s.title, "text": text} for s in sections for text in s.findings],
        "sections": [
            {
                "title": s.title,
                "protocol": s.group.protocol,
                "axis": s.group.axis,
                "backbone": s.group.backbone.model_dump(),
                "shots": s.group.shots,
                "shared": s.group.shared,
                "datasets": s.group.datasets,
                "seeds": s.group.seeds,
                "runs": len(s.group.runs),
                "seconds": round(sum(run.seconds.get("total", 0) for run in s.group.runs), 1),
                "tables": [asdict(table) for table in s.tables],
                "figures": [figure.name for figure in s.figures],
            }
            for s in sections
        ],
        "paper": [line for line in checked if line["status"] != "not measured"],
        "tolerance": paper.TOLERANCE,
        "unfinished": [_unfinished(run) for run in found.unfinished],
        "notes": found.notes,
        "runs": len(found.runs),
        "seconds": round(sum(run.seconds.get("total", 0) for run in found.runs), 1),
        "digests": _digests(found.runs),
        "versions": _versions(found.runs),
        "machines": machines(found.runs),
        "backbones": {run.backbone.name: run.backbone.digest for run in found.runs},
    }


def _unfinished(run: Run) -> dict[str, Any]:
    where = {"protocol": run.protocol, "dataset": run.dataset, "row": run.label, "shots": run.shots, "seed": run.seed}
    return {**where, "backbone": run.backbone.name, "status": run.status, "reason": run.reason}


def _digests(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Digest of the drawn images, for each data set, shots and seed; several where runs of a cell differ."""
    found: dict[tuple[str, int, int], set[str]] = {}
    for run in runs:
        found.setdefault((run.dataset, run.shots, run.seed), set()).add(run.split_digest)
    keys = ("dataset", "shots", "seed")
    return [dict(zip(keys, key, strict=True), digests=sorted(digests)) for key, digests in sorted(found.items())]


def _versions(runs: Sequence[Run]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, version in run.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def _markdown(sections: Sequence[Section], summary: dict[str, Any]) -> str:
    parts = ["# Results of the bench", f"{summary['runs']} runs, {duration(summary['seconds'])} in all."]
    parts.append("## What these runs say")
    for section in sections:
        said = section.findings or ["Nothing can be compared here."]
        parts.append("\n".join([f"**{section.title}**\n", *(f"- {text}" for text in said)]))
    for section in sections:
        parts += [f"## {section.title}", section.about]
        parts += [f"![{figure.title}](figures/{figure.name}.svg)" for figure in section.figures]
        parts += [to_markdown(table).rstrip() for table in section.tables]
    return "\n\n".join([*parts, *_appendix(summary)]) + "\n"


def _appendix(summary: dict[str, Any]) -> list[str]:
    parts = ["## Appendix: what it takes to repeat this"]
    for title, lines in appendix(summary).items():
        parts += [f"**{title}**", "\n".join(f"- {line}" for line in lines)]
    return parts


def appendix(summary: dict[str, Any]) -> dict[str, list[str]]:
    """Title -> lines: agreement with the paper, runs without figures, files left out, versions, machines, digests."""
    judged = [line for line in summary["paper"] if line["within"] is not None]
    outside = [
        f"{line['table']}, {line['row']}, {line['figure']}: {line['ours']:.2f}, the paper has {line['paper']:.2f}"
        for line in judged
        if not line["within"]
    ]
    agreement = f"{len(judged) - len(outside)} of {len(judged)} figures lie within {summary['tolerance']:.1f} points"
    parts = {
        "Against the paper, three seeds": [f"{agreement}{'; these do not:' if outside else '.'}", *outside]
        if judged
        else [],
        "Runs without figures": [
            f"{u['row']} on {u['dataset']} ({u['protocol']}, {u['backbone']}, {u['shots']} shots, seed {u['seed']}): "
            f"{u['status']}{': ' if u['reason'] else ''}{u['reason']}"
            for u in summary["unfinished"]
        ],
        "Files left out": summary["notes"],
        "Versions": [f"{name} {', '.join(versions)}" for name, versions in summary["versions"].items()],
        "Machines": summary["machines"],
        "Weights of the backbones, SHA-256": [f"{name}: {digest}" for name, digest in summary["backbones"].items()],
        "Digests of the drawn images": [
            f"{d['dataset']}, {d['shots']} shots, seed {d['seed']}: {', '.join(filter(None, d['digests'])) or 'none'}"
            for d in summary["digests"]
        ],
    }
    return {title: lines for title, lines in parts.items() if lines}


def _latex(sections: Sequence[Section]) -> str:
    parts = ["% Needs \\usepackage{booktabs}; wide tables may need \\usepackage{graphicx} and \\resizebox."]
    for section in sections:
        parts += [rf"\subsection*{{{tex(section.title)}}}", tex(section.about)]
        said = [rf"\item {tex(text)}" for text in section.findings]
        parts += ["\n".join([r"\begin{itemize}", *said, r"\end{itemize}"])] if said else []
        parts += [to_latex(table).rstrip() for table in section.tables]
    return "\n\n".join(parts) + "\n"
