"""Make the tables of R3, R4, R6 and R7 of research/studies/registration.md from lines of answer.py.

    python research/scripts/mechanism_tables.py \\
        --pages research/studies/mechanism.md research/results/mechanism.md

R3 asks whether the paper's mechanism can work at all, with adapters that are prepared before
training; R4 what the losses do with more classes to train on; R6 what ten random settings bring;
R7 what another reading of Eq. 11 and 12 does. Their lines are mechanism.jsonl, classes.jsonl,
tuning.jsonl and adapted.jsonl in results; those of keeping.jsonl stand beside them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import answer
from answer import hm
from answer_readme import RESULTS
from scipy.stats import chi2
from studies import CHOOSE_ALL, REPORT_ALL, TESTED, Line, Lines, markdown, read_lines, show

LOSSES = ("neither", "reconstruction", "constraint", "both")  # of R4
ROUNDING = 6e-7  # of a share in percent with four digits, per image
PLAIN = "neither"  # what the prepared adapters and the losses are compared with


def shared(lines: Lines, variants: Sequence[str]) -> list[Line]:
    """Return the lines of these variants, on the draws that all of them have."""
    draws = [
        {(line["data"], line["draw"]) for line in answer.of_variant(lines, name)}
        for name in variants
    ]
    common = set.intersection(*draws)
    return [
        line
        for line in lines
        if line["variant"] in variants and (line["data"], line["draw"]) in common
    ]


# R3


def prepared(lines: Lines) -> dict[str, str]:
    """Tabulate what prepared adapters explain and answer, and compare them with adapters alone."""
    names = (PLAIN, *answer.MECHANISM)
    some = shared(answer.of_sets(lines, REPORT_ALL, 16), names)
    figures = [lambda line, at=at: float(line["frontier"][-1][at]) for at in range(3)]
    rows = []
    for name in names:
        own = answer.of_variant(some, name)
        rows.append(
            [name, explained(own), *(f"{fmean(answer.averages(own, x)):.1f}" for x in figures)]
        )
    count = len(answer.averages(answer.of_variant(some, PLAIN), hm))
    head = [f"{count} sets, in %", "explained", "base", "novel", "joint"]
    found = {"R3": markdown(head, rows)}
    pairs = [(name, PLAIN) for name in answer.MECHANISM]
    for figure in ("novel", "novel at equal base"):
        rows = answer.differences(some, answer.FIGURES[figure], pairs)
        found[f"R3, {figure}"] = markdown([f"difference, {figure}", *TESTED], rows)
    found["R3, novel by draw"] = markdown(["novel, points", *answer.MECHANISM], by_draw(some))
    return found


def by_draw(lines: Lines) -> list[list[str]]:
    """Return the change of novel accuracy against adapters alone for each draw, and the test that
    there is none in any of them: the sum of squares, each over what the answers' chance makes of it
    (unpaired binomials)."""
    runs = {(line["data"], line["draw"], line["variant"]): line for line in lines}
    draws = sorted({(data, draw) for data, draw, _ in runs})
    sums = dict.fromkeys(answer.MECHANISM, 0.0)
    rows = []
    for data, draw in draws:
        plain, cells = runs[data, draw, PLAIN], []
        count = novel_images(plain)
        for name in sums:
            shares = [line["frontier"][-1][1] / 100 for line in (runs[data, draw, name], plain)]
            variance = sum(share * (1 - share) for share in shares) / count
            change = shares[0] - shares[1]
            sums[name] += change**2 / variance if change else 0.0
            cells.append(f"{100 * change:+.1f}")
        rows.append([f"{data}, draw {draw}", *cells])
    tests = [f"{total:.1f} (p {chi2.sf(total, len(draws)):.1g})" for total in sums.values()]
    return [*rows, [f"chi-square, {len(draws)} degrees of freedom", *tests]]


def novel_images(line: Line) -> int:
    """Return how many test images of a line are of novel classes: the number of which all its
    shares, given to four digits of a percent, are whole images, as those of base images are of the
    rest.

    Raises ValueError if there is not one such number.
    """
    ends = zip(*line["frontier"], strict=True)
    shares = [{*column, other} for column, other in zip(ends, line["confused"], strict=False)]
    found = [
        count
        for count in range(1, line["images"])
        if all(
            abs(share * of / 100 - round(share * of / 100)) <= ROUNDING * of
            for of, some in zip((line["images"] - count, count), shares, strict=True)
            for share in some
        )
    ]
    if len(found) != 1:
        raise ValueError(f"{line['data']}: {len(found)} numbers of novel images are possible")
    return found[0]


def explained(lines: Lines) -> str:
    """Write the share of variance that the branch explains: the mean, the least and the most of the
    data sets."""
    shares = [line.get("explained") for line in lines]
    if None in shares or not shares:
        return "–"
    each = answer.averages(lines, lambda line: 100 * float(line["explained"]))
    return f"{fmean(each):.1f} ({min(each):.1f} to {max(each):.1f})"


# R4


def classes(lines: Lines) -> dict[str, str]:
    """Tabulate what the losses do with a number of classes to train on."""
    runs = {(line["base"], line["variant"]): line for line in lines}
    rows = []
    for base in sorted({line["base"] for line in lines}):
        plain = runs[base, PLAIN]
        for name in LOSSES:
            line = runs[base, name]
            ends = (f"{value:.1f}" for value in (*line["frontier"][-1], hm(line)))
            gain = "–" if name == PLAIN else f"{answer.at_equal_base(line, plain):+.1f}"
            rows.append([str(base), name, *ends, gain])
    head = ["classes", "losses", "base", "novel", "joint", "HM", "novel at equal base"]
    return {"R4": markdown(head, rows)}


# R6

FIGURES: Mapping[str, Callable[[Line, Line], float]] = {
    "base": answer.FIGURES["base"],
    "novel": answer.FIGURES["novel"],
    "HM": lambda one, other: hm(one) - hm(other),
}


def trials(lines: Lines, name: str) -> dict[str, float]:
    """Return the HM of a method by variant, with its default settings and with random ones: the
    mean over the data sets for choosing, on the draws that all have."""
    some = answer.of_sets(lines, CHOOSE_ALL, 4)
    variants = {line["variant"] for line in some if line["variant"].partition(" #")[0] == name}
    some = shared(some, [*variants])
    return {one: fmean(answer.averages(answer.of_variant(some, one), hm)) for one in variants}


def promoted(lines: Lines, name: str) -> str:
    """Return the variant of a method whose random settings have the largest HM."""
    found = trials(lines, name)
    return max((one for one in found if "#" in one), key=lambda one: found[one])


def drawn(lines: Lines, variant: str) -> dict[str, Any]:
    """Return the settings of a variant, as its lines have them, that its method does not fix."""
    fixed = answer.VARIANTS[variant.partition(" #")[0]][1]
    settings = answer.of_variant(lines, variant)[0]["settings"]
    return {name: value for name, value in settings.items() if name not in fixed}


def tuned(lines: Lines) -> dict[str, str]:
    """Tabulate what random settings bring on the data sets for choosing, and compare the best of
    each method with its default on those for reporting."""
    rows, pairs = [], []
    for name in answer.TUNED:
        best, found = promoted(lines, name), trials(lines, name)
        settings = ", ".join(f"{key}={value:.2g}" for key, value in drawn(lines, best).items())
        rows.append([name, f"{found[name]:.1f}", best, f"{found[best]:.1f}", settings])
        pairs.append((best, name))
    trained = [line for line in answer.of_sets(lines, CHOOSE_ALL, 4) if "#" in line["variant"]]
    head = [
        f"HM, {len(answer.averages(trained, hm))} sets, in %",
        "default",
        "best",
        "its HM",
        "settings",
    ]
    found_tables = {"R6, choosing": markdown(head, rows)}
    for figure, value in FIGURES.items():
        rows = answer.differences(answer.of_sets(lines, REPORT_ALL, 4), value, pairs)
        if rows:
            found_tables[f"R6, {figure}"] = markdown([f"difference, {figure}", *TESTED], rows)
    return found_tables


# R7


def adapted(lines: Lines) -> dict[str, str]:
    """Compare the reading whose gradient reaches the whole adapter with the others, on the draws
    that all of them have."""
    names = tuple(dict.fromkeys(name for pair in answer.ADAPTED for name in pair))
    found = {}
    for (title, sets), shots in itertools.product(
        (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)), (4, 16)
    ):
        some = shared(answer.of_sets(lines, sets, shots), names)
        if not some:
            continue
        count = len(answer.shared_by_all(some))
        head = [f"{count} sets, in %", *answer.HEADS]
        found[f"R7, {title}, {shots} shots"] = markdown(head, answer.means(some))
        for figure, value in answer.FIGURES.items():
            rows = answer.differences(some, value, answer.ADAPTED)
            name = f"R7, {title}, {shots} shots, {figure}"
            found[name] = markdown([f"difference, {figure}", *TESTED], rows)
    return found


def recorded() -> dict[str, str]:
    """Make the tables of the recorded lines."""
    mechanism, steps, tuning, reading, beside = (
        read_lines(RESULTS / f"{name}.jsonl")
        for name in ("mechanism", "classes", "tuning", "adapted", "keeping")
    )
    return (
        prepared([*mechanism, *beside])
        | classes(steps)
        | tuned([*tuning, *beside])
        | adapted([*reading, *beside])
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the tables")
    show(recorded(), *parser.parse_args().pages)


if __name__ == "__main__":
    main()
