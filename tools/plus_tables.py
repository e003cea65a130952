"""The tables of docs/plus.md, from the lines that tools/plus.py wrote.

    python tools/plus_tables.py docs/results/plus.jsonl --page docs/plus.md

A data set counts once, with the mean of its seeds, as in tools/reconstruction_tables.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plus import PIECES
from reconstruction_tables import CHOOSE, differences, screened, show
from reconstruction_tables import read as read_study

from rmadapter.metrics import harmonic_mean

STUDY = Path(__file__).parents[1] / "docs/results/reconstruction.jsonl"
CHOSEN_ON = (*CHOOSE, "caltech101")
TOLD = (
    *(
        "zero-shot",
        "zero-shot, 8 templates",
        "adapters",
        "and regression",
        "and untouched",
        "RMAdapter+",
    ),
    *("without adapters", "without adapters, regression 2", "without regression", "RMAdapter"),
)
OTHERS = ("zero-shot", "adapters", "without adapters, regression 2", "RMAdapter")
PAIRS = tuple(("RMAdapter+", other) for other in OTHERS)


def read(path: Path, study: Path) -> list[dict[str, Any]]:
    """A line for each piece of each run, with its harmonic mean; and RMAdapter's lines from the
    study of its losses."""
    found = []
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        own = {name: value for name, value in line.items() if name not in PIECES}
        for name in PIECES:
            scores = line[name]
            found.append(
                {
                    **own,
                    "variant": name,
                    **scores,
                    "hm": harmonic_mean(scores["base"], scores["novel"]),
                }
            )
    runs = {(line["data"], line["shots"], line["seed"], line["precision"]) for line in found}
    for line in read_study(study):
        if (
            line["variant"] == "both"
            and (line["data"], line["shots"], line["seed"], line["precision"]) in runs
        ):
            found.append({key: line[key] for key in found[0]} | {"variant": "RMAdapter"})
    return found


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Every table of the page by its name."""
    found = {}
    for what, chosen in (("choosing", True), ("reporting", False)):
        for shots in (4, 16):
            some = [
                line
                for line in lines
                if (line["data"] in CHOSEN_ON) == chosen and line["shots"] == shots
            ]
            if some:
                found[f"{what}, {shots} shots"] = screened(
                    some, list(PIECES) if chosen else TOLD, "adapters"
                )
            if some and not chosen:
                found[f"differences, {shots} shots"] = differences(some, PAIRS)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", type=Path)
    parser.add_argument(
        "--study", type=Path, default=STUDY, help="lines of tools/reconstruction.py"
    )
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    show(tables(read(args.lines, args.study)), args.page)


if __name__ == "__main__":
    main()
