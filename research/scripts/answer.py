"""Run the registered study of research/studies/registration.md: what methods learn about the
classes that they train, keep about others, and know about all of them together.

    python research/scripts/answer.py --question units --root DATA \\
        --out research/results/units.jsonl
    python research/scripts/answer.py --question keeping --units research/results/units.jsonl \\
        --root DATA --out research/results/keeping.jsonl

`units` asks the untouched backbone about halves of the classes, drawn at random; nothing is
trained. `keeping` trains each variant on one half, and asks about all classes in one list; what it
gets right among the classes of each half follows from the same answers. `--variants` of MECHANISM
ask whether the paper's mechanism can work, `--base 10 25 50` trains on so many classes of the first
half alone. `tuning` is `keeping` with random settings of TUNED, whose variants are called "mma #3".
mechanism_tables.py makes the tables of these three.

A line is one draw of classes and images: a data set, a number of shots, a draw and a variant.
Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from mechanism import Prepared
from reconstruction import NO_CON, NO_REC, READ, spread, subspace
from sklearn.metrics import roc_auc_score
from studies import (
    CHOOSE_ALL,
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
from torch import Tensor

from rmadapter import metrics
from rmadapter.bench.report.stats import LEVEL, holm, over_sets
from rmadapter.data.fewshot import half, split_digest
from rmadapter.data.image_set import ImageSet
from rmadapter.methods.rmadapter import RMAdapter
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.task import Task
from rmadapter.training.contract import Fitted, Known
from rmadapter_research.search_space import make_space, optuna

# with all domains of two sets, which count as one set each
DOMAINS = {
    "pacs": ("photo", "art_painting", "cartoon", "sketch"),
    "office_caltech": ("web", "product", "desk"),
}
SETS = tuple(
    dict.fromkeys(
        name
        for data in (*CHOOSE_ALL, *REPORT_ALL)
        for name in (
            [f"{data.split('/')[0]}/{domain}" for domain in DOMAINS[data.split("/")[0]]]
            if "/" in data
            else [data]
        )
    )
)
CHOSEN = "plus, keep 0.4"  # afterwards, by untouched_share.py
# name -> method, settings, and how its adapters are prepared
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "zero-shot": ("zero-shot", {}, {}),
    "ridge": ("ridge", {}, {}),
    "neither": ("rmadapter", NO_REC | NO_CON, {}),
    "reconstruction": ("rmadapter", NO_CON, {}),
    "reconstruction, printed": ("rmadapter", {**NO_CON, "target": "output"}, {}),
    "constraint": ("rmadapter", NO_REC, {}),
    "both": ("rmadapter", {}, {}),
    "both, printed": ("rmadapter", {"target": "output"}, {}),
    "plus": ("rmadapter-plus", {"keep": 0.5}, {}),  # the default when this was registered
    CHOSEN: ("rmadapter-plus", {"keep": 0.4}, {}),
    "mmrl": ("mmrl", {}, {}),
    "mma": ("mma", {}, {}),
    "mma-adamw": ("mma-adamw", {}, {}),
}
KEEPING = tuple(name for name in VARIANTS if name != CHOSEN)
TUNED, TRIALS = ("both", "neither", "mmrl", "mma"), 10  # R6
MECHANISM: dict[str, dict[str, Any]] = {
    "as usual": {},
    "principal directions": {"principal": True},
    "branch first": {"steps": 2000},
    "principal directions, branch first": {"principal": True, "steps": 2000},
}
VARIANTS |= {name: ("rmadapter", NO_CON, {"steps": 0, **how}) for name, how in MECHANISM.items()}
VARIANTS |= {  # R7
    "reconstruction, adapted": ("rmadapter", {**NO_CON, "target": "adapted"}, {}),
    "both, adapted": ("rmadapter", {"target": "adapted"}, {}),
}
KEY = ("data", "draw", "shots", "variant", "base")  # of a line
SHARES = tuple(round(0.1 * step, 1) for step in range(11))  # of the trained model
ERRORS = 3  # standard errors above chance, from which there is something to keep


def permuted(images: ImageSet, draw: int) -> ImageSet:
    """Return the images with their classes in an order that depends on the draw, so that the first
    half of them is a random one."""
    order = list(range(len(images.classes)))
    random.Random(draw).shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    return replace(
        images,
        classes=tuple(images.classes[i] for i in order),
        written=tuple(images.written[i] for i in order),
        labels=tuple(place[label] for label in images.labels),
    )


def drawn(lab: Lab, data: str, draw: int, base: int = 0) -> str:
    """Add a data set with its classes in the order of a draw to the lab, and return its name.

    base: leaves out the first half's other classes, and the second half from the images to train
    on; 0 leaves nothing out.
    """
    name = f"{data}@{draw}" + f"#{base}" * bool(base)
    splits = {part: permuted(images, draw) for part, images in lab.splits(data).items()}
    if base:
        first = half(splits["train"], "base").classes[:base]
        second = half(splits["test"], "novel").classes
        splits = {
            "train": only(splits["train"], first),
            "test": only(splits["test"], (*first, *second)),
        }
    lab.add(name, splits)
    return name


def only(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Return the images of these classes, in this order of classes."""
    place = {images.classes.index(name): i for i, name in enumerate(classes)}
    part = images.subset(i for i, label in enumerate(images.labels) if label in place)
    return replace(
        part,
        classes=tuple(classes),
        written=tuple(images.written[old] for old in place),
        labels=tuple(place[label] for label in part.labels),
    )


