"""The tables of docs/reconstruction.md, from the lines that tools/reconstruction.py wrote.

    python tools/reconstruction_tables.py docs/results/reconstruction.jsonl

A data set counts once, with the mean of its seeds; interval and p are Student's over data sets, p
corrected (Holm) over the rows of a table with the same figure. `--page docs/reconstruction.md` puts
each table in its place on the page, between <!-- NAME --> and <!-- end -->.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import ttest_1samp

from rmadapter.bench.report.stats import half_width, holm
from rmadapter.metrics import harmonic_mean
from rmadapter.support.files import write_text

Line: TypeAlias = Mapping[str, Any]
Lines: TypeAlias = Sequence[Line]
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
    """The lines with their harmonic mean and that of zero-shot."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if {"target", "target_norm", "objective"} & line["fields"].keys():
            line.pop("explained", None)  # there something other than the input is reconstructed
        line |= {f"{name}, %": 100 * line[name] for name in ("kept", "overlap")}
        line["hm"] = harmonic_mean(line["base"], line["novel"])
        line["zero_shot_hm"] = harmonic_mean(line["zero_shot_base"], line["zero_shot_novel"])
    return lines


def by_set(lines: Lines, variant: str, figure: str) -> dict[str, float]:
    """Data set -> mean of a figure over seeds."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line["variant"] == variant and figure in line:
            found[line["data"]][line["seed"]] = line[figure]
    return {data: fmean(values.values()) for data, values in found.items()}


def difference(
    lines: Lines, one: str, other: str, figure: str
) -> tuple[float, float | None, float | None, int]:
    """one minus other over data sets that have both with the same seeds: mean, half width of the
    interval, p, sets."""
    runs = {
        (line["data"], line["seed"], line["variant"]): line[figure]
        for line in lines
        if figure in line
    }
    found: dict[str, list[float]] = defaultdict(list)
    for data, seed, variant in runs:
        if variant == one and (data, seed, other) in runs:
            found[data].append(runs[data, seed, one] - runs[data, seed, other])
    d = np.array([fmean(values) for values in found.values()])
    p = float(ttest_1samp(d, 0).pvalue) if len(d) > 2 and np.ptp(d) > 0 else None
    return float(d.mean()), half_width(d), p, len(d)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def accuracies(lines: Lines, variants: Sequence[str] = MAIN) -> str:
    """base / novel / HM of each data set, and their means."""
    found = [by_set(lines, variant, "hm") for variant in variants]
    sets = [data for data in found[0] if all(data in values for values in found)]
    rows = []
    for variant in ("zero-shot", *variants):
        name = (variants[0], "zero_shot_") if variant == "zero-shot" else (variant, "")
        each = [by_set(lines, name[0], name[1] + figure) for figure in FIGURES]
        cells = [" / ".join(f"{one[data]:.1f}" for one in each) for data in sets]
        rows.append(
            [
                variant,
                *cells,
                " / ".join(f"{fmean(one[data] for data in sets):.1f}" for one in each),
            ]
        )
    return markdown(["", *sets, f"mean of {len(sets)}"], rows)


def differences(
    lines: Lines, pairs: Sequence[tuple[str, str]], figures: Sequence[str] = FIGURES
) -> str:
    """Each pair's difference in points, interval, number of sets, p by Holm, and what it shows."""
    rows = []
    for figure in figures:
        found = [difference(lines, *pair, figure) for pair in pairs]
        tested = [p for _, _, p, _ in found if p is not None]
        corrected = iter(holm(tested).tolist())
        for (one, other), (mean, half, p, sets) in zip(pairs, found, strict=True):
            p = None if p is None else next(corrected)
            verdict = "not shown" if p is None or p >= 0.05 else "ahead" if mean > 0 else "behind"
            ends = "–" if half is None else f"{mean - half:.2f} to {mean + half:.2f}"
            name = "HM" if figure == "hm" else figure
            rows.append(
                [
                    f"{one} - {other}",
                    name,
                    f"{mean:+.2f}",
                    ends,
                    str(sets),
                    f"{p:.3f}" if p else "–",
                    verdict,
                ]
            )
    return markdown(
        ["difference", "", "points", "95 % interval", "data sets", "p", "verdict"], rows
    )


INSIDE = {
    "drift_image_base": ".3f", "drift_image_novel": ".3f", "drift_text_base": ".3f", "drift_text_novel": ".3f",
    "kept": ".1%", "overlap": ".1%", "explained": ".0%",
}  # fmt: skip


