"""Measure how well `rmadapter suspects` finds wrong labels. The tables are in
docs/studies/suspects.md.

    python research/scripts/suspects.py --root DATA --out research/results/suspects.jsonl
    python research/scripts/suspects.py --out research/results/suspects.jsonl --tables

A share of the training labels of a set is flipped, at random or to the class that a probe of the
true labels mistakes it for most, and every rule ranks the images. A line is one set, kind, share
and seed, with average precision and precision at k of each rule, where k is the number of flips.
The rule is chosen on CHOOSE and reported on REPORT. If cleanlab is installed (the package does not
need it), its results on the same probabilities are added. Finished lines are kept: repeat the
command to resume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
from studies import CHOOSE, REPORT, Lines, append_lines, make_parser, markdown, read_lines

from rmadapter.artifacts.predictions import Nearest, nearest
from rmadapter.curate.suspects import NEIGHBOURS
from rmadapter.data.duplicates import groups
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.metrics import confidence_interval
from rmadapter.runs.folds import FOLDS, Folds, split
from rmadapter.runs.lab import Lab
from rmadapter.runs.labels import confident, logit_margin
from rmadapter.runs.request import Request
from rmadapter.support.machine import versions
from rmadapter.training.contract import Known, Method, answers

# per class; the other sets use all their images, at most 48 per class
SHOTS = {"caltech101": 12, "grocery": 10}
STRENGTHS = (1.0, 3.0, 10.0)  # C of the probe
KINDS, SHARES = ("random", "confusable"), (5, 10, 20)
PROBES = tuple(f"probe {strength:g}" for strength in STRENGTHS)
KEY = ("data", "kind", "share", "seed")
# the rule that was chosen, by which `rmadapter suspects` judged until block-ridge did
METHOD, PROBE = "linear-probe", {"search_steps": 0, "C": 3.0}


def flipped(
    labels: np.ndarray, target: np.ndarray | None, share: int, classes: int, seed: int
) -> np.ndarray:
    """Return labels [N], `share` per cent of them wrong. target: [C], the wrong label of each
    class; None for random ones."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(len(labels) * share / 100), replace=False)
    changed = labels.copy()
    changed[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    if target is not None:
        changed[rows] = target[labels[rows]]
    return changed


def confusable(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each class the other class with the highest mean probability on its images, [C].
    table: [N, C]."""
    means = np.stack([table[labels == c].mean(0) for c in range(table.shape[1])])
    np.fill_diagonal(means, -1)
    return means.argmax(1)


def self_confidence(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 1 - the probability of the label (Northcutt et al., JAIR 70, 2021)."""
    return 1 - table[np.arange(len(labels)), labels]


def margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return from 0 to 1 how much more probable another class is than the label, the normalised
    margin of the same paper."""
    others = table.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return (1 + others.max(1) - table[np.arange(len(labels)), labels]) / 2


RULES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "self-confidence": self_confidence, "margin": margin, "logit margin": logit_margin,
}  # fmt: skip


def votes(near: Nearest, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return shares of the neighbours' labels, [N, C], each weighted by its cosine; zeros for
    images without neighbours."""
    weights = np.clip(near.cosines, 0, None)
    table = np.zeros((len(weights), classes))
    np.add.at(table, (np.arange(len(weights))[:, None], labels[near.rows]), weights)
    return table / np.maximum(table.sum(1, keepdims=True), 1e-12)


def precisions(score: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Return the average precision, and the precision at k: of the k images with the highest
    scores, k being the number of flips."""
    from sklearn.metrics import average_precision_score

    order = np.argsort(-score, kind="stable")
    at_k = float(wrong[order[: wrong.sum()]].mean())
    return [round(float(average_precision_score(wrong, score)), 4), round(at_k, 4)]


class Study:
    """One data set: its images, features and groups of near-duplicates, computed once."""

    def __init__(self, lab: Lab, data: str, shots: int = 0, backbone: str = "pocket") -> None:
        self.lab, self.data = lab, data
        settings = {"shots": SHOTS.get(data, shots), "backbone": backbone}
        self.task = Request.make(settings, "zero-shot", data=data).task
        self.images = lab.draw(self.task).train
        self.together = groups(self.images.looks(), self.images.groups)
        lab.train_cache(self.task).expect_parts(self.images)

    def answers(
        self, labels: np.ndarray, method: Method, name: str, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return rows [M] that were held out in turn, and answers [M, C] on them by models fitted
        to these labels."""
        images = replace(self.images, labels=tuple(labels.tolist()))
        data = f"{self.data} {images.digest} {seed}"
        task = replace(self.task, data=data, shots=0)  # one seed: one cache
        self.lab.add(task.data, {"train": images})
        parts = split(images, FOLDS, seed, together=self.together)
        folds = Folds(task, self.lab.draw(task), self.lab, images, parts)
        table = folds.answers(method, name).table.astype(float)
        return np.array(folds.rows), table / table.sum(1, keepdims=True)

    @cached_property
    def features(self) -> np.ndarray:
        """Features [N, e] of the untouched encoder."""
        return self.lab.train_cache(self.task).features(self.images)[0].float().numpy()

    @cached_property
    def untouched(self) -> np.ndarray:
        """Probabilities [N, C] of the untouched backbone, which no label can mislead."""
        backbone = self.lab.backbone(self.task.backbone)
        cache = self.lab.train_cache(self.task)
        score = ZeroShot().restore(backbone, Known(self.images.classes), {}).score()
        parts = answers({"it": score}, cache.stream(self.images))
        return np.concatenate([part["it"].numpy() for part in parts])

    @cached_property
    def target(self) -> np.ndarray:
        """The class that a probe of the true labels mistakes each class for most, [C]."""
        labels = np.array(self.images.labels)
        probe = LinearProbe(search_steps=0, C=max(STRENGTHS))
        rows, table = self.answers(labels, probe, "linear-probe", 1)
        return confusable(table, labels[rows])

    def line(self, kind: str, share: int, seed: int) -> dict[str, Any]:
        """Flip labels, and score every rule."""
        true = np.array(self.images.labels)
        classes = len(self.images.classes)
        target = self.target if kind == "confusable" else None
        labels = flipped(true, target, share, classes, seed)
        near = nearest(self.features, count=NEIGHBOURS, groups=self.together)
        tables = {"neighbours": votes(near, labels, classes)}
        for name, strength in zip(PROBES, STRENGTHS, strict=True):
            probe = LinearProbe(search_steps=0, C=strength)
            rows, tables[name] = self.answers(labels, probe, "linear-probe", seed)
        tables["zero-shot"] = self.untouched[rows]
        tables["neighbours"] = tables["neighbours"][rows]
        labels, wrong = labels[rows], (labels != true)[rows]
        scores = {"random": np.random.default_rng(seed).random(len(rows))}
        scores |= score_rules(tables, labels)
        flags = {}
        for name in PROBES:
            better = confident(tables[name], labels)
            flags[name] = precision_recall((better >= 0) & (better != labels), wrong)
            theirs, mask = cleanlab(tables[name], labels)
            scores |= {f"cleanlab, {name}, {rule}": score for rule, score in theirs.items()}
            if mask is not None:
                flags[f"cleanlab, {name}"] = precision_recall(mask, wrong)
        return {
            "images": len(rows),
            "left_out": len(true) - len(rows),
            "flips": int(wrong.sum()),
            "scores": {name: precisions(score, wrong) for name, score in scores.items()},
            "flags": flags,
            "backbone": self.lab.backbone(self.task.backbone).digest,
            "versions": versions() | ({"cleanlab": metadata.version("cleanlab")} if theirs else {}),
        }


def score_rules(tables: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores [M], higher for a label more likely to be wrong, of every rule on every table
    of probabilities [M, C]; and the mean rank by a probe and by the neighbours."""
    from scipy.stats import rankdata

    scores = {
        f"{name}, {rule}": RULES[rule](table, labels)
        for name, table in tables.items()
        for rule in RULES
    }
    for name, rule in product(PROBES, RULES):
        ranks = [rankdata(scores[f"{source}, {rule}"]) for source in (name, "neighbours")]
        scores[f"mean rank of {name} and neighbours, {rule}"] = sum(ranks)
    return scores


def cleanlab(
    table: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return cleanlab's results on the same probabilities: scores, and the labels it calls wrong;
    nothing without cleanlab."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}, None
    scores = {}
    for rule in ("self_confidence", "normalized_margin"):
        for adjust in (False, True):
            quality = get_label_quality_scores(labels, table, method=rule, adjust_pred_probs=adjust)
            scores[f"{'adjusted ' * adjust}{rule}"] = 1 - quality
    return scores, find_label_issues(labels, table, n_jobs=1)


def precision_recall(mask: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Return precision and recall of what a rule calls wrong, and the number of these images."""
    hits = int((mask & wrong).sum())
    called = int(mask.sum())
    return [round(hits / max(called, 1), 4), round(hits / int(wrong.sum()), 4), called]


# Tables of the lines. A set is one observation: the mean over its seeds.


def mean(
    lines: Lines, sets: Iterable[str], score: str, kind: str, share: int, which: int = 0
) -> float:
    """Average a score. which: 0 the average precision, 1 the precision at k."""
    by_set: dict[str, list[float]] = {data: [] for data in sets}
    for line in lines:
        if (line["kind"], line["share"]) == (kind, share) and line["data"] in by_set:
            by_set[line["data"]].append(line["scores"][score][which])
    return fmean(fmean(values) for values in by_set.values() if values)


def overall(lines: Lines, sets: Iterable[str], score: str) -> float:
    """Return the mean average precision over kinds and shares."""
    sets = list(sets)
    return fmean(mean(lines, sets, score, kind, share) for kind, share in product(KINDS, SHARES))


def difference(lines: Lines, one: str, other: str) -> tuple[float, float]:
    """Return the difference in overall average precision on the sets to report on: mean, and half
    the width of the 95 % interval."""
    present = {line["data"] for line in lines}
    d = [
        overall(lines, [data], one) - overall(lines, [data], other)
        for data in REPORT
        if data in present
    ]
    return fmean(d), confidence_interval(d)


def candidates(lines: Lines) -> list[str]:
    """Return the rules to choose from: without cleanlab's and the controls."""
    controls = ("cleanlab", "zero-shot", "random")
    return [name for name in lines[0]["scores"] if not name.startswith(controls)]


def best(lines: Lines) -> str:
    """Return the best rule on the sets to choose on; the first of equal ones."""
    return max(candidates(lines), key=lambda name: round(overall(lines, CHOOSE, name), 4))


def tables(lines: Lines) -> str:
    """Make the tables of docs/studies/suspects.md."""
    columns = list(product(KINDS, SHARES))
    heads = [f"{kind} {share} %" for kind, share in columns]
    leaders: dict[str, str] = {}  # of each rule, with the probe that suits it best
    for name in sorted(lines[0]["scores"], key=lambda name: -overall(lines, CHOOSE, name)):
        leaders.setdefault(re.sub(r"probe \d+", "probe", name), name)
    rules = []
    for name in leaders.values():
        reported = (mean(lines, REPORT, name, *column) for column in columns)
        cells = (overall(lines, CHOOSE, name), *reported)
        rules.append([name, *(f"{cell:.3f}" for cell in cells)])
    chosen = best(lines)
    by_set = []
    present = dict.fromkeys(line["data"] for line in lines)
    for data in sorted(present, key=[*CHOOSE, *REPORT].index):
        pairs = [[mean(lines, [data], chosen, *c, which) for which in (0, 1)] for c in columns]
        by_set.append([data, *(f"{ap:.2f}, {at_k:.2f}" for ap, at_k in pairs)])
    flags = [[name, *(_flag(lines, name, *c) for c in columns)] for name in lines[0]["flags"]]
    parts = [
        markdown(["mean average precision", "choosing", *heads], rules),
        markdown([chosen, *heads], by_set),
        markdown(["called wrong: precision, recall", *heads], flags),
    ]
    return "\n\n".join(parts)


def _flag(lines: Lines, name: str, kind: str, share: int) -> str:
    pairs = [
        line["flags"][name]
        for line in lines
        if line["data"] in REPORT and (line["kind"], line["share"]) == (kind, share)
    ]
    return ", ".join(f"{fmean(pair[i] for pair in pairs):.2f}" for i in (0, 1))


def main() -> None:
    args = make_parser(__doc__, (*CHOOSE, *REPORT)).parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {tuple(line[name] for name in KEY) for line in lines}
    lab = Lab(root=args.root, progress=False)
    for data in args.data:
        keys = [(data, *rest) for rest in product(KINDS, SHARES, args.seeds)]
        todo = [key for key in keys if key not in done]
        study = Study(lab, data) if todo else None
        for key in todo:
            assert study is not None
            line = {**dict(zip(KEY, key, strict=True)), **study.line(*key[1:])}
            append_lines(args.out, [line])
            print(*key, flush=True)


if __name__ == "__main__":
    main()