def described(variant: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return what VARIANTS says of a variant; of "NAME #3", with random settings of seed 3.

    Raises ValueError for an unknown one, as argparse expects.
    """
    name, mark, number = variant.partition(" #")
    if name not in VARIANTS:
        raise ValueError(variant)
    method, settings, prepared = VARIANTS[name]
    if not mark:
        return method, settings, prepared
    space = make_space(Request.make(settings, method, data="-").method, method)
    sampler = optuna().samplers.RandomSampler(seed=int(number))
    drawn = optuna().create_study(sampler=sampler).ask(space).params
    return method, settings | drawn, prepared


def known(variant: str) -> str:
    """Return the name of a variant."""
    described(variant)
    return variant


# Measuring


def above_chance(accuracy: float, images: int, classes: int) -> float:
    """Return by how many standard errors of a guess an accuracy in % is above chance."""
    chance = 1 / classes
    return float((accuracy / 100 - chance) / np.sqrt(chance * (1 - chance) / images))


def unit(lab: Lab, data: str, draw: int, backbone: str) -> dict[str, Any]:
    """Ask the untouched backbone about both halves of a draw."""
    common = {"backbone": backbone, "shots": 1, "seed": draw, "classes": "base"}
    request = Request.make(common, "zero-shot", data=drawn(lab, data, draw))
    line: dict[str, Any] = {"data": data, "draw": draw}
    for question, images, _ in lab.tests(request.task):
        fitted = ask_untouched(lab, request, images)
        table = predict_all(
            {"": fitted.score()}, fitted, lab.test_cache(request.task), images, draw
        )
        accuracy = metrics.accuracy(table[""].numpy(), images.labels)
        z = above_chance(accuracy, len(images), len(images.classes))
        line[question.name] = round(accuracy, 4)
        line[f"{question.name}_errors"] = round(z, 2)
    return line | {"keeps": line["novel_errors"] >= ERRORS}


def ask_untouched(lab: Lab, request: Request, images: ImageSet) -> Fitted:
    """Return zero-shot for the classes of the images."""
    backbone = lab.backbone(request.task.backbone)
    return ZeroShot().restore(backbone, Known(images.classes, request.task.templates), {})


def trial(
    lab: Lab, data: str, shots: int, draw: int, variant: str, backbone: str, base: int = 0
) -> dict[str, Any]:
    """Train a variant on the first half of a draw's classes, or on the first `base` of them, and
    ask about these and the second half."""
    name, settings, prepared = described(variant)
    common = {"backbone": backbone, "shots": shots, "seed": draw, **settings}
    common["classes"] = "all" if base else "base"
    request = Request.make(common, name, data=drawn(lab, data, draw, base))
    task, few, method = request.task, lab.draw(request.task), request.method
    if prepared:
        assert isinstance(method, RMAdapter)
        method = Prepared(method, **prepared)
    train, test = half(few.train, task.classes), lab.splits(task.data)["test"]
    started = time.monotonic()
    fitted = learn(method, train, task, few, lab)
    line: dict[str, Any] = {"data": data, "shots": shots, "draw": draw, "variant": variant}
    line["base"] = base
    line |= {"settings": settings | prepared, "seconds": round(time.monotonic() - started, 2)}
    models = {
        "ours": fitted.score(test.classes),
        "untouched": ask_untouched(lab, request, test).score(test.classes),
    }
    tables = predict_all(models, fitted, lab.test_cache(task), test, draw)
    line |= measures(tables["ours"].numpy(), tables["untouched"].numpy(), test, len(train.classes))
    if isinstance(method, Prepared):
        novel = test.subset(i for i, label in enumerate(test.labels) if label >= len(train.classes))
        line["explained"] = explained(lab, task, method.inner, fitted, novel)
    line |= {"trained": list(train.classes), "images": len(test), "split": split_digest(few)}
    return line


@torch.no_grad()
def explained(
    lab: Lab, task: Task, method: RMAdapter, fitted: Fitted, images: ImageSet
) -> float | None:
    """Return the share of the variance of what the image adapters read that their reconstruction
    explains, on some images of novel classes; None without reconstruction."""
    model, tape = method.model(fitted.backbone), list[tuple[int, Tensor]]()
    model.adapters.load_state_dict(dict(fitted.tensors))
    pixels = lab.test_cache(task).tensors(spread(images, READ), 0, False)
    with model.attached(tape) as clip:
        clip.encode_image(torch.stack([pixels[i] for i in range(len(pixels))]).to(model.device))
    each = [subspace(model.adapters.image[str(block)], x.flatten(0, -2)) for block, x in tape]
    shares = [one["explained"] for one in each if "explained" in one]
    return round(fmean(shares), 5) if shares else None


def measures(
    ours: np.ndarray, untouched: np.ndarray, images: ImageSet, base: int
) -> dict[str, Any]:
    """Measure what probabilities [N, C] over all classes say, of which the first `base` were
    trained.

    frontier: [base, novel, joint] accuracy in % for each of SHARES of the trained model in a
    logarithmic mix with the untouched one; base and novel among the classes of their half, joint
    among all. confused: % of the base images that are answered with a novel class, and the other
    way. auroc: of the probability that an image is of a trained class, in % (50: guessing).
    chance: what guesses among the classes of base, novel and both get.
    """
    labels, tiny = np.array(images.labels), 1e-30
    of_base = labels < base
    frontier = []
    for share in SHARES:
        table = share * np.log(ours + tiny) + (1 - share) * np.log(untouched + tiny)
        right = (
            table[of_base, :base].argmax(1) == labels[of_base],
            table[~of_base, base:].argmax(1) == labels[~of_base] - base,
            table.argmax(1) == labels,
        )
        frontier.append([round(100 * float(hits.mean()), 4) for hits in right])
    answered_base = ours.argmax(1) < base
    confused = (~answered_base[of_base], answered_base[~of_base])
    return {
        "frontier": frontier,
        "confused": [round(100 * float(wrong.mean()), 4) for wrong in confused],
        "chance": [100 / n for n in (base, len(images.classes) - base, len(images.classes))],
        "auroc": round(100 * float(roc_auc_score(of_base, ours[:, :base].sum(1))), 4),
    }


# Tables


def novel_at(frontier: Sequence[Sequence[float]], base: float) -> float:
    """Return the largest novel accuracy on a frontier, with straight lines between its points,
    where base accuracy is at least `base`; NaN if it never is."""
    best = [novel for got, novel, *_ in frontier if got >= base]
    for (one, first, *_), (two, second, *_) in itertools.pairwise(frontier):
        if min(one, two) <= base <= max(one, two) and one != two:
            best.append(first + (second - first) * (base - one) / (two - one))
    return max(best, default=float("nan"))


def at_equal_base(one: Line, other: Line) -> float:
    """Return how much more novel accuracy one line has than another, both at the larger base
    accuracy that both reach."""
    level = min(max(base for base, *_ in line["frontier"]) for line in (one, other))
    return novel_at(one["frontier"], level) - novel_at(other["frontier"], level)


def crossing(frontier: Sequence[Sequence[float]], base: float) -> float:
    """Return the novel accuracy where a frontier, followed from its first point on, first has a
    base accuracy; NaN if it never has."""
    for (one, first, *_), (two, second, *_) in itertools.pairwise(frontier):
        if min(one, two) <= base <= max(one, two):
            return first + (second - first) * (base - one) / (two - one) if one != two else first
    return float("nan")


def at_equal_crossing(one: Line, other: Line, step: int) -> float:
    """Return how much more novel accuracy one line has than another, as `at_equal_base`, but each
    where its frontier first crosses that base accuracy: from the untouched model on (step 1), or
    from the trained one (-1)."""
    frontiers = [line["frontier"][::step] for line in (one, other)]
    level = min(max(base for base, *_ in frontier) for frontier in frontiers)
    ours, theirs = (crossing(frontier, level) for frontier in frontiers)
    return ours - theirs


def hm(line: Line) -> float:
    """Return the harmonic mean of base and novel accuracy in %."""
    return metrics.harmonic_mean(*line["frontier"][-1][:2])


FIGURES: dict[str, Callable[[Line, Line], float]] = {
    "base": lambda a, b: a["frontier"][-1][0] - b["frontier"][-1][0],
    "novel": lambda a, b: a["frontier"][-1][1] - b["frontier"][-1][1],
    "novel at equal base": at_equal_base,
    "joint": lambda a, b: a["frontier"][-1][2] - b["frontier"][-1][2],
}
MIXED = ("neither", "both", "plus", "mmrl", "mma", "mma-adamw")  # looked at afterwards
PAIRS = (  # R2 and R5
    ("reconstruction", "neither"),
    ("reconstruction, printed", "neither"),
    ("constraint", "neither"),
    ("both", "neither"),
    ("both", "ridge"),
    ("both", "mmrl"),
    ("both", "mma-adamw"),
    ("plus", "both"),
    ("plus", "ridge"),
)
ROOTS = {name.split("/")[0] for name in REPORT_ALL}
ADAPTED = (  # R7
    ("reconstruction, adapted", "neither"),
    ("reconstruction, adapted", "reconstruction, printed"),
    ("both, adapted", "neither"),
    ("both, adapted", "both"),
    ("both, adapted", "both, printed"),
)
RIVALS = tuple((CHOSEN, name) for name in ("plus", "zero-shot", "neither", "ridge", "both"))
# Looked at afterwards, over all data sets, and what may stand in place of the largest.
LOSSES = ("reconstruction", "reconstruction, printed", "constraint", "both")
WHOLE = {
    **{name: FIGURES[name] for name in ("base", "novel", "joint")},
    "HM": lambda one, other: hm(one) - hm(other),
}
EQUAL_BASE = {
    "largest": at_equal_base,
    "from the trained model": lambda one, other: at_equal_crossing(one, other, -1),
    "from the untouched one": lambda one, other: at_equal_crossing(one, other, 1),
}
# by the end of a table's name
FAMILIES: dict[str, Sequence[tuple[str, str]]] = {"": PAIRS, ", chosen": RIVALS}


def differences(
    lines: Lines, figure: Callable[[Line, Line], float], pairs: Sequence[tuple[str, str]] = PAIRS
) -> list[list[str]]:
    """Compare pairs, which are tested together, over data sets."""
    found = {f"{one} - {other}": by_set(lines, figure, one, other) for one, other in pairs}
    named = {name: sets for name, sets in found.items() if sets}
    return [[name, *cells] for name, cells in with_verdicts(named, 1).items()]


def by_set(
    lines: Lines, figure: Callable[[Line, Line], float], one: str, other: str
) -> list[list[float]]:
    """Return how one variant differs from another, by data set, whose domains and draws count as
    draws."""
    runs = {(line["data"], line["draw"], line["variant"]): line for line in lines}
    sets: dict[str, list[float]] = {}
    for data, draw, variant in runs:
        if variant == one and (data, draw, other) in runs:
            pair = (runs[data, draw, name] for name in (one, other))
            sets.setdefault(data.split("/")[0], []).append(figure(*pair))
    return [*sets.values()]


def of_sets(lines: Lines, sets: Sequence[str], shots: int) -> list[Line]:
    """Return the lines with a number of shots on data sets, whose other domains count, too."""
    roots = {name.split("/")[0] for name in sets}
    return [
        line for line in lines if line["shots"] == shots and line["data"].split("/")[0] in roots
    ]


def averages(lines: Lines, value: Callable[[Line], float]) -> list[float]:
    """Average a value over the domains and draws of each data set."""
    found: dict[str, list[float]] = {}
    for line in lines:
        found.setdefault(line["data"].split("/")[0], []).append(value(line))
    return [fmean(values) for values in found.values()]


def of_variant(lines: Lines, variant: str) -> list[Line]:
    return [line for line in lines if line["variant"] == variant]


def mixed(lines: Lines) -> list[list[str]]:
    """Compare the joint accuracy of each of MIXED, half and half with the untouched model, with its
    own."""
    gains: dict[str, dict[str, list[float]]] = {}
    half = SHARES.index(0.5)
    for line in lines:
        if line["variant"] in MIXED:
            sets = gains.setdefault(line["variant"], {})
            (*_, mix), (*_, own) = (line["frontier"][place] for place in (half, -1))
            sets.setdefault(line["data"].split("/")[0], []).append(mix - own)
    named = {f"{name}, mixed": [*gains[name].values()] for name in MIXED if name in gains}
    return [[name, *cells] for name, cells in with_verdicts(named, 1).items()]


def shared_by_all(lines: Lines) -> set[str]:
    """Return the data sets that all variants of the lines have."""
    sets: dict[str, set[str]] = {}
    for line in lines:
        sets.setdefault(line["variant"], set()).add(line["data"].split("/")[0])
    return set.intersection(*sets.values()) if sets else set()


def means(lines: Lines) -> list[list[str]]:
    """Average each variant over the data sets that all variants have."""
    by_variant: dict[str, dict[str, list[list[float]]]] = {}
    for line in lines:
        figures = [*line["frontier"][-1], *line["confused"], line["auroc"]]
        name = line["data"].split("/")[0]
        by_variant.setdefault(line["variant"], {}).setdefault(name, []).append(figures)
    if not by_variant:
        return []
    shared = shared_by_all(lines)
    guesses = {line["data"].split("/")[0]: line["chance"] for line in lines}
    guess = np.mean([guesses[name] for name in sorted(shared)], axis=0)
    rows = [["chance", *(f"{value:.1f}" for value in guess), "–", "–", "50.0"]]
    for variant in (name for name in VARIANTS if name in by_variant):
        per_set = [np.mean(by_variant[variant][name], axis=0) for name in sorted(shared)]
        rows.append([variant, *(f"{value:.1f}" for value in np.mean(per_set, axis=0))])
    return rows


# Looked at afterwards


def estimate(sets: Sequence[Sequence[float]]) -> str:
    """Write a mean over data sets with its 95 % interval, which is corrected for nothing."""
    mean, half = fmean(map(fmean, sets)), over_sets(sets).half
    interval = f" ({mean - half:.1f} to {mean + half:.1f})" if half is not None else ""
    return f"{mean:+.1f}{interval}"


def estimates(
    lines: Lines,
    figures: Mapping[str, Callable[[Line, Line], float]],
    pairs: Sequence[tuple[str, str]],
) -> list[list[str]]:
    """Return a row for each number of images and each pair: the data sets that have both variants,
    and the estimates of the figures."""
    rows = []
    for shots in sorted({line["shots"] for line in lines}):
        some = [line for line in lines if line["shots"] == shots]
        for one, other in pairs:
            found = [by_set(some, figure, one, other) for figure in figures.values()]
            if found[0]:
                cells = [str(len(found[0])), *map(estimate, found)]
                rows.append([str(shots), f"{one} - {other}", *cells])
    return rows


def corrected_together(lines: Lines) -> list[list[str]]:
    """Return a row for each registered difference on the data sets for reporting that its own table
    shows: with p corrected for that table, and for all of the tables."""
    tests: dict[tuple[int, str, str], list[list[float]]] = {}
    own: dict[tuple[int, str, str], float] = {}
    for shots, figure in itertools.product(sorted({line["shots"] for line in lines}), FIGURES):
        some = of_sets(lines, REPORT_ALL, shots)
        table = {
            (shots, figure, f"{one} - {other}"): sets
            for one, other in PAIRS
            if (sets := by_set(some, FIGURES[figure], one, other)) and over_sets(sets).p is not None
        }
        if table:
            p = holm([float(over_sets(sets).p or 0) for sets in table.values()]).tolist()
            own |= dict(zip(table, p, strict=True))
            tests |= table
    if not tests:
        return []
    every = holm([float(over_sets(sets).p or 0) for sets in tests.values()]).tolist()
    return [
        [str(shots), figure, name, estimate(sets), f"{own[shots, figure, name]:.3f}", f"{p:.3f}"]
        for ((shots, figure, name), sets), p in zip(tests.items(), every, strict=True)
        if own[shots, figure, name] < LEVEL
    ]


def afterwards(lines: Lines) -> dict[str, str]:
    """Make the tables of what was looked at afterwards by name."""
    pairs = [(name, "neither") for name in LOSSES]
    reported = [line for line in lines if line["data"].split("/")[0] in ROOTS]
    rivals = (("both", "neither"), ("both", "mmrl"), ("plus", "both"))
    count = len(FIGURES) * len(PAIRS) * len({line["shots"] for line in lines})
    return {
        **{
            f"afterwards: losses, {few} shots": markdown(
                ["images", "difference", "sets", *WHOLE], rows
            )
            for few in sorted({line["shots"] for line in lines})
            if (rows := [x for x in estimates(lines, WHOLE, pairs) if x[0] == str(few)])
        },
        "afterwards: novel at equal base": markdown(
            ["images", "novel at equal base, sets for reporting", "sets", *EQUAL_BASE],
            estimates(reported, EQUAL_BASE, rivals),
        ),
        "afterwards: corrected together": markdown(
            ["images", "figure", "difference", "points", "p, its table", f"p, all {count}"],
            corrected_together(lines),
        ),
    }


HEADS = ["base", "novel", "joint", "base as novel", "novel as base", "AUROC"]


def tables(lines: Lines) -> dict[str, str]:
    """Make the tables of docs/studies/answer.md by name."""
    found = {}
    for title, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        for shots in sorted({line["shots"] for line in lines}):
            some = of_sets(lines, sets, shots)
            head = f"{len(shared_by_all(some))} sets, in %"
            if some:
                found[f"{title}: {shots} shots"] = markdown([head, *HEADS], means(some))
            if any(line["variant"] in MIXED for line in some):
                rows = mixed(some)
                found[f"{title}: {shots} shots, mixed"] = markdown(["joint", *TESTED], rows)
            for figure, (family, pairs) in itertools.product(FIGURES, FAMILIES.items()):
                rows = differences(some, FIGURES[figure], pairs)
                if rows:
                    name = f"{title}: {shots} shots, {figure}{family}"
                    found[name] = markdown([f"difference, {figure}", *TESTED], rows)
    return found | afterwards(lines)


def main() -> None:
    parser = make_parser(__doc__, SETS, seeds=False)
    parser.add_argument("--question", choices=("units", "keeping", "tuning"), required=True)
    parser.add_argument("--units", type=Path, help="the lines of `units`; only what keeps is run")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--variants", nargs="+", type=known, help="by default, all of the question")
    parser.add_argument("--base", type=int, nargs="+", default=[0], help="classes to train on")
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="pages for the tables")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), *args.pages)
        return
    variants = args.variants or KEEPING
    if args.question == "tuning":
        names = args.variants or TUNED
        variants = [f"{name} #{i}" for name in names for i in range(1, TRIALS + 1)]
    units = read_lines(args.units) if args.units else []
    keeps = {(line["data"], line["draw"]) for line in units if line["keeps"]}
    done = {tuple(line.get(name) for name in KEY) for line in lines}
    for data, draw in itertools.product(args.data, args.draws):
        lab = Lab(root=args.root, keep=True, progress=False)
        if args.question == "units" and (data, draw, None, None, None) not in done:
            save(args.out, unit(lab, data, draw, args.backbone))
        if (data, draw) in keeps:
            for base, shots, variant in itertools.product(args.base, args.shots, variants):
                if (data, draw, shots, variant, base) not in done:
                    save(args.out, trial(lab, data, shots, draw, variant, args.backbone, base))


def save(file: Path, line: Line) -> None:
    append_lines(file, [{**line, "versions": versions()}])
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
