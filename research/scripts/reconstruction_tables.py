"""Make the tables and the figure of research/studies/reconstruction.md and of its records, from the
lines that reconstruction.py wrote.

    python research/scripts/reconstruction_tables.py research/results/reconstruction.jsonl \\
        --pages research/studies/reconstruction.md research/results/reconstruction.md \\
        --figure research/studies/reconstruction.svg

A data set counts once, with the mean of its seeds; interval and p are Student's over data sets, p
corrected (Holm) over the rows of a table with the same figure. Each table goes where a page has
<!-- NAME --> and <!-- end -->; without `--pages`, all are printed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from forest import SERIES, forest, interval
from studies import TESTED, Line, Lines, markdown, read_lines, show, with_verdicts

from rmadapter.bench.report.stats import half_width, over_sets
from rmadapter.metrics import harmonic_mean
from rmadapter.support.files import write_text

CHOOSE = ("rsscn7", "trashnet", "office_caltech/web")
FIRST = "pocket"  # the backbone of all tables but one
FIGURES = ("base", "novel", "hm")
BEST = ("combination 3, reconstruction", "combination 3, none")  # by HM, on the sets for choosing
MAIN = ("neither", "reconstruction", "constraint", "both")
DIALS = tuple((f"alpha times {dial:g}", "both") for dial in (0.25, 0.5, 0.75))
PAIRS = (
    ("reconstruction", "neither"),
    ("both", "constraint"),
    ("constraint", "neither"),
    ("both", "neither"),
)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines, and add their harmonic mean and that of zero-shot."""
    lines = read_lines(path)
    for line in lines:
        if {"target", "target_norm", "objective"} & line["fields"].keys():
            line.pop("explained", None)  # something other than the input is reconstructed
        line |= {f"{name}, %": 100 * line[name] for name in ("kept", "overlap")}
        line["hm"] = harmonic_mean(line["base"], line["novel"])
        line["zero_shot_hm"] = harmonic_mean(line["zero_shot_base"], line["zero_shot_novel"])
    return lines