def inside(lines: Lines, variants: Sequence[str]) -> str:
    """Drift and subspace of variants, means over data sets."""
    rows = []
    for variant in variants:
        cells = []
        for figure, form in INSIDE.items():
            values = by_set(lines, variant, figure)
            cells.append(format(fmean(values.values()), form) if values else "–")
        rows.append([variant, *cells])
    return markdown(["", *(name.replace("_", ", ") for name in INSIDE)], rows)


def change(mean: float, half: float | None) -> str:
    return f"{mean:+.1f}" + (f" ± {half:.1f}" if half else "")


def screened(lines: Lines, variants: Sequence[str], control: str = "neither") -> str:
    """Means over data sets, and their differences from a control on the same data sets."""
    rows, explains = [], any("explained" in line for line in lines)
    for variant in variants:
        values = {figure: by_set(lines, variant, figure) for figure in (*FIGURES, "explained")}
        if not values["base"]:
            continue
        cells = [f"{fmean(values[figure].values()):.1f}" for figure in FIGURES]
        for figure in FIGURES:
            mean, half, _, _ = difference(lines, variant, control, figure)
            cells.append("–" if variant == control else change(mean, half))
        if explains:
            cells.append(
                f"{fmean(values['explained'].values()):.0%}" if values["explained"] else "–"
            )
        rows.append([variant, *cells, str(len(values["base"]))])
    head = [
        "",
        *("HM" if f == "hm" else f for f in FIGURES),
        *(f"{f} - {control}" for f in ("base", "novel", "HM")),
    ]
    return markdown([*head, *["explained"] * explains, "data sets"], rows)


def backbones(lines: Lines) -> str:
    """Zero-shot and `neither` on each backbone with 16 shots, and what each loss changes there."""
    rows, pairs = [], (PAIRS[0], PAIRS[2])
    for backbone in dict.fromkeys(line["backbone"] for line in lines):
        some = [line for line in lines if (line["backbone"], line["shots"]) == (backbone, 16)]
        means = [
            " / ".join(
                f"{fmean(by_set(some, 'neither', start + figure).values()):.1f}"
                for figure in FIGURES
            )
            for start in ("zero_shot_", "")
        ]
        found = [difference(some, *pair, figure) for pair in pairs for figure in FIGURES]
        rows.append([backbone, *means, *(change(mean, half) for mean, half, _, _ in found)])
    heads = [
        f"{one} - {other}, {figure}" for one, other in pairs for figure in ("base", "novel", "HM")
    ]
    return markdown(["", "zero-shot", "neither", *heads], rows)


FACTORS = {
    "norm": "block",
    "alpha": 0.3,
    "epochs": 30,
    "target": "frozen",
    "local": False,
    "share": "none",
}
CALLED = {
    "lambda_text_con": "constraint", "norm": "norm", "alpha": "alpha 0.3", "epochs": "30 epochs",
    "target": "target frozen", "local": "into the trunk", "share": "share none",
}  # fmt: skip


def combinations(lines: Lines) -> str:
    """HM of each combination with and without reconstruction, and what changes it: a factor's
    effect is the mean of the four combinations that have it minus that of the other four."""
    pairs: dict[str, dict[str, Line]] = {}
    for line in lines:
        name, what = line["variant"].split(", ")
        pairs.setdefault(name, {})[what] = line
    rows, changes = [], {}
    for name, both in pairs.items():
        fields = both["reconstruction"]["fields"]
        has = [
            key
            for key in CALLED
            if (fields[key] == FACTORS[key] if key in FACTORS else fields[key])
        ]
        names = (f"{name}, reconstruction", f"{name}, none")
        mean, half, _, _ = difference(lines, *names, "hm")
        means = [f"{fmean(by_set(lines, one, 'hm').values()):.1f}" for one in reversed(names)]
        rows.append(
            [
                name.removeprefix("combination "),
                ", ".join(CALLED[key] for key in has),
                *means,
                change(mean, half),
            ]
        )
        changes[name] = set(has)
    for factor in ("all", *CALLED):
        called = "mean" if factor == "all" else f"effect of {CALLED[factor]}"
        rows.append(["", called, *_effect(lines, changes, factor)])
    return markdown(["", "what it has", "HM without", "HM with", "with - without"], rows)


