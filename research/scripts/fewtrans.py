"""Ask of our data sets what Luo et al. (2026, arXiv 2603.00478) found on theirs: is plain
fine-tuning level with methods of few parameters, if each answers as an ensemble over its settings?

    python research/scripts/fewtrans.py --root DATA --out research/results/fewtrans.jsonl
    python research/scripts/fewtrans.py --out research/results/fewtrans.jsonl --tables \\
        --page research/studies/fewtrans.md

Each method is trained with its rate times 0.1, 1 and 10, on the same shots; the ensemble averages
the three probabilities of each class. `seeds` are three trainings with one rate, which differ in
their seed. `wordings` are five prompts, of zero-shot and of the default. A line is one data set,
number of shots and variant. Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from studies import (
    REPORT_ALL,
    TESTED,
    Line,
    Lines,
    append_lines,
    make_parser,
    markdown,
    read_lines,
    show,
    with_verdicts,
)

from rmadapter import metrics
from rmadapter.data.fewshot import split_digest
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions

SETS = sorted(set(REPORT_ALL) - {"grocery"})[:8]
SHOTS, DRAW = (4, 16), 1
FACTORS = (0.1, 1.0, 10.0)
# name of a row -> method, its settings, the setting that is varied, and its middle
METHODS: Mapping[str, tuple[str, Mapping[str, Any], str, float]] = {
    "full fine-tuning": ("full-finetune", {}, "learning_rate", 1e-5),
    "full fine-tuning, images": ("full-finetune", {"sides": "image"}, "learning_rate", 1e-5),
    "adapters alone": ("rmadapter-plain", {}, "learning_rate", 6e-3),
    "RMAdapter+": ("rmadapter-plus", {}, "learning_rate", 6e-3),
    "linear probe": ("linear-probe", {"search_steps": 0}, "C", 0.316),
}
PAIRS = (
    ("full fine-tuning", "adapters alone"),
    ("full fine-tuning, images", "adapters alone"),
    ("full fine-tuning", "RMAdapter+"),
    ("full fine-tuning", "linear probe"),
    ("RMAdapter+", "linear probe"),
)
SEEDS = (1, 2, 3)  # of a training; all learn from the images of DRAW
SEEDED = {f"{name}, seeds": name for name in ("full fine-tuning", "adapters alone", "RMAdapter+")}
WORDINGS = (
    "a photo of a {}.",
    "{}",
    "a picture of the {}.",
    "this is {}.",
    "a close-up of a {}, in a collection of images.",
)
WORDED = {"zero-shot, wordings": "zero-shot", "RMAdapter+, wordings": "rmadapter-plus"}
VARIANTS = (*METHODS, *SEEDED, *WORDED)


def settings_of(variant: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the method of a variant, and the settings with which it is trained in turn."""
    if variant in WORDED:
        return WORDED[variant], [{"templates": [wording]} for wording in WORDINGS]
    if variant in SEEDED:
        method, own, name, middle = METHODS[SEEDED[variant]]
        return method, [{**own, name: middle, "seed": seed} for seed in SEEDS]
    method, own, name, middle = METHODS[variant]
    return method, [{**own, name: middle * factor} for factor in FACTORS]


def trial(lab: Lab, data: str, shots: int, variant: str, backbone: str) -> dict[str, Any]:
    """Train a variant with each of its settings; return the test accuracies of each, and of the
    mean of their probabilities."""
    method, every = settings_of(variant)
    tables, line = [], {"data": data, "shots": shots, "draw": DRAW, "variant": variant}
    common = {"backbone": backbone, "shots": shots, "seed": DRAW}
    few = lab.draw(Request.make(common, method, data=data).task)
    test = lab.splits(data)["test"]
    line["split_digest"] = split_digest(few)
    for settings in every:
        request = Request.make({**common, **settings}, method, data=data)
        fitted = learn(request.method, few.train, request.task, few, lab)
        models = {"": fitted.score(test.classes)}
        tables.append(predict_all(models, fitted, lab.test_cache(request.task), test, DRAW)[""])
    mean = torch.stack(tables).mean(0)
    accuracies = [metrics.accuracy(table.numpy(), test.labels) for table in (*tables, mean)]
    *each, together = (round(accuracy, 4) for accuracy in accuracies)
    return line | {"settings": every, "each": each, "ensemble": together}


# Tables


def table_of(lines: Lines, shots: int) -> list[list[str]]:
    """Return a row for each method: the mean accuracy with each factor, of the best of them on each
    test set, and of the ensemble."""
    rows = []
    for variant in METHODS:
        own = of(lines, shots, variant)
        columns = [*zip(*(line["each"] for line in own), strict=True)]
        figures = [*columns, [max(line["each"]) for line in own], [x["ensemble"] for x in own]]
        rows.append([variant, *(f"{fmean(figure):.1f}" for figure in figures)])
    return rows


