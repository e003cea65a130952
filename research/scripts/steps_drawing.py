"""Draw the picture of research/studies/fewer_steps.md: test accuracy by the number of steps.

python research/scripts/steps_drawing.py research/results/fewer_steps.jsonl \\
    research/studies/fewer_steps.svg

A point is a variant of fewer_steps.py: its mean accuracy on the data sets for choosing, and
the median of its steps over these sets, in shares of the default's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from families import average
from fewer_steps import AVERAGED, DEFAULT, SHARE, Variant, accuracies, share_of
from studies import CHOOSE_ALL, Lines, read_lines

from rmadapter.support.files import write_text
from rmadapter.support.html import COLOURS, canvas

CONSTANT = [Variant(epochs, constant=True).name for epochs in (3, 5)]
CURVES: dict[str, tuple[str, str, list[str]]] = {  # label: colour, format, titles of variants
    "default rate": ("ink", "o-", [Variant(epochs).name for epochs in (1, 2, 3, 5, 10)]),
    "twice the rate": ("adapted", "s-", [Variant(epochs, 2).name for epochs in (1, 2, 3, 5)]),
    "constant rate": ("zero-shot", "D-", CONSTANT),
    "constant rate, averaged": ("zero-shot", "o:", [f"{name}, {AVERAGED}" for name in CONSTANT]),
    "ridge start, default rate": (
        "adapted", "^:", [Variant(epochs, ridge=True).name for epochs in (0, 3)]
    ),
    "plateau": ("ink", "x", [Variant(0, plateau=True).name]),
}  # fmt: skip


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    write_text(out, drawn(read_lines(source)))


def drawn(lines: Lines) -> str:
    """Draw an SVG with a line for each way to train."""
    found = accuracies(lines, CHOOSE_ALL)
    whole = average(found[DEFAULT.name])
    with canvas(5.6, 3.4, "steps", "Test accuracy by the share of the steps") as (axes, out):
        for label, (colour, style, titles) in CURVES.items():
            axes.plot(
                [100 * share_of(lines, "steps", title, CHOOSE_ALL) for title in titles],
                [average(found[title]) for title in titles],
                style,
                color=COLOURS[colour],
                label=label,
            )
        label = f"{SHARE:.0%} of the default"
        axes.axhline(SHARE * whole, color=COLOURS["ink"], linestyle=":", linewidth=1, label=label)
        axes.set(xlabel="% of the default's steps", ylabel="test accuracy, %")
        axes.legend(fontsize="small")
    return out[0]


if __name__ == "__main__":
    main()
