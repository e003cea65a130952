"""Measure what prediction sets keep of their promise. The tables are in docs/studies/promises.md.

    python research/scripts/promises.py --root DATA --out research/results/promises.jsonl --seeds 1
    python research/scripts/promises.py --out research/results/promises.jsonl --tables

A line is a data set, a number of shots, a draw and a method, which is fitted to all classes and
asked about the test images. Sets are calibrated in two ways: by folds of the shots, as `fit` does,
and by images that were held out, which are a random half of the test images, drawn DRAWS times,
with the other half to measure on. How sets are made is chosen on CHOOSE_ALL and reported on
REPORT_ALL. A promise is kept where at most the promised share is missed: in nine of ten
calibrations, if new images are like those that calibrated. Finished lines are kept: repeat the
command to resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import betabinom
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
)

from rmadapter.answers.held_out import rank
from rmadapter.answers.sets import Calibration, in_sets
from rmadapter.data.fewshot import split_digest
from rmadapter.metrics import accuracy
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.features import distances_of, with_means
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from rmadapter.settings import Machine
from rmadapter.support.files import write_text
from rmadapter.support.html import COLOURS, canvas
from rmadapter.support.machine import versions

ERRORS = (0.01, 0.05, 0.1)
DRAWS = 100  # of calibration images
METHODS = ("linear-probe-pair", "rmadapter-plus")
TITLES = {"linear-probe-pair": "both probes", "rmadapter-plus": "RMAdapter+"}
DOMAINS = {
    "pacs/photo": ("pacs/art_painting", "pacs/cartoon", "pacs/sketch"),
    "office_caltech/web": ("office_caltech/product", "office_caltech/desk"),
}
PENALTY, FREE = 0.1, 1  # of RAPS: for each class after the first
# classes [B, C] of the sets, from probabilities of the calibration [N, C], their labels [N], new
# probabilities [B, C] and an error
Sets: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def lac(table: np.ndarray, labels: np.ndarray, new: np.ndarray, error: float) -> np.ndarray:
    """All classes that are probable enough, as the package makes sets."""
    limits = Calibration.of(table, labels, "held out").limits(error, new.shape[1])
    return in_sets(new, limits)


def adaptive(penalty: float) -> Sets:
    """Return adaptive sets: the most probable classes until their sum is large enough (APS, Romano
    et al., 2020), with a penalty for each class after the first (RAPS, Angelopoulos et al.,
    2021)."""

    def scores(table: np.ndarray) -> np.ndarray:
        order = np.argsort(-table, axis=1, kind="stable")
        sums = np.take_along_axis(table, order, 1).cumsum(1)
        sums += penalty * np.maximum(np.arange(table.shape[1]) + 1 - FREE, 0)
        result = np.empty_like(sums)
        np.put_along_axis(result, order, sums, 1)
        return result

    def sets(table: np.ndarray, labels: np.ndarray, new: np.ndarray, error: float) -> np.ndarray:
        own = np.sort(scores(table)[np.arange(len(labels)), labels])
        inside: np.ndarray = scores(new) <= own[len(own) - rank(len(own), error)]
        inside[np.arange(len(new)), new.argmax(1)] = True
        return inside

    return sets


SETS: Mapping[str, Sets] = {"lac": lac, "aps": adaptive(0.0), "raps": adaptive(PENALTY)}


def figures(inside: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """Return the shares in % of images whose sets miss their class, and that are answered, the
    share of answers that are right (None without any; lines before December 2026 have 0), and the
    mean number of classes in a set."""
    hit = inside[np.arange(len(labels)), labels]
    alone = inside.sum(1) == 1
    right = round(100 * float(hit[alone].mean()), 4) if alone.any() else None
    missed, answered = (round(100 * float(rate), 4) for rate in (1 - hit.mean(), alone.mean()))
    return [missed, answered, right, round(float(inside.sum(1).mean()), 4)]


def mean_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there; None if there is none."""
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def by_halves(table: np.ndarray, labels: np.ndarray, error: float) -> dict[str, list[float | None]]:
    """Return the mean figures of each way to make sets over DRAWS calibrations by half of the
    images, and after them the share in % of calibrations that keep the promise."""
    rng, found = np.random.default_rng(0), {name: list[list[float | None]]() for name in SETS}
    for _ in range(DRAWS):
        order = rng.permutation(len(labels))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        for name, sets in SETS.items():
            inside = sets(table[one], labels[one], table[other], error)
            found[name].append(figures(inside, labels[other]))
    means = {}
    for name, rows in found.items():
        missed, *others = zip(*rows, strict=True)
        kept = 100 * float(np.mean(np.array(missed) <= 100 * error))
        values = (mean_known(missed), *map(mean_known, others), kept)
        means[name] = [None if value is None else round(value, 4) for value in values]
    return means