def of(lines: Lines, shots: int, variant: str) -> list[Line]:
    """Return the lines of a variant with a number of shots, by data set."""
    own = [line for line in lines if (line["shots"], line["variant"]) == (shots, variant)]
    return sorted(own, key=lambda line: str(line["data"]))


def differences(lines: Lines, shots: int, value: Callable[[Line], float]) -> list[list[str]]:
    """Compare PAIRS, which are tested together, over data sets."""
    found = {}
    for one, other in PAIRS:
        both = zip(of(lines, shots, one), of(lines, shots, other), strict=True)
        found[f"{one} - {other}"] = [[value(a) - value(b)] for a, b in both]
    return [[name, *cells] for name, cells in with_verdicts(found, 1).items()]


def seeds(lines: Lines, shots: int) -> tuple[list[list[str]], list[list[str]]]:
    """Return a row for each of SEEDED: the mean accuracy of a training, of the ensemble over seeds,
    and of that over rates; and both steps from one to the next, tested together over data sets."""
    rows, found = [], {}
    for variant, name in SEEDED.items():
        both = [*zip(of(lines, shots, variant), of(lines, shots, name), strict=True)]
        alone, seeded, rates = zip(
            *((fmean(one["each"]), one["ensemble"], other["ensemble"]) for one, other in both),
            strict=True,
        )
        rows.append([name, *(f"{fmean(figure):.1f}" for figure in (alone, seeded, rates))])
        steps = {"three seeds - one": (seeded, alone), "three rates - three seeds": (rates, seeded)}
        for step, (more, less) in steps.items():
            found[f"{name}, {step}"] = [[a - b] for a, b in zip(more, less, strict=True)]
    return rows, [[name, *cells] for name, cells in with_verdicts(found, 1).items()]


def wordings(lines: Lines) -> list[list[str]]:
    """Return a row for each method and number of shots: its mean accuracy with each prompt, and the
    mean over data sets of the difference between the best and the worst prompt of a set."""
    rows = []
    for variant, shots in itertools.product(WORDED, SHOTS):
        own = of(lines, shots, variant)
        if not own:
            continue
        columns = zip(*(line["each"] for line in own), strict=True)
        spread = fmean(max(line["each"]) - min(line["each"]) for line in own)
        cells = [*(f"{fmean(column):.1f}" for column in columns), f"{spread:.1f}"]
        rows.append([WORDED[variant], str(shots), *cells])
    return rows


def tables(lines: Lines) -> dict[str, str]:
    """Make the tables of research/studies/fewtrans.md by name."""
    found = {}
    for shots in (few for few in SHOTS if of(lines, few, "linear probe")):
        head = [f"{len(of(lines, shots, 'linear probe'))} sets, in %"]
        head += [*(f"rate x {factor:g}" for factor in FACTORS), "best of three on the test set"]
        found[f"{shots} images"] = markdown([*head, "ensemble"], table_of(lines, shots))
        rows = differences(lines, shots, lambda line: float(line["ensemble"]))
        found[f"{shots} images, compared"] = markdown(["ensembles", *TESTED], rows)
        rows = differences(lines, shots, lambda line: float(line["each"][1]))
        found[f"{shots} images, rate x 1"] = markdown(["alone", *TESTED], rows)
        if of(lines, shots, next(iter(SEEDED))):
            rows, tested = seeds(lines, shots)
            head = ["in %", "one seed", "ensemble over seeds", "ensemble over rates"]
            found[f"{shots} images, seeds"] = markdown(head, rows)
            found[f"{shots} images, seeds, compared"] = markdown(["ensembles", *TESTED], tested)
    head = ["method", "images", *(f'"{wording}"' for wording in WORDINGS), "spread"]
    return found | {"wordings": markdown(head, wordings(lines))}


def run(args: Any, done: set[tuple[str, int, str]], shots: Sequence[int]) -> None:
    """Run what is not done, set by set."""
    for data in args.data:
        lab = Lab(root=args.root, keep=True, progress=False)
        for few, variant in itertools.product(shots, args.variants):
            if (data, few, variant) not in done:
                line = trial(lab, data, few, variant, args.backbone)
                append_lines(args.out, [{**line, "versions": versions()}])
                print(data, few, variant, line["each"], line["ensemble"], flush=True)


def main() -> None:
    parser = make_parser(__doc__, SETS, seeds=False)
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS, metavar="NAME")
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--page", type=Path, help="page for the tables")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    run(args, {(line["data"], line["shots"], line["variant"]) for line in lines}, args.shots)


if __name__ == "__main__":
    main()
