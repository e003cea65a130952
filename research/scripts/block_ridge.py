"""Measure the closed form on every block beside its controls.

    python research/scripts/block_ridge.py --root DATA --out research/results/block_ridge.jsonl
    python research/scripts/block_ridge.py --out research/results/block_ridge.jsonl --tables \\
        --page docs/studies/block_ridge.md

On 1, 2, 4, 8, 16 and all training images of a class: `block-ridge` and its kernels one by one, the
project's `ridge`, logistic regression on the encoder's last features and on the parts of all
blocks, whose C is the best of six by four folds, and zero-shot. Each line has the accuracy and the
log loss on the test images, and, where the method knows them, those of its leave-one-out answers,
each half of the shots by what the other half chose; those of block-ridge also by what all chose,
unguarded. Beside them stand RMAdapter+'s lines of pocket_3.py. Finished lines are kept: repeat the
command to resume.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from all_images import CS, LEFT_OUT
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
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

from rmadapter import metrics
from rmadapter.data.fewshot import FewShot, split_digest
from rmadapter.encoders import PARTS
from rmadapter.methods import load_method
from rmadapter.methods.block_ridge import BlockRidge, Rows, search
from rmadapter.methods.parts.features import unit
from rmadapter.runs.evaluate import predict_all
from rmadapter.runs.lab import Lab
from rmadapter.runs.run import learn
from rmadapter.settings import Machine
from rmadapter.support.machine import versions
from rmadapter.task import Task
from rmadapter.training.shots import Shots

BACKBONE = "pocket-3"
SHOTS = (1, 2, 4, 8, 16, 0)
METHOD = "block-ridge"
KERNELS = ("last", "late", "all", "mixed")
LAST_FEATURES, ALL_BLOCKS = "logistic regression", "logistic regression, all blocks"
TRAINED = "RMAdapter+"  # of pocket_3.jsonl
METHODS: Mapping[str, tuple[str, dict[str, object]]] = {
    METHOD: (METHOD, {}),
    **{f"{METHOD}, {name}": (METHOD, {"blocks": name}) for name in KERNELS},
    "ridge": ("ridge", {}),
    "zero-shot": ("zero-shot", {}),
}
AGAINST, AGAINST_SHOTS = (LAST_FEATURES, ALL_BLOCKS, TRAINED), (1, 4, 16, 0)
ANSWERS = {" on test images": "", ", left out": "left_out_", ", left out, unguarded": "unguarded_"}
Facts = dict[str, Any]


def of_methods(lab: Lab, task: Task, few: FewShot) -> Iterator[Facts]:
    """Yield the lines of all methods of the project."""
    [(_, tests, _)] = lab.tests(task, few)
    for title, (name, settings) in METHODS.items():
        method = load_method(name, settings)
        started = time.process_time()
        fitted = learn(method, few.train, task, few, lab)
        seconds = time.process_time() - started
        models = {title: fitted.score()}
        table = predict_all(models, fitted, lab.test_cache(task), tests, task.seed)[title]
        facts = {"method": title, "cpu_seconds": round(seconds, 2), **rates(table.numpy(), tests)}
        if fitted.left_out is not None and fitted.left_out.judged.any():
            rows = np.flatnonzero(fitted.left_out.judged).tolist()
            found = rates(fitted.left_out.table[rows], few.train.subset(rows))
            facts |= {f"left_out_{name}": value for name, value in found.items()}
            if title == METHOD:
                by_all = unguarded(lab, task, few)
                found = rates(by_all[rows], few.train.subset(rows))
                facts |= {f"unguarded_{name}": value for name, value in found.items()}
        yield facts


def unguarded(lab: Lab, task: Task, few: FewShot) -> np.ndarray:
    """Return the leave-one-out answers [N, C] of the shots by what all of them chose."""
    backbone, cache = lab.backbone(task.backbone), lab.train_cache(task)
    shots, method = Shots(few.train, cache, task.templates, task.seed, progress=False), BlockRidge()
    shown = method.shown(backbone, shots, unit(shots.plain_features()).double())
    rows = Rows.of(backbone, shots, method.blocks)
    if not shown.can_choose:
        return softmax(shown.prior, axis=1)
    judged = np.flatnonzero((shown.others > 0).numpy())
    [best] = search(rows.candidates([*rows.mixes], None), shown, [judged])
    table: np.ndarray = softmax(best.logits, axis=1)
    return table


def of_regressions(lab: Lab, task: Task, few: FewShot) -> Iterator[Facts]:
    """Yield the lines of logistic regression; with one image of a class, C is 1."""
    [(_, tests, _)] = lab.tests(task, few)
    train, test = lab.train_cache(task), lab.test_cache(task)
    both = ((train, few.train), (test, tests))
    last = [unit(cache.features(images)[0]) for cache, images in both]
    parts = [
        cache.features(images, first=PARTS, of=lambda states: states.x.float().flatten(1))[0]
        for cache, images in both
    ]
    # all that a linear model of N images sees of them, in N numbers
    values, vectors = torch.linalg.eigh((parts[0] @ parts[0].T).double())
    kept = values > 1e-6 * values[-1]
    back = parts[0].T @ (vectors[:, kept] / values[kept].sqrt()).float()
    scale = parts[0].norm(dim=1).mean()  # as last features have
    seen = [part @ back / scale for part in parts]
    for title, (x, y) in {LAST_FEATURES: last, ALL_BLOCKS: seen}.items():
        started = time.process_time()
        labels = np.array(few.train.labels)
        model = LogisticRegression(max_iter=2000)
        folds = min(4, int(np.bincount(labels).min()))
        if folds > 1:
            model = GridSearchCV(model, {"C": CS}, cv=folds)
        model.fit(x.numpy(), labels)
        seconds = time.process_time() - started
        found = rates(model.predict_proba(y.numpy()), tests)
        yield {"method": title, "cpu_seconds": round(seconds, 2), **found}


def rates(table: np.ndarray, images: Any) -> dict[str, float]:
    """Return accuracy and log loss of probabilities [N, C]."""
    labels = np.array(images.labels)
    right = np.maximum(table[np.arange(len(labels)), labels], 1e-9)
    return {
        "accuracy": round(metrics.accuracy(table, labels), 4),
        "log_loss": round(float(-np.log(right).mean()), 5),
    }


def measure(lab: Lab, data: str, shots: int, seed: int) -> list[Facts]:
    """Return the lines of a draw of a set."""
    task = Task(data, backbone=BACKBONE, shots=shots)
    # one seed for what methods draw: a lab keeps what it encoded until the seed changes
    few = lab.draw(replace(task, seed=seed))
    about = {
        "data": data,
        "shots": shots,
        "seed": seed,
        "classes": len(few.train.classes),
        "split_digest": split_digest(few),
        "backbone": lab.backbone(BACKBONE).digest,
        "versions": versions(),
    }
    found = itertools.chain(of_methods(lab, task, few), of_regressions(lab, task, few))
    return [{**about, **facts} for facts in found]


# Tables


def means(lines: Lines, sets: Iterable[str], figure: str) -> dict[str, dict[int, float]]:
    """Return the mean over sets of a figure, by method and number of images; only where every set
    was asked."""
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if figure in line:
            found[line["method"], line["shots"]][line["data"]].append(line[figure])
    wanted = {*sets}
    result: dict[str, dict[int, float]] = defaultdict(dict)
    for (method, shots), by_set in found.items():
        if wanted <= {*by_set}:
            result[method][shots] = fmean(fmean(by_set[data]) for data in wanted)
    return result


def table(lines: Lines, sets: Iterable[str], figures: Mapping[str, str], digits: int) -> str:
    """Tabulate means by number of images.

    Args:
        lines: Lines of the study.
        sets: Sets to take the mean of.
        figures: What to tabulate, by the words for it.
        digits: Digits after the point.
    """
    head = ["", *(f"{shots or 'all'}" for shots in SHOTS)]
    rows = []
    for words, figure in figures.items():
        for method, by_shots in means(lines, sets, figure).items():
            cells = [
                f"{by_shots[shots]:.{digits}f}" if shots in by_shots else "–" for shots in SHOTS
            ]
            rows.append([f"{method}{words}", *cells])
    return markdown(head, rows)


def verdicts(lines: Lines, sets: Iterable[str]) -> str:
    """Tabulate the differences of test accuracies between block-ridge and others, over sets."""
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        found[line["method"], line["shots"]][line["data"]].append(line["accuracy"])
    differences = {}
    for method, shots in itertools.product(AGAINST, AGAINST_SHOTS):
        ours, theirs = found[METHOD, shots], found[method, shots]
        # means of a set's draws, since RMAdapter+ has draws of its own
        if {*sets} <= {*ours} & {*theirs}:
            differences[f"{method}, {shots or 'all'}"] = [
                [fmean(ours[data]) - fmean(theirs[data])] for data in sets
            ]
    rows = [[title, *cells] for title, cells in with_verdicts(differences, 1).items()]
    return markdown([f"{METHOD} against, images of a class", *TESTED], rows)


def tables(lines: Lines, others: Lines) -> dict[str, str]:
    """Return the tables by their names on the page.

    Args:
        lines: Lines of this study.
        others: Lines of pocket_3.py.
    """
    trained = [
        {**line, "method": TRAINED, "accuracy": line["test"]}
        for line in others
        if line["backbone_name"] == BACKBONE and line["variant"] != LAST_FEATURES
    ]
    result = {}
    for name, sets in (("choosing", CHOOSE_ALL), ("reporting", REPORT_ALL)):
        asked = [data for data in sets if any(line["data"] == data for line in lines)]
        if not asked:
            continue
        every = [*lines, *trained]
        result[f"{name}: accuracy"] = table(every, asked, {"": "accuracy"}, 1)
        result[f"{name}: verdicts"] = verdicts(every, asked)
        own = [line for line in lines if line["method"] == METHOD]
        figures = {words: f"{name}accuracy" for words, name in ANSWERS.items()}
        result[f"{name}: left out"] = table(own, asked, figures, 1)
        figures = {words: f"{name}log_loss" for words, name in ANSWERS.items()}
        result[f"{name}: log loss"] = table(own, asked, figures, 3)
    return result


def main() -> None:
    sets = [name for name in (*CHOOSE_ALL, *REPORT_ALL) if name not in LEFT_OUT]
    parser = make_parser(__doc__, sets)
    parser.add_argument("--shots", type=int, nargs="+", default=[*SHOTS], help="of a class")
    parser.add_argument("--beside", type=Path, default=Path("research/results/pocket_3.jsonl"))
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    options = parser.parse_args()
    lines = read_lines(options.out)
    if options.tables:
        show(tables(lines, read_lines(options.beside)), options.page)
        return
    done = {(line["data"], line["shots"], line["seed"]) for line in lines}
    for data in options.data:
        lab = Lab(Machine(device="cpu"), options.root, keep=True, progress=False)
        # all images first: draws of fewer are parts of what is held
        for shots in sorted(options.shots, key=lambda number: number != 0):
            for seed in options.seeds if shots else options.seeds[:1]:
                if (data, shots, seed) not in done:
                    append_lines(options.out, measure(lab, data, shots, seed))
                    print(data, shots, seed, flush=True)


if __name__ == "__main__":
    main()
