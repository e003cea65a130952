"""Choose how much of the adapted model RMAdapter+ uses for classes that are known by name alone.

    python research/scripts/untouched_share.py rsscn7 trashnet rooms \\
        office_caltech/{web,product,desk} \\
        --units research/results/units.jsonl --root DATA \\
        --out research/results/untouched_share.jsonl
    python research/scripts/untouched_share.py --out research/results/untouched_share.jsonl \\
        --tables --beside research/results/keeping.jsonl --pages docs/studies/answer.md

Trains RMAdapter+ on the draws of R2 in research/studies/registration.md, once for each. Its logits
are linear in `keep`, so that a mix of the logarithms of what it says with `keep` 1 and with `keep`
0 is what it says with any `keep` between, up to a constant for each image. Base accuracy does not
depend on `keep`.

The data sets for choosing choose: the `keep` with the most novel accuracy, as the mean over sets
and numbers of shots; of equals the smaller one. Finished lines are kept: repeat the command to
resume.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from answer import SHARES, averages, drawn, measures, of_sets, of_variant, save
from studies import (
    CHOOSE_ALL,
    Lines,
    make_parser,
    markdown,
    read_lines,
    show,
)

from rmadapter.data.fewshot import half, split_digest
from rmadapter.data.image_set import ImageSet
from rmadapter.methods.rmadapter_plus import RMAdapterPlus
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted

METHOD = "rmadapter-plus"
RIVALS = ("zero-shot", "neither")  # of which the better one may be a point ahead in novel accuracy
NOVEL, JOINT = 1, 2  # places in a point of a frontier
FIGURES = {"novel": NOVEL, "joint": JOINT}


def trial(lab: Lab, data: str, shots: int, draw: int, backbone: str) -> dict[str, Any]:
    """Train on the first half of a draw's classes, and ask with each `keep` about all classes."""
    common = {"backbone": backbone, "shots": shots, "seed": draw, "classes": "base"}
    request = Request.make(common, METHOD, data=drawn(lab, data, draw))
    task, few = request.task, lab.draw(request.task)
    train, test = half(few.train, task.classes), lab.splits(task.data)["test"]
    started = time.monotonic()
    fitted = learn(request.method, train, task, few, lab)
    line: dict[str, Any] = {"data": data, "shots": shots, "draw": draw}
    line["seconds"] = round(time.monotonic() - started, 2)
    return line | {
        "by_keep": ask(fitted, lab.test_cache(task), test, draw),
        "images": len(test),
        "split": split_digest(few),
    }


def ask(fitted: Fitted, cache: Cache, images: ImageSet, draw: int) -> dict[str, list[float]]:
    """Return base, novel and joint accuracy in % of RMAdapter+ by `keep`; the first classes of the
    images are the trained ones."""
    models = {f"{keep}": with_keep(fitted, keep).score(images.classes) for keep in (1.0, 0.0)}
    tables = predict_all(models, fitted, cache, images, draw)
    ends = tables["1.0"].numpy(), tables["0.0"].numpy()
    found = measures(*ends, images, len(fitted.classes))
    return dict(zip(map(str, SHARES), found["frontier"], strict=True))


def with_keep(fitted: Fitted, keep: float) -> Fitted:
    """Return RMAdapter+ with the same weights and another `keep`."""
    assert isinstance(fitted.method, RMAdapterPlus)
    method = replace(fitted.method, keep=keep)
    return method.restore(fitted.backbone, fitted.known, fitted.tensors)


def by_set(
    lines: Lines, sets: Sequence[str], shots: int, keep: float, place: int
) -> dict[str, list[float]]:
    """Return an accuracy with a `keep` by data set, of its domains and draws."""
    roots = {name.split("/")[0] for name in sets}
    found: dict[str, list[float]] = {}
    for line in lines:
        root = line["data"].split("/")[0]
        if line["shots"] == shots and root in roots:
            found.setdefault(root, []).append(line["by_keep"][str(keep)][place])
    return found


def average(lines: Lines, sets: Sequence[str], shots: int, keep: float, place: int) -> float:
    """Return the mean over data sets of the means over domains and draws."""
    return fmean(map(fmean, by_set(lines, sets, shots, keep, place).values()))


def numbers_of_shots(lines: Lines) -> list[int]:
    return sorted({line["shots"] for line in lines})


def chosen(lines: Lines) -> float:
    """Return the `keep` with the most novel accuracy on the data sets for choosing."""
    few = numbers_of_shots(lines)
    return max(
        SHARES,
        key=lambda keep: fmean(average(lines, CHOOSE_ALL, shots, keep, NOVEL) for shots in few),
    )


def choice_table(lines: Lines, beside: Lines) -> str:
    """Tabulate accuracies on the data sets for choosing by `keep`, below those of RIVALS."""
    few = numbers_of_shots(lines)
    columns = [*itertools.product(FIGURES.items(), few)]
    rows = []
    for name in RIVALS:
        means = (rival_mean(lines, beside, name, shots, place) for (_, place), shots in columns)
        rows.append([name, *(f"{mean:.1f}" for mean in means)])
    best = chosen(lines)
    for keep in SHARES:
        cells = [
            f"{average(lines, CHOOSE_ALL, shots, keep, place):.1f}" for (_, place), shots in columns
        ]
        rows.append([f"**keep {keep}**" if keep == best else f"keep {keep}", *cells])
    heads = [f"{title}, {shots} shots" for (title, _), shots in columns]
    count = len(by_set(lines, CHOOSE_ALL, few[0], 0.0, NOVEL))
    return markdown([f"{count} sets for choosing, in %", *heads], rows)


def rival_mean(lines: Lines, beside: Lines, name: str, shots: int, place: int) -> float:
    """Average a variant of `answer.py` over the draws of the lines for choosing."""
    draws = {(line["data"], line["draw"]) for line in lines if line["shots"] == shots}
    some = of_variant(of_sets(beside, CHOOSE_ALL, shots), name)
    some = [line for line in some if (line["data"], line["draw"]) in draws]
    return fmean(averages(some, lambda line: float(line["frontier"][-1][place])))


def main() -> None:
    parser = make_parser(__doc__, seeds=False)
    parser.add_argument("--units", type=Path, help="the lines of `units` of answer.py")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--beside", type=Path, help="lines of `keeping`, for the tables")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the tables")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        beside = read_lines(args.beside) if args.beside else []
        show({"keep": choice_table(lines, beside)}, *args.pages)
        return
    units = read_lines(args.units) if args.units else []
    keeps = {(line["data"], line["draw"]) for line in units if line["keeps"]}
    done = {(line["data"], line["draw"], line["shots"]) for line in lines}
    for data, draw in itertools.product(args.data, args.draws):
        lab = Lab(root=args.root, keep=True, progress=False)
        for shots in args.shots:
            if (data, draw) in keeps and (data, draw, shots) not in done:
                save(args.out, trial(lab, data, shots, draw, args.backbone))


if __name__ == "__main__":
    main()
