"""The printed figures of the RMAdapter paper (AAAI-26, pp. 23594-23602), where they contradict themselves, and ours.

The CSV files under assets/paper hold the tables as they are printed; nothing about them is typed here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from rmadapter.bench.records import Group, Run, group_runs, read_runs
from rmadapter.bench.render import Cell, Row, Table, mark_best
from rmadapter.data.catalog import CATALOG, find
from rmadapter.metrics import harmonic_mean

BACKBONES = ("ViT-B-16/openai", "ViT-B-16-quickgelu/openai")
OTHER_NAMES = {"zero-shot": "clip", "rmadapter-paper": "rmadapter"}
SHOTS = 16
SEEDS = (1, 2, 3)
TOLERANCE = 1.0  # points within which a figure counts as reproduced
ROUNDING = 0.015 + 1e-9  # points by which figures that were rounded to 0.01 may miss what they were computed from
HALVES = ("base", "novel", "hm")
NAMES = {"base": "base", "novel": "novel", "hm": "HM"}
TRANSFER = {"cross-dataset": "table2_cross_dataset", "domain-generalization": "table3_domain_generalization"}
ABLATIONS = {
    "ablation-components": ("components", "Table 4"),
    "ablation-sharing": ("sharing", "Table 5"),
    "ablation-layers": ("reconstruction_layers", "Table 6"),
}
# Another number of test images is another data set under the same name.
TEST_IMAGES = {key: dataset.counts["test"] for key, dataset in CATALOG.items()}


@cache
def _table(name: str) -> list[dict[str, str]]:
    text = (files("rmadapter") / "assets/paper" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


@cache
def halves() -> dict[str, dict[str, dict[str, float]]]:
    """Table 1: block ("average" or a data set) -> method as printed -> {"base", "novel", "hm"}."""
    blocks: dict[str, dict[str, dict[str, float]]] = {}
    for row in _table("table1_base_to_novel"):
        blocks.setdefault(row["dataset"], {})[row["method"]] = {key: float(row[key]) for key in HALVES}
    return blocks


@cache
def transfer(protocol: str) -> dict[str, dict[str, float]]:
    """Table 2 (cross-dataset) or 3 (domain-generalization): method as printed -> {"imagenet", targets, "average"}."""
    rows = _table(TRANSFER[protocol])
    return {row["method"]: {k: float(v) for k, v in row.items() if k != "method"} for row in rows}


@cache
def ablation(protocol: str) -> dict[str, dict[str, float]]:
    """Table 4, 5 or 6: variant as printed -> {"base", "novel", "hm"}."""
    rows = [row for row in _table("tables4-6_ablations") if row["ablation"] == ABLATIONS[protocol][0]]
    return {row["variant"]: {key: float(row[key]) for key in HALVES} for row in rows}


def misnamed(block: str) -> dict[str, str]:
    """{method: name it is printed under}, where a block has one row of an unknown name in place of a known one."""
    known, here = halves()["average"], halves()[block]
    missing, unknown = known.keys() - here.keys(), here.keys() - known.keys()
    return dict(zip(missing, unknown, strict=True)) if len(missing) == len(unknown) == 1 else {}


def printed_name(run: Run, rows: Sequence[str]) -> str | None:
    """Which of the printed rows is about this run's method, or about its variant in an ablation."""
    wanted = OTHER_NAMES.get(run.method, run.method)
    return _match(run.variant if run.protocol in ABLATIONS else wanted, rows)


def _match(name: str, rows: Sequence[str]) -> str | None:
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9+]", "", re.sub(r"\(.*?\)", "", text.lower()))

    return next((row for row in rows if plain(name) and plain(row) == plain(name)), None)


def dataset_name(dataset: str) -> str:
    """The key of a catalogue data set, by whichever of its names; another name with underscores."""
    known = find(dataset)
    return known.key if known else dataset.lower().replace("-", "_")


def belongs(run: Run) -> bool:
    """Whether the run is of the paper's backbone, shots and data set, the latter judged by its name and test images."""
    name = dataset_name(run.dataset)
    if run.backbone.name not in BACKBONES or run.shots not in {SHOTS, 0} or name not in TEST_IMAGES:
        return False
    if run.protocol in TRANSFER:
        return name == "imagenet" and run.tested.get("source", TEST_IMAGES[name]) == TEST_IMAGES[name]
    total = sum(run.tested.values())
    # A method that names no new classes is tested on one half alone.
    return total == TEST_IMAGES[name] if "novel" in run.tested else 0 < total < TEST_IMAGES[name]


