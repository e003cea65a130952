"""Apply the rule of research/studies/registration.md: what `fit` trains if no method is named.

    python research/scripts/default_rule.py --pages docs/studies/answer.md

Only the data sets for choosing decide. A method qualifies if its novel accuracy, after training on
half of the classes, is at most a point below the better one of zero-shot and the adapters alone,
for each number of images that R2 has. Of those the one wins whose accuracy on all classes is least
behind the best method of R1, as the mean over numbers of images; `auto` wins if it is less behind
by more than half a point, on the numbers of images that both have.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import answer
import learning
import untouched_share
from answer_readme import RESULTS, recorded
from studies import CHOOSE_ALL, Lines, markdown, read_lines, show

WITHIN, AHEAD = 1.0, 0.5  # points
AUTO = "auto"
RIVALS = ("zero-shot", "rmadapter-plain")
PLUS = "rmadapter-plus"
# Methods of R1 that can answer with the names of other classes, as variants of R2.
VARIANTS = {
    "zero-shot": "zero-shot",
    "ridge": "ridge",
    "rmadapter": "both",
    "rmadapter-plain": "neither",
    PLUS: "plus",
    "mmrl": "mmrl",
    "mma": "mma",
    "mma-adamw": "mma-adamw",
}
Curve = Mapping[int, float]  # accuracy by images per class


def behind(curves: Mapping[str, Curve], name: str, few: Sequence[int]) -> float | None:
    """Return how far the accuracy of a method is behind the best one, as the mean over numbers of
    images; None if it lacks one of them."""
    if any(shots not in curves[name] for shots in few):
        return None
    best = (max(curve[shots] for curve in curves.values() if shots in curve) for shots in few)
    return fmean(top - curves[name][shots] for top, shots in zip(best, few, strict=True))


def auto_curve(lines: Lines, sets: Sequence[str]) -> dict[int, float]:
    """Return the accuracy of what `auto` chose in R1's draw, by images per class, where all sets
    are there."""
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        if line["chosen"] and line["seed"] == learning.DRAW and line["data"] in sets:
            found.setdefault(line["shots"], {})[line["data"]] = line["test"]
    return {
        shots: fmean(by_set.values())
        for shots, by_set in sorted(found.items())
        if len(by_set) == len(sets)
    }


def novel(kept: Lines, shared: Lines, few: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return novel accuracies on the data sets for choosing by method and images per class.

    shared: lines of untouched_share.py, by which RMAdapter+ uses its chosen `keep`.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in VARIANTS}
    for shots in few:
        some = answer.of_sets(kept, CHOOSE_ALL, shots)
        sets = answer.shared_by_all(some)
        some = [line for line in some if line["data"].split("/")[0] in sets]
        for name, variant in VARIANTS.items():
            own = answer.of_variant(some, variant)
            found[name][shots] = fmean(
                answer.averages(own, lambda line: float(line["frontier"][-1][1]))
            )
        if shared:
            keep = untouched_share.chosen(shared)
            found[PLUS][shots] = untouched_share.average(
                shared, CHOOSE_ALL, shots, keep, untouched_share.NOVEL
            )
    return found


def qualifies(accuracies: Mapping[str, Curve], name: str) -> bool:
    """Whether a method keeps enough of novel classes, for each number of images."""
    return all(
        value >= max(accuracies[rival][shots] for rival in RIVALS) - WITHIN
        for shots, value in accuracies[name].items()
    )


def winner(curves: Mapping[str, Curve], accuracies: Mapping[str, Curve], auto: Curve) -> str:
    """Return the method that the rule takes."""
    few = sorted(curves["zero-shot"])
    distances = {
        name: distance
        for name in VARIANTS
        if qualifies(accuracies, name) and (distance := behind(curves, name, few)) is not None
    }
    best = min(distances, key=lambda name: distances[name])
    both = [shots for shots in few if shots in auto]
    all_curves = {**curves, AUTO: auto}
    ours, other = (behind(all_curves, name, both) for name in (best, AUTO))
    assert ours is not None
    assert other is not None
    return AUTO if ours - other > AHEAD else best


def table(learnt: Lines, kept: Lines, shared: Lines, chosen: Lines) -> str:
    """Tabulate what the rule compares; the winner is bold."""
    sets = learning.sets_of(CHOOSE_ALL)
    curves = {name: curve for name, curve in learning.means(learnt, sets).items() if curve}
    auto, few = auto_curve(chosen, sets), sorted(curves["zero-shot"])
    asked = sorted({line["shots"] for line in kept})
    accuracies = novel(kept, shared, asked)
    best = winner(curves, accuracies, auto)
    rows = []
    for name, curve in {**curves, AUTO: auto}.items():
        own = [shots for shots in few if shots in curve]
        distance = behind({**curves, AUTO: auto}, name, own)
        cells = [f"{accuracies[name][shots]:.1f}" for shots in asked] if name in accuracies else []
        fits = ("yes" if qualifies(accuracies, name) else "no") if name in accuracies else "–"
        rows.append(
            [
                f"**`{name}`**" if name == best else f"`{name}`",
                f"{distance:.1f}" + ("" if own == few else f" ({len(own)} of {len(few)})"),
                *(cells or ["–"] * len(asked)),
                fits,
            ]
        )
    counts = [len(answer.shared_by_all(answer.of_sets(kept, CHOOSE_ALL, shots))) for shots in asked]
    heads = [f"novel, {shots} images, {n} sets" for shots, n in zip(asked, counts, strict=True)]
    return markdown([f"{len(sets)} sets for choosing", "points behind", *heads, "qualifies"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the table")
    args = parser.parse_args()
    show({"rule": recorded_table()}, *args.pages)


def recorded_table() -> str:
    """Return the table of the lines that are recorded."""
    shared, chosen = (
        read_lines(RESULTS / f"{name}.jsonl") for name in ("untouched_share", "choice")
    )
    return table(*recorded(), shared, chosen)


if __name__ == "__main__":
    main()
