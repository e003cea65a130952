"""Draw the picture of docs/studies/fewer_steps.md: test accuracy by the number of steps.

python tools/steps_drawing.py docs/results/fewer_steps.jsonl docs/studies/fewer_steps.svg

A point is a variant of tools/fewer_steps.py: its mean accuracy on the data sets for choosing, and
the median of its steps over these sets, in shares of the default's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from families import average
from fewer_steps import DEFAULT, SHARE, Variant, accuracies, share_of
from studies import CHOOSE_ALL, Lines, read_lines

from rmadapter.support.files import write_text
from rmadapter.support.html import COLOURS, canvas

LAST, AVERAGED = "last", "averaged"
Point = tuple[str, str]  # variant and kind of weights
CURVES: dict[str, tuple[str, str, list[Point]]] = {  # label: colour, format, points
    "default rate": ("ink", "o-", [(Variant(n).name, LAST) for n in (1, 2, 3, 5, 10)]),
    "twice the rate": ("adapted", "s-", [(Variant(n, 2).name, LAST) for n in (1, 2, 3, 5)]),
    "constant rate, averaged": (
        "zero-shot", "D-", [(Variant(n, constant=True).name, AVERAGED) for n in (3, 5)]
    ),
    "ridge start": (
        "adapted", "^:",
        [
            (Variant(0, ridge=True).name, LAST),
            (Variant(1, 2, ridge=True).name, LAST),
            (Variant(3, 2, ridge=True).name, LAST),
        ],
    ),
    "plateau": ("ink", "x", [(Variant(0, plateau=True).name, AVERAGED)]),
}  # fmt: skip


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    write_text(out, drawn(read_lines(source)))


def drawn(lines: Lines) -> str:
    """Draw an SVG with a line for each way to train."""
    found = accuracies(lines, CHOOSE_ALL)
    whole = average(found[DEFAULT.name, LAST])
    with canvas(5.6, 3.4, "steps", "Test accuracy by the share of the steps") as (axes, out):
        for label, (colour, style, points) in CURVES.items():
            axes.plot(
                [100 * share_of(lines, "steps", point, CHOOSE_ALL) for point in points],
                [average(found[point]) for point in points],
                style,
                color=COLOURS[colour],
                label=label,
            )
        axes.axhline(SHARE * whole, color=COLOURS["ink"], linestyle=":", linewidth=1)
        axes.set(xlabel="% of the default's steps", ylabel="test accuracy, %")
        axes.legend(fontsize="small")
    return out[0]


if __name__ == "__main__":
    main()