def printed(run: Run, block: str) -> tuple[str, dict[str, float]] | None:
    """(row as printed, its figures) that belong beside this run, or None. block: a data set or "average"."""
    if not belongs(run):
        return None
    if run.protocol in TRANSFER:
        rows = transfer(run.protocol)
    elif run.protocol in ABLATIONS:
        rows = ablation(run.protocol) if block == "average" else {}
    else:
        rows = halves().get(block, {}) if run.protocol == "base-to-novel" else {}
    name = printed_name(run, list(rows))
    if name is None and run.protocol == "base-to-novel" and block in halves():
        name = next((as_ for method, as_ in misnamed(block).items() if _match(run.method, [method])), None)
    if name is None:
        return None
    figures = rows[name]
    if run.protocol in TRANSFER:  # a target of other images than the paper's has no printed figure
        known = {dataset_name(k): n for k, n in run.tested.items()}
        same = {k: v for k, v in figures.items() if k in {"imagenet", "average"} or known.get(k) == TEST_IMAGES[k]}
        figures = same if len(same) == len(figures) else {k: v for k, v in same.items() if k != "average"}
    return name, figures


def footnotes(protocol: str, block: str = "average", shown: Sequence[str] = ()) -> list[str]:
    """Where the printed figures of a table, or of one block of Table 1, contradict each other: computed, not typed.

    shown: names of the printed rows that are of interest; all of them when empty.
    """
    notes = _transfer_notes(protocol) if protocol in TRANSFER else _hm_notes(protocol, block)
    return [f"In the paper: {name}: {note}" for name, note in notes if name in shown or not shown]


def _hm_notes(protocol: str, block: str) -> Iterator[tuple[str, str]]:
    rows = ablation(protocol) if protocol in ABLATIONS else halves().get(block, {})
    wrong = {name: row for name, row in rows.items() if abs(_hm(row) - row["hm"]) > ROUNDING}
    for name, row in wrong.items():
        note = (
            f"the HM is printed as {row['hm']:.2f}; the HM of the printed base and novel figures "
            f"({row['base']:.2f}, {row['novel']:.2f}) is {_hm(row):.2f}"
        )
        note += ", the convention of every other row" if block == "average" and len(wrong) == 1 else ""
        if protocol == "base-to-novel" and block == "average":
            own = [figures[name]["hm"] for key, figures in halves().items() if key != "average" and name in figures]
            note += f"; the mean of its {len(own)} printed HMs is {fmean(own):.2f}"
        yield name, f"{note}."
    if protocol == "base-to-novel":
        yield from _average_notes() if block == "average" else _misnamed_notes(block)


def _hm(row: dict[str, float]) -> float:
    return harmonic_mean(row["base"], row["novel"])


def _average_notes() -> Iterator[tuple[str, str]]:
    blocks = [rows for key, rows in halves().items() if key != "average"]
    for name, row in halves()["average"].items():
        means = {key: fmean(rows[name][key] for rows in blocks if name in rows) for key in ("base", "novel")}
        off = [key for key in means if abs(means[key] - row[key]) > ROUNDING]
        if off and all(name in rows for rows in blocks):
            told = [f"the {key} average is printed as {row[key]:.2f}, its rows have {means[key]:.2f}" for key in off]
            yield name, f"{'; '.join(told)}."


def _misnamed_notes(block: str) -> Iterator[tuple[str, str]]:
    for method, name in misnamed(block).items() if block in halves() else ():
        yield name, f"this row of {block} stands in the place of {method}, which has none, and carries its figures."


def _transfer_notes(protocol: str) -> Iterator[tuple[str, str]]:
    found = {}
    for name, row in transfer(protocol).items():
        targets = [value for key, value in row.items() if key not in {"imagenet", "average"}]
        if abs(fmean(targets) - row["average"]) > ROUNDING:
            mean = f"the mean of its {len(targets)} printed targets is {fmean(targets):.2f}"
            found[name] = f"{row['average']:.2f}; {mean}"
    others = " (the other rows agree with theirs)" if len(found) == 1 else ""
    yield from ((name, f"the average is printed as {text}{others}.") for name, text in found.items())


def paper_tables() -> list[Table]:
    """Tables 1 to 7 with every method, as they are printed, and what does not add up in them."""
    tables = []
    for block, rows in halves().items():
        title = "the average" if block == "average" else block
        notes = tuple(footnotes("base-to-novel", block))
        tables.append(_as_table(f"paper-table1-{block}", f"Table 1, {title}", "method", rows, notes))
    for number, protocol in enumerate(TRANSFER, 2):
        notes = tuple(footnotes(protocol))
        tables.append(_as_table(f"paper-table{number}", f"Table {number}", "method", transfer(protocol), notes))
    for protocol, (_, title) in ABLATIONS.items():
        name = f"paper-{title.lower().replace(' ', '')}"
        tables.append(_as_table(name, title, "variant", ablation(protocol), tuple(footnotes(protocol))))
    overhead = tuple(Row(row["metric"], (Cell(row["reported"]),)) for row in _table("table7_overhead"))
    return [*tables, Table("paper-table7", "Table 7", ("cost of reconstruction", "reported"), overhead)]


