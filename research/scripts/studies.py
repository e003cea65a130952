"""What the studies share: options, a file of JSON lines that each of them continues, and tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from rmadapter.bench.report.stats import LEVEL, holm, over_sets
from rmadapter.metrics import confidence_interval
from rmadapter.support.files import write_text

Line: TypeAlias = Mapping[str, Any]  # one line of JSON
Lines: TypeAlias = Sequence[Line]

# Data sets that share no image: rules are chosen on some and reported on the others.
CHOOSE = ("caltech101", "rsscn7", "trashnet", "office_caltech/web")
REPORT = ("grocery", "pacs/photo", "dtd10", "sign_digits", "neu_steel")
# With the sets that came later.
CHOOSE_ALL = (*CHOOSE, "rooms", "blood_cells", "weather", "clouds", "playing_cards")
REPORT_ALL = (
    *(*REPORT, "sports", "euro_coins", "chess_pieces", "aerial_aid", "crop_leaves", "food"),
    *("street_letters", "skin_lesions", "traffic_signs", "pcb_defects"),
)


def make_parser(
    about: str | None, sets: Sequence[str] = (), seeds: bool = True
) -> argparse.ArgumentParser:
    """Make a parser for names of data sets (by default `sets`), --root, --out, --tables and, with
    `seeds`, --seeds."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = f"; by default {' '.join(sets)}" if sets else ""
    parser.add_argument("data", nargs="*", default=[*sets], help=f"sets below --root{default}")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; new ones are appended")
    parser.add_argument(
        "--tables", action="store_true", help="print tables of the lines in --out, and run nothing"
    )
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a file; none if it does not exist yet."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def append_lines(file: Path, lines: Iterable[Line]) -> None:
    """Append lines in one write, each with the time in UTC at which it was `finished`."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = "".join(json.dumps({**line, "finished": now}) + "\n" for line in lines)
    with file.open("a", encoding="utf-8", newline="\n") as out:
        out.write(text)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], spaced: bool = False) -> str:
    """Make a Markdown table. spaced: with spaces in the line below the head."""
    rule = ["---"] * len(head)
    lines = ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]
    if not spaced:
        lines[1] = "|---" * len(head) + "|"
    return "\n".join(lines)


def with_interval(values: Sequence[float], digits: int = 1) -> str:
    """Write a mean with its sign and half the width of its 95 % interval."""
    return f"{fmean(values):+.{digits}f} ± {confidence_interval(values):.{digits}f}"


def with_verdicts(
    differences: Mapping[str, Sequence[Sequence[float]]], digits: int = 2
) -> dict[str, list[str]]:
    """Write the cells of rows that are tested together, by name: mean difference, 95 % interval,
    number of data sets, p corrected for the rows (Holm) and what it shows.

    differences: in points, by row, data set and draw.
    """
    tests = {name: over_sets(sets) for name, sets in differences.items()}
    known = {name: test.p for name, test in tests.items() if test.p is not None}
    corrected = dict(zip(known, holm([*known.values()]).tolist(), strict=True))
    cells = {}
    for name, (half, _, _) in tests.items():
        mean, p = fmean(map(fmean, differences[name])), corrected.get(name)
        interval, verdict = "–", "not shown"
        if half is not None:
            interval = f"{mean - half:.{digits}f} to {mean + half:.{digits}f}"
            verdict += f", at most {abs(mean) + half:.1f}"
        if p is not None and p < LEVEL:
            verdict = "ahead" if mean > 0 else "behind"
        sets = str(len(differences[name]))
        cells[name] = [f"{mean:+.{digits}f}", interval, sets, f"{p:.3f}" if p else "–", verdict]
    return cells


TESTED = ("points", "95 % interval", "data sets", "p", "verdict")


def show(tables: Mapping[str, str], *pages: Path | None) -> None:
    """Print tables by name, or put each where one of the pages has <!-- NAME --> and <!-- end -->.

    Raises ValueError if none of them has a table's place.
    """
    files = [page for page in pages if page]
    if not files:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()))
        return
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    for name, table in tables.items():
        mark = f"<!-- {name} -->"
        file = next((file for file, text in texts.items() if mark in text), None)
        if file is None:
            raise ValueError(f"no page has {mark}")
        before, _, rest = texts[file].partition(mark)
        texts[file] = f"{before}{mark}\n\n{table}\n\n{rest[rest.index('<!-- end -->') :]}"
    for file, text in texts.items():
        write_text(file, text)