def by_set(lines: Lines, variant: str, figure: str) -> dict[str, float]:
    """Average a figure over seeds, by data set."""
    by_seed: dict[str, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line["variant"] == variant and figure in line:
            by_seed[line["data"]][line["seed"]] = line[figure]
    return {data: fmean(values.values()) for data, values in by_seed.items()}


def paired(lines: Lines, one: str, other: str, figure: str) -> list[list[float]]:
    """Subtract other from one in each run of the same data set and seed; return the differences by
    data set."""
    runs = {
        (line["data"], line["seed"], line["variant"]): line[figure]
        for line in lines
        if figure in line
    }
    by_set: dict[str, list[float]] = defaultdict(list)
    for data, seed, variant in runs:
        if variant == one and (data, seed, other) in runs:
            by_set[data].append(runs[data, seed, one] - runs[data, seed, other])
    return [*by_set.values()]


def difference(lines: Lines, one: str, other: str, figure: str) -> tuple[float, float | None]:
    """Return the mean difference over data sets that have both with the same seeds, and the half
    width of its interval."""
    sets = paired(lines, one, other, figure)
    return fmean(map(fmean, sets)), over_sets(sets).half


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(head, rows, spaced=True)


def accuracies(lines: Lines, variants: Sequence[str] = MAIN) -> str:
    """Make a table of base / novel / HM of each data set, and their means."""
    hms = [by_set(lines, variant, "hm") for variant in variants]
    sets = [data for data in hms[0] if all(data in values for values in hms)]
    rows = []
    for variant in ("zero-shot", *variants):
        source, prefix = (variants[0], "zero_shot_") if variant == "zero-shot" else (variant, "")
        each = [by_set(lines, source, prefix + figure) for figure in FIGURES]
        cells = [" / ".join(f"{one[data]:.1f}" for one in each) for data in sets]
        means = " / ".join(f"{fmean(one[data] for data in sets):.1f}" for one in each)
        rows.append([variant, *cells, means])
    return _table(["", *sets, f"mean of {len(sets)}"], rows)


def differences(
    lines: Lines, pairs: Sequence[tuple[str, str]], figures: Sequence[str] = FIGURES
) -> str:
    """Make a table of each pair's difference in points, interval, number of sets, p by Holm, and
    what it shows."""
    rows = []
    for figure in figures:
        named = {f"{one} - {other}": paired(lines, one, other, figure) for one, other in pairs}
        name = "HM" if figure == "hm" else figure
        rows += [[pair, name, *cells] for pair, cells in with_verdicts(named).items()]
    return _table(["difference", "", *TESTED], rows)


INSIDE = {
    "drift_image_base": ".3f", "drift_image_novel": ".3f", "drift_text_base": ".3f",
    "drift_text_novel": ".3f",
    "kept": ".1%", "overlap": ".1%", "explained": ".0%",
}  # fmt: skip


def inside(lines: Lines, variants: Sequence[str]) -> str:
    """Make a table of drift and subspace of variants, means over data sets."""
    rows = []
    for variant in variants:
        cells = []
        for figure, form in INSIDE.items():
            values = by_set(lines, variant, figure)
            cells.append(format(fmean(values.values()), form) if values else "–")
        rows.append([variant, *cells])
    return _table(["", *(name.replace("_", ", ") for name in INSIDE)], rows)


def change(mean: float, half: float | None) -> str:
    """Write a mean with its sign and half the width of its interval."""
    return f"{mean:+.1f}" + (f" ± {half:.1f}" if half else "")


def screened(lines: Lines, variants: Sequence[str], control: str = "neither") -> str:
    """Make a table of means over data sets, and their differences from a control on the same
    sets."""
    rows = []
    explains = any("explained" in line for line in lines)
    for variant in variants:
        values = {figure: by_set(lines, variant, figure) for figure in (*FIGURES, "explained")}
        if not values["base"]:
            continue
        cells = [f"{fmean(values[figure].values()):.1f}" for figure in FIGURES]
        for figure in FIGURES:
            changed = change(*difference(lines, variant, control, figure))
            cells.append("–" if variant == control else changed)
        if explains:
            explained = values["explained"].values()
            cells.append(f"{fmean(explained):.0%}" if explained else "–")
        rows.append([variant, *cells, str(len(values["base"]))])
    figures = ["base", "novel", "HM"]
    heads = ["", *figures, *(f"{figure} - {control}" for figure in figures)]
    return _table([*heads, *["explained"] * explains, "data sets"], rows)


def backbones(lines: Lines) -> str:
    """Make a table of zero-shot and `neither` on each backbone with 16 shots, and of what each loss
    changes there."""
    rows, pairs = [], (PAIRS[0], PAIRS[2])
    for backbone in dict.fromkeys(line["backbone"] for line in lines):
        own = [line for line in lines if (line["backbone"], line["shots"]) == (backbone, 16)]
        means = []
        for prefix in ("zero_shot_", ""):
            figures = (by_set(own, "neither", prefix + figure).values() for figure in FIGURES)
            means.append(" / ".join(f"{fmean(values):.1f}" for values in figures))
        measured = [difference(own, *pair, figure) for pair in pairs for figure in FIGURES]
        rows.append([backbone, *means, *(change(*both) for both in measured)])
    heads = [
        f"{one} - {other}, {figure}" for one, other in pairs for figure in ("base", "novel", "HM")
    ]
    return _table(["", "zero-shot", "neither", *heads], rows)


FACTORS = {
    "norm": "block", "alpha": 0.3, "epochs": 30, "target": "frozen", "local": False,
    "share": "none",
}  # fmt: skip
CALLED = {
    "lambda_text_con": "constraint", "norm": "norm", "alpha": "alpha 0.3", "epochs": "30 epochs",
    "target": "target frozen", "local": "into the trunk", "share": "share none",
}  # fmt: skip


def combinations(lines: Lines) -> str:
    """Make a table of the HM of each combination with and without reconstruction, and of what
    changes it: a factor's effect is the mean of the four combinations that have it minus that of
    the other four."""
    pairs: dict[str, dict[str, Line]] = {}
    for line in lines:
        name, what = line["variant"].split(", ")
        pairs.setdefault(name, {})[what] = line
    rows, changes = [], {}
    for name, both in pairs.items():
        fields = both["reconstruction"]["fields"]
        has = [key for key in CALLED if key in FACTORS and fields[key] == FACTORS[key]]
        has = ["lambda_text_con", *has] if fields["lambda_text_con"] else has
        names = (f"{name}, reconstruction", f"{name}, none")
        mean, half = difference(lines, *names, "hm")
        means = [f"{fmean(by_set(lines, one, 'hm').values()):.1f}" for one in reversed(names)]
        factors = ", ".join(CALLED[key] for key in has)
        place = name.removeprefix("combination ")
        rows.append([place, factors, *means, change(mean, half)])
        changes[name] = set(has)
    for factor in ("all", *CALLED):
        called = "mean" if factor == "all" else f"effect of {CALLED[factor]}"
        rows.append(["", called, *_effect(lines, changes, factor)])
    return _table(["", "what it has", "HM without", "HM with", "with - without"], rows)


def _effect(lines: Lines, has: Mapping[str, set[str]], factor: str) -> list[str]:
    """Return the effect of a factor on HM without and with reconstruction, and on their difference,
    over data sets."""
    weights = {name: 2.0 if factor in factors else -2.0 for name, factors in has.items()}
    if factor == "all":
        weights = dict.fromkeys(has, 1.0)
    effects = []
    for kind in ("none", "reconstruction"):
        hms = {name: by_set(lines, f"{name}, {kind}", "hm") for name in has}
        sets = list(next(iter(hms.values())))
        effects.append(
            np.array([fmean(weights[name] * hms[name][data] for name in has) for data in sets])
        )
    gain = effects[1] - effects[0]
    form = ".1f" if factor == "all" else "+.1f"
    cells = [f"{d.mean():{form}}" for d in effects]
    if factor in ("target", "local", "share"):  # ways to reconstruct, which do nothing without it
        cells = ["–", "–"]
    return [*cells, change(gain.mean(), half_width(gain))]


def dialled(lines: Lines) -> list[dict[str, Any]]:
    """Return the lines, and the trained models at other dials as variants of their own."""
    more = [dict(line) for line in lines]
    for line in lines:
        common = {name: value for name, value in line.items() if name != "explained"}
        for dial in line["fields"].get("dials", ()):
            base, novel = line[f"base at {dial:g}"], line[f"novel at {dial:g}"]
            figures = {"base": base, "novel": novel, "hm": harmonic_mean(base, novel)}
            more.append({**common, "variant": f"alpha times {dial:g}", **figures})
    return more


def reported_lines(lines: Lines) -> dict[int, Lines]:
    """Return the lines on data sets for reporting by shots."""
    return {
        shots: [x for x in lines if x["data"] not in CHOOSE and x["shots"] == shots]
        for shots in (4, 16)
    }


def drawn(lines: Lines) -> str:
    """Draw what each loss changes on the data sets for reporting, as SVG."""
    first = reported_lines([line for line in lines if line["backbone"] == FIRST])
    rows = {
        f"{one} - {other},\n{shots} shots, {len(paired(first[shots], one, other, 'hm'))} sets": {
            name: interval(paired(first[shots], one, other, name.lower())) for name in SERIES
        }
        for one, other in PAIRS[:3]
        for shots in (16, 4)
    }
    return forest(rows, "losses", "What reconstruction and constraint change, in points")


def tables(lines: Lines) -> dict[str, str]:
    """Make every table of the page and its records by its name."""
    first = dialled([line for line in lines if line["backbone"] == FIRST])
    choosing = [line for line in first if line["data"] in CHOOSE and line["shots"] == 16]
    reported = reported_lines(first)
    tables: dict[str, str] = {}
    for shots, selected in reported.items():
        tables |= _reported_tables(selected, shots)
    tables |= _screening_tables([line for line in choosing if line["precision"] == "bf16"])
    later = [line for line in choosing if line["precision"] == "fp32"]
    averages = [name for name in _variants() if name.startswith(("neither", "ema"))]
    tables["averages"] = screened(later, [name for name in averages if "," not in name])
    tables["backbones"] = backbones(
        [
            line
            for line in lines
            if line["data"] in CHOOSE and line["precision"] == "fp32" and line["variant"] in MAIN
        ]
    )
    combined = [line for line in later if line["variant"].startswith("combination")]
    if combined:
        tables["combinations"] = combinations(combined)
    if any(line["variant"] == BEST[0] for line in reported[16]):
        tables["best accuracies"] = accuracies(reported[16], BEST[::-1])
        tables["best differences"] = differences(reported[16], [BEST])
    return tables


def _variants() -> list[str]:
    from reconstruction import VARIANTS

    return list(VARIANTS)


def _reported_tables(lines: Lines, shots: int) -> dict[str, str]:
    tables = {}
    if lines:
        tables[f"accuracies at {shots} shots"] = accuracies(lines)
        tables[f"differences at {shots} shots"] = differences(lines, PAIRS)
        tables[f"inside at {shots} shots"] = inside(lines, MAIN)
        mechanism = differences(lines, PAIRS[:2], ("kept, %", "overlap, %"))
        tables[f"mechanism at {shots} shots"] = mechanism
    if any(line["variant"] == DIALS[0][0] for line in lines):
        tables[f"dial at {shots} shots"] = differences(lines, DIALS)
    return tables


def _screening_tables(lines: Lines) -> dict[str, str]:
    names = list(dict.fromkeys(line["variant"] for line in lines))
    paper = [name for name in names if name.startswith(("paper", "MMA"))]
    plain = (
        "weight decay", "output", "3 epochs", "5 epochs", "alpha times", "constraint", "both",
        "neither",
    )  # fmt: skip
    elsewhere = (*plain, "ema", "combination")
    screening = [n for n in _variants() if n not in paper and not n.startswith(elsewhere)]
    regularisers = [name for name in names if name.startswith(plain) and "," not in name]
    return {
        "screening": screened(lines, screening),
        "regularisers": screened(lines, regularisers),
        "paper": screened(lines, paper, "paper"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="that take the tables")
    parser.add_argument("--figure", type=Path, metavar="SVG")
    args = parser.parse_args()
    lines = read(args.lines)
    show(tables(lines), *args.pages)
    if args.figure:
        write_text(args.figure, drawn(lines))


if __name__ == "__main__":
    main()