def _as_table(name: str, title: str, first: str, rows: dict[str, dict[str, float]], notes: tuple[str, ...]) -> Table:
    columns = list(next(iter(rows.values())))
    lines = [Row(label, tuple(Cell(row[key]) for key in columns)) for label, row in rows.items()]
    heads = (first, *(NAMES.get(key, key) for key in columns))
    return Table(name, f"{title}, as printed in the paper", heads, mark_best(lines, [1] * len(columns)), "", notes)


def check(
    results: Path | Sequence[Run], tolerance: float = TOLERANCE, seeds: Sequence[int] = SEEDS
) -> list[dict[str, Any]]:
    """Each printed figure beside the mean of ours over `seeds`, in points.

    Returns {"table", "row", "figure", "paper", "ours", "difference" (ours minus paper), "within" the tolerance,
    "status": "measured", "n of m seeds" or "not measured"}; what is missing is None. An average is measured once every
    data set of its table is. Our average HM is that of the mean base and novel figures.
    """
    runs = [run for run in (read_runs(results).runs if isinstance(results, Path) else results) if belongs(run)]
    return [_judge(*line, tolerance, seeds) for line in _lines(runs)]


_Line = tuple[str, str, str, float, list[Run], list[str], str]  # table, row, figure, paper, runs, data sets, metric


def _lines(runs: list[Run]) -> Iterator[_Line]:
    groups = group_runs(runs)
    sets = [key for key in halves() if key != "average"]
    tables = [("base-to-novel", f"Table 1, {key}", key, rows, [key]) for key, rows in halves().items()]
    tables += [(p, f"Table {n}", "", transfer(p), ["imagenet"]) for n, p in enumerate(TRANSFER, 2)]
    tables += [(p, title, "average", ablation(p), sets) for p, (_, title) in ABLATIONS.items()]
    keys = {"imagenet": "source", "average": "average", **{key: key for key in HALVES}}
    for protocol, table, block, rows, datasets in tables:
        of_protocol = [group for group in groups if group.protocol == protocol]
        for name, figures in rows.items():
            for row, mine in _claims(of_protocol, block, name):
                for key, value in figures.items():
                    known = [run for run in mine if key in (printed(run, block) or ("", {}))[1]]
                    wanted = sets if block == "average" else datasets
                    yield table, row, NAMES.get(key, key), value, known, wanted, keys.get(key, f"target:{key}")


def _claims(groups: Sequence[Group], block: str, name: str) -> list[tuple[str, list[Run]]]:
    """Our methods that a printed row is about, each group's by itself; nobody's runs when there are none."""
    found: dict[str, list[Run]] = {}
    for group in groups:
        for run in group.runs:
            if (row := printed(run, block)) and row[0] == name:
                found.setdefault(f"{name} ({run.method}, {group.slug})", []).append(run)
    return list(found.items()) if len(found) > 1 else [(name, list(*found.values()))]


def _judge(
    table: str, row: str, figure: str, paper: float, runs: list[Run], datasets: list[str], metric: str,
    tolerance: float, seeds: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    found = {(dataset_name(run.dataset), run.seed): run for run in runs if run.seed in seeds}
    have = [seed for seed in seeds if all((dataset, seed) in found for dataset in datasets)]

    def mean(name: str) -> float | None:
        values = [_value(found[d, s], name) for d in datasets for s in have]
        return None if not values or None in values else fmean(v for v in values if v is not None)

    ours = mean(metric)
    if metric == "hm" and len(datasets) > 1:
        base, novel = mean("base"), mean("novel")
        ours = None if base is None or novel is None else harmonic_mean(base, novel)
    full = ours is not None and len(have) == len(seeds)
    difference = None if ours is None else ours - paper
    return {
        "table": table,
        "row": row,
        "figure": figure,
        "paper": paper,
        "ours": ours,
        "difference": difference,
        "within": abs(difference) <= tolerance if full and difference is not None else None,
        "status": "not measured" if ours is None else "measured" if full else f"{len(have)} of {len(seeds)} seeds",
    }


def _value(run: Run, metric: str) -> float | None:
    if not metric.startswith("target:"):
        return run.metric(metric)
    targets = run.metrics.get("targets")
    named = {dataset_name(k): v for k, v in targets.items()} if isinstance(targets, dict) else {}
    return named.get(metric.removeprefix("target:"))