def _effect(lines: Lines, has: Mapping[str, set[str]], factor: str) -> list[str]:
    """The effect of a factor on HM without and with reconstruction, and on their difference, over
    data sets."""
    of = {
        what: {name: by_set(lines, f"{name}, {what}", "hm") for name in has}
        for what in ("none", "reconstruction")
    }
    sets = list(next(iter(of["none"].values())))
    sign = {
        name: 1.0 if factor == "all" else 2.0 if factor in own else -2.0
        for name, own in has.items()
    }
    each = [
        np.array([fmean(sign[n] * of[what][n][data] for n in has) for data in sets]) for what in of
    ]
    values = [*each, each[1] - each[0]]
    meant = factor not in (
        "target",
        "local",
        "share",
    )  # these say how to reconstruct, and do nothing without it
    form = ".1f" if factor == "all" else "+.1f"
    return [
        *(f"{d.mean():{form}}" if meant else "–" for d in each),
        change(values[2].mean(), half_width(values[2])),
    ]


def dialled(lines: Lines) -> list[dict[str, Any]]:
    """The lines, and the trained models at other dials as variants of their own."""
    found = [dict(line) for line in lines]
    for line in lines:
        for dial in line["fields"].get("dials", ()):
            base, novel = line[f"base at {dial:g}"], line[f"novel at {dial:g}"]
            own = {"variant": f"alpha times {dial:g}", "hm": harmonic_mean(base, novel)}
            found.append(
                {k: v for k, v in line.items() if k != "explained"}
                | own
                | {"base": base, "novel": novel}
            )
    return found


def tables(lines: Lines) -> dict[str, str]:
    """Every table of the page by its name."""
    from reconstruction import VARIANTS

    lines, others = dialled([line for line in lines if line["backbone"] == FIRST]), lines
    here = [line for line in lines if line["data"] in CHOOSE and line["shots"] == 16]
    chosen, later = ([line for line in here if line["precision"] == p] for p in ("bf16", "fp32"))
    reported = {
        shots: [line for line in lines if line["data"] not in CHOOSE and line["shots"] == shots]
        for shots in (4, 16)
    }
    names = list(dict.fromkeys(line["variant"] for line in chosen))
    paper = [name for name in names if name.startswith(("paper", "MMA"))]
    plain = (
        "weight decay",
        "output",
        "3 epochs",
        "5 epochs",
        "alpha times",
        "constraint",
        "both",
        "neither",
    )
    found = {}
    for shots, some in reported.items():
        if some:
            found[f"accuracies at {shots} shots"] = accuracies(some)
            found[f"differences at {shots} shots"] = differences(some, PAIRS)
            found[f"inside at {shots} shots"] = inside(some, MAIN)
            found[f"mechanism at {shots} shots"] = differences(
                some, PAIRS[:2], ("kept, %", "overlap, %")
            )
        if any(line["variant"] == DIALS[0][0] for line in some):
            found[f"dial at {shots} shots"] = differences(some, DIALS)
    found["screening"] = screened(
        chosen,
        [
            n
            for n in VARIANTS
            if n not in paper and not n.startswith((*plain, "ema", "combination"))
        ],
    )
    found["regularisers"] = screened(
        chosen, [name for name in names if name.startswith(plain) and "," not in name]
    )
    found["paper"] = screened(chosen, paper, "paper")
    more = {
        "averages": screened(
            later, [n for n in VARIANTS if n.startswith(("neither", "ema")) and "," not in n]
        ),
        "backbones": backbones(
            [
                line
                for line in others
                if line["data"] in CHOOSE
                and line["precision"] == "fp32"
                and line["variant"] in MAIN
            ]
        ),
    }
    if tried := [line for line in later if line["variant"].startswith("combination")]:
        more["combinations"] = combinations(tried)
    if any(line["variant"] == BEST[0] for line in reported[16]):
        more["best accuracies"] = accuracies(reported[16], BEST[::-1])
        more["best differences"] = differences(reported[16], [BEST])
    return found | more


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    show(tables(read(args.lines)), args.page)


def show(found: Mapping[str, str], page: Path | None) -> None:
    """Print tables by name, or put them where a page has <!-- NAME --> and <!-- end -->."""
    if page is None:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in found.items()))
        return
    text = page.read_text(encoding="utf-8")
    for name, table in found.items():
        before, mark, rest = text.partition(f"<!-- {name} -->")
        text = before + mark + f"\n\n{table}\n\n" + rest[rest.index("<!-- end -->") :]
    write_text(page, text)


if __name__ == "__main__":
    main()