def trial(lab: Lab, data: str, shots: int, seed: int, method: str, backbone: str) -> dict[str, Any]:
    """Fit a method and measure its sets, also on other domains of the data set, if it has any, and
    how many test images are rejected where a share may be."""
    common = {"backbone": backbone, "shots": shots, "seed": seed}
    request = Request.make(common, method, data=data)
    task, few = request.task, lab.draw(request.task)
    folds = Folds.make(task, few, lab, FOLDS)
    temperature = folds.temperature(request.method, method)
    held_out = folds.tempered(request.method, method, temperature or 1.0)
    outcome = run_task(task, request.method, lab, method, temperature=temperature)
    [evaluation] = outcome.evaluations
    table, labels = evaluation.probabilities, evaluation.labels
    line: dict[str, Any] = {"data": data, "shots": shots, "seed": seed, "method": method}
    line |= {"classes": table.shape[1], "images": len(labels), "calibrated": len(held_out.labels)}
    line["accuracy"] = round(accuracy(table, labels), 4)
    line["folds"] = {
        f"{100 * error:g}": figures(
            lac(held_out.table, np.array(held_out.labels), table, error), labels
        )
        for error in ERRORS
        if rank(len(held_out.labels), error)
    }
    fitted = with_means(outcome.fitted, folds.images, lab.train_cache(task))
    rejection = held_out.calibrate(fitted, "folds", seed).familiarity
    assert rejection is not None
    far = distances_of(fitted, evaluation.images, lab.test_cache(task))
    line["rejected"] = {
        f"{100 * share:g}": round(100 * float(1 - rejection.accepts(table, far, share).mean()), 4)
        for share in rejection.possible()
    }
    line["halves"] = {
        f"{100 * error:g}": by_halves(table, labels, error)
        for error in ERRORS
        if rank(len(labels) // 2, error)
    }
    scorer = {"": outcome.fitted.score()}
    line["domains"] = {}
    for other in DOMAINS.get(data, ()):
        images = lab.splits(other)["test"]
        assert images.classes == evaluation.classes
        new = predict_all(scorer, outcome.fitted, lab.test_cache(task), images, seed)[""].numpy()
        line["domains"][other] = {
            f"{100 * error:g}": figures(lac(table, labels, new, error), np.array(images.labels))
            for error in ERRORS
            if rank(len(labels), error)
        }
    line["split"], line["versions"] = split_digest(few), versions()
    return line


# Tables


def kept(lines: Lines) -> list[list[str]]:
    """Return a row for each number of shots and each error: in how many runs sets calibrated by
    folds keep it, on how many data sets in every run, and how many runs would keep it if folds
    were held-out images: by the beta-binomial, since the test images are few, too."""
    rows = []
    for shots, error in itertools.product(sorted({line["shots"] for line in lines}), ERRORS):
        name = f"{100 * error:g}"
        some = [line for line in lines if line["shots"] == shots and name in line["folds"]]
        if not some:
            continue
        found = [line["folds"][name] for line in some]
        missed, answered, labels = (fmean(row[place] for row in found) for place in (0, 1, 3))
        answers = [
            (row[2], line["images"] * row[1])
            for line, row in zip(some, found, strict=True)
            if row[1]
        ]
        right = ["–", "–"]
        if answers:
            shares, counted = zip(*answers, strict=True)
            means = (fmean(shares), np.average(shares, weights=counted))
            right = [f"{value:.1f}" for value in means]
        good = [line["data"] for line in some if line["folds"][name][0] <= 100 * error]
        broken = {line["data"] for line in some if line["folds"][name][0] > 100 * error}
        sets = len({line["data"] for line in some})
        cells = [str(shots), f"{name} %", f"{sets - len(broken)} of {sets}"]
        expected = fmean(
            betabinom.cdf(int(x["images"] * error), x["images"], k, x["calibrated"] + 1 - k)
            for x in some
            for k in [rank(x["calibrated"], error)]
        )
        cells += [f"{len(good)} of {len(some)}", f"{100 * len(good) / len(some):.0f}"]
        cells += [
            f"{100 * expected:.0f}",
            f"{missed:.1f}",
            f"{labels:.2f}",
            f"{answered:.1f}",
            str(len(answers)),
        ]
        cells += right
        rows.append(cells)
    return rows


def ways(lines: Lines, names: Sequence[str]) -> list[list[str]]:
    """Return a row for each number of shots, each error and each way to make sets, over half of the
    test images."""
    rows = []
    every = sorted({line["shots"] for line in lines})
    for shots, error, name in itertools.product(every, ERRORS, names):
        key = f"{100 * error:g}"
        some = [
            line["halves"][key][name]
            for line in lines
            if line["shots"] == shots and key in line["halves"]
        ]
        if some:
            missed, answered, labels, good = (
                fmean(row[place] for row in some) for place in (0, 1, 3, 4)
            )
            cells = [f"{good:.0f}", f"{missed:.2f}", f"{labels:.3f}", f"{answered:.1f}"]
            rows.append([str(shots), f"{key} %", name, *cells])
    return rows


def rejected(lines: Lines) -> list[list[str]]:
    """Return a row for each method, number of shots and share: in how many runs at most that share
    of the test images, all of the model's classes, are rejected."""
    rows = []
    every = sorted({line["shots"] for line in lines})
    for method, shots, share in itertools.product(METHODS, every, ERRORS):
        name = f"{100 * share:g}"
        found = [
            line["rejected"][name]
            for line in lines
            if (line["method"], line["shots"]) == (method, shots) and name in line["rejected"]
        ]
        if found:
            good = sum(value <= 100 * share for value in found)
            cells = [f"{good} of {len(found)}", f"{100 * good / len(found):.0f}"]
            rows.append([TITLES[method], str(shots), f"{name} %", *cells, f"{fmean(found):.1f}"])
    return rows


def shifted(lines: Lines) -> list[list[str]]:
    """Return a row for each other domain and method: what sets calibrated by all test images of the
    first domain miss there at 5 %."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        for other, by_error in line["domains"].items():
            if "5" in by_error:
                key = (line["data"], other, TITLES[line["method"]])
                found.setdefault(key, []).append(by_error["5"][0])
    return [
        [*names, str(len(values)), f"{fmean(values):.1f}", f"{max(values):.1f}"]
        for names, values in sorted(found.items())
    ]


def tables(lines: Lines) -> dict[str, str]:
    """Make the tables of docs/studies/promises.md by name."""
    parts: dict[str, str] = {}
    heads = [
        "images per class",
        "promised",
        "kept on sets",
        "kept in runs",
        "in %",
        "expected",
        "missed",
    ]
    heads += ["classes", "answered", "runs that answer", "right, mean of these"]
    heads += ["right, all answers"]
    columns = ["images per class", "promised", "sets", "kept in %", "missed", "classes", "answered"]
    turned = ["method", "images per class", "promised", "kept in runs", "in %", "rejected, mean"]
    for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        some = [line for line in lines if line["data"] in sets]
        for method in METHODS:
            rows = kept([line for line in some if line["method"] == method])
            if rows:
                parts[f"{title}: {method}"] = markdown(heads, rows)
        rows = ways(some, [*SETS] if title == "choosing" else ["lac"])
        if rows:
            parts[f"{title}: held out"] = markdown(columns, rows)
        rows = rejected(some)
        if rows:
            parts[f"{title}: rejected"] = markdown(turned, rows)
    heads = ["calibrated on", "asked about", "method", "runs", "missed of 5 %, mean", "most"]
    parts["shift"] = markdown(heads, shifted(lines))
    return parts


def drawn(lines: Lines) -> str:
    """Draw an SVG of what sets of 10 % by folds missed: a point for each set for reporting, the
    mean over its draws."""
    rows: dict[str, list[float]] = {}
    for method, shots in itertools.product(reversed(METHODS), (4, 16)):
        found: dict[str, list[float]] = {}
        some = (line for line in lines if (line["method"], line["shots"]) == (method, shots))
        for line in some:
            if line["data"] in REPORT_ALL and "10" in line["folds"]:
                found.setdefault(line["data"], []).append(line["folds"]["10"][0])
        if found:
            rows[f"{TITLES[method]}, {shots} images"] = [fmean(each) for each in found.values()]
    with canvas(6.4, 0.7 + 0.4 * len(rows), "promises", "Share of images missed, by set") as (
        axes,
        out,
    ):
        axes.axvline(10, color=COLOURS["ink"], linewidth=0.8)
        for place, values in enumerate(rows.values()):
            axes.plot(values, [place] * len(values), "o", color=COLOURS["adapted"], alpha=0.5)
            axes.plot(fmean(values), place, "|", color=COLOURS["ink"], markersize=16)
            axes.annotate(
                f"{fmean(values):.1f}", (max(values), place), (8, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.12 * max(map(max, rows.values())))
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            "% of images missed, 10 % promised; a point is a data set, the bar their mean"
        )
    return out[0]


def main() -> None:
    parser = make_parser(__doc__, (*CHOOSE_ALL, *REPORT_ALL))
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the tables")
    parser.add_argument("--figure", type=Path, metavar="SVG")
    args = parser.parse_args()
    lines: Sequence[Line] = read_lines(args.out)
    if args.tables:
        show(tables(lines), *args.pages)
        if args.figure:
            write_text(args.figure, drawn(lines))
        return
    done = {tuple(line[name] for name in ("data", "shots", "seed", "method")) for line in lines}
    for seed, data in itertools.product(args.seeds, args.data):
        machine = Machine(precision=args.precision)
        lab = Lab(machine, args.root, keep=True, progress=False)
        for shots, method in itertools.product(args.shots, args.methods):
            if (data, shots, seed, method) not in done:
                line = trial(lab, data, shots, seed, method, args.backbone)
                append_lines(args.out, [line])
                print(data, shots, seed, method, line["folds"], flush=True)


if __name__ == "__main__":
    main()
