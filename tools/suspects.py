"""How well does `rmadapter suspects` find wrong labels? Its tables are in docs/suspects.md.

    python tools/suspects.py --root DATA --out docs/results/suspects.jsonl
    python tools/suspects.py --out docs/results/suspects.jsonl --tables

A share of the training labels of a set is flipped, at random or to the class that a probe of the
true labels mistakes it for most, and every rule ranks the images. A line is one set, kind, share
and seed, with average precision and precision at k of each rule, where k is the number of flips.
The rule is chosen on CHOOSE and reported on REPORT. If cleanlab is installed (the package does not
need it), its results on the same probabilities are added. Finished lines are kept: start it again
to go on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
from lines import keep, kept, parser

from rmadapter.artifacts.mistakes import Nearest, nearest
from rmadapter.curate import checks
from rmadapter.data.duplicates import groups
from rmadapter.methods.linear_probe import LinearProbe
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.metrics import confidence_interval
from rmadapter.runs.folds import FOLDS, Folds, split
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.support.machine import versions
from rmadapter.training.contract import Known, answers

CHOOSE = ("caltech101", "rsscn7", "trashnet", "office_caltech/web")
REPORT = ("grocery", "pacs/photo", "dtd10", "sign_digits", "neu_steel")
SHOTS = {
    "caltech101": 12,
    "grocery": 10,
}  # per class; the other sets use all their images, at most 48 per class
STRENGTHS = (1.0, 3.0, 10.0)  # C of the probe
KINDS, SHARES = ("random", "confusable"), (5, 10, 20)
PROBES = tuple(f"probe {strength:g}" for strength in STRENGTHS)
KEY = ("data", "kind", "share", "seed")
Line = Mapping[str, Any]


def flipped(
    labels: np.ndarray, target: np.ndarray | None, share: int, classes: int, seed: int
) -> np.ndarray:
    """Labels [N], `share` per cent of them wrong. target: [C], the wrong label of each class; None
    for random ones."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(len(labels) * share / 100), replace=False)
    found = labels.copy()
    found[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    if target is not None:
        found[rows] = target[labels[rows]]
    return found


def confusable(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[C]: for each class, the other class with the highest mean probability on its images. table:
    [N, C]."""
    means = np.stack([table[labels == c].mean(0) for c in range(table.shape[1])])
    np.fill_diagonal(means, -1)
    return means.argmax(1)


def self_confidence(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 - the probability of the given label (Northcutt et al., JAIR 70, 2021)."""
    return 1 - table[np.arange(len(labels)), labels]


def margin(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """0 to 1: how much more probable another class is than the given one, the normalised margin of
    the same paper."""
    others = table.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return (1 + others.max(1) - table[np.arange(len(labels)), labels]) / 2


RULES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "self-confidence": self_confidence, "margin": margin, "logit margin": checks.logit_margin,
}  # fmt: skip


def votes(near: Nearest, labels: np.ndarray, classes: int) -> np.ndarray:
    """[N, C]: shares of the neighbours' labels, each weighted by its cosine; zeros for images
    without neighbours."""
    weights = np.clip(near.cosines, 0, None)
    table = np.zeros((len(weights), classes))
    np.add.at(table, (np.arange(len(weights))[:, None], labels[near.rows]), weights)
    return table / np.maximum(table.sum(1, keepdims=True), 1e-12)


def judged(score: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Average precision, and precision at k: of the k images with the highest scores, k being the
    number of flips."""
    from sklearn.metrics import average_precision_score

    order = np.argsort(-score, kind="stable")
    return [
        round(float(average_precision_score(wrong, score)), 4),
        round(float(wrong[order[: wrong.sum()]].mean()), 4),
    ]


class Study:
    """One data set: its images, features and groups of near-duplicates, computed once."""

    def __init__(self, lab: Lab, data: str) -> None:
        self.lab, self.data = lab, data
        self.asked = Request.make({"shots": SHOTS.get(data, 0)}, "zero-shot", data=data)
        few = lab.draw(self.asked.task)
        self.together = groups(few.train.looks(), few.train.groups)
        self.images = few.train
        lab.train_cache(self.asked.task).expect_parts(few.train)

    def answers(
        self, labels: np.ndarray, method: Any, name: str, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows [M] that were held out in turn, and answers [M, C] on them by models fitted to these
        labels."""
        images = replace(self.images, labels=tuple(labels.tolist()))
        task = replace(
            self.asked.task, data=f"{self.data} {images.digest} {seed}", shots=0
        )  # one seed: one cache
        self.lab.add(task.data, {"train": images})
        folds = Folds(
            task,
            self.lab.draw(task),
            self.lab,
            images,
            split(images, FOLDS, seed, together=self.together),
        )
        table = folds.answers(method, name).table.astype(float)
        return np.array(folds.rows), table / table.sum(1, keepdims=True)

    @cached_property
    def features(self) -> np.ndarray:
        return self.lab.train_cache(self.asked.task).features(self.images)[0].float().numpy()

    @cached_property
    def untouched(self) -> np.ndarray:
        """Probabilities [N, C] of the untouched backbone, which no label can mislead."""
        backbone, cache = (
            self.lab.backbone(self.asked.task.backbone),
            self.lab.train_cache(self.asked.task),
        )
        score = ZeroShot().restore(backbone, Known(self.images.classes), {}).score()
        return np.concatenate(
            [part["it"].numpy() for part in answers({"it": score}, cache.stream(self.images))]
        )

    @cached_property
    def target(self) -> np.ndarray:
        """The class that a probe of the true labels mistakes each class for most."""
        labels = np.array(self.images.labels)
        rows, table = self.answers(
            labels, LinearProbe(search_steps=0, C=max(STRENGTHS)), "linear-probe", 1
        )
        return confusable(table, labels[rows])

    def line(self, kind: str, share: int, seed: int) -> dict[str, Any]:
        true, classes = np.array(self.images.labels), len(self.images.classes)
        labels = flipped(true, self.target if kind == "confusable" else None, share, classes, seed)
        near = nearest(self.features, count=checks.NEIGHBOURS, groups=self.together)
        tables = {"neighbours": votes(near, labels, classes)}
        for name, strength in zip(PROBES, STRENGTHS, strict=True):
            probe = LinearProbe(search_steps=0, C=strength)
            rows, tables[name] = self.answers(labels, probe, "linear-probe", seed)
        tables["zero-shot"] = self.untouched[rows]
        tables["neighbours"], given, wrong = (
            tables["neighbours"][rows],
            labels[rows],
            (labels != true)[rows],
        )
        scores = {"random": np.random.default_rng(seed).random(len(rows))} | ranked(tables, given)
        flags = {}
        for name in PROBES:
            confident = checks.confident(tables[name], given)
            flags[name] = caught((confident >= 0) & (confident != given), wrong)
            theirs, mask = cleanlab(tables[name], given)
            scores |= {f"cleanlab, {name}, {how}": score for how, score in theirs.items()}
            flags |= {} if mask is None else {f"cleanlab, {name}": caught(mask, wrong)}
        return {
            "images": len(rows),
            "left_out": len(true) - len(rows),
            "flips": int(wrong.sum()),
            "scores": {name: judged(score, wrong) for name, score in scores.items()},
            "flags": flags,
            "backbone": self.lab.backbone(self.asked.task.backbone).digest,
            "versions": versions() | ({"cleanlab": metadata.version("cleanlab")} if theirs else {}),
        }


def ranked(tables: Mapping[str, np.ndarray], given: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [M], higher for a label more likely to be wrong, of every rule on every table of
    probabilities [M, C]; and the mean rank by a probe and by the neighbours."""
    from scipy.stats import rankdata

    found = {
        f"{name}, {rule}": RULES[rule](table, given)
        for name, table in tables.items()
        for rule in RULES
    }
    for name, rule in product(PROBES, RULES):
        places = [rankdata(found[f"{one}, {rule}"]) for one in (name, "neighbours")]
        found[f"mean rank of {name} and neighbours, {rule}"] = sum(places)
    return found


def cleanlab(
    table: np.ndarray, given: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """cleanlab's results on the same probabilities: scores, and the labels it calls wrong; nothing
    without cleanlab."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}, None
    found = {}
    for rule in ("self_confidence", "normalized_margin"):
        for adjust in (False, True):
            quality = get_label_quality_scores(given, table, method=rule, adjust_pred_probs=adjust)
            found[f"{'adjusted ' * adjust}{rule}"] = 1 - quality
    return found, find_label_issues(given, table, n_jobs=1)


def caught(mask: np.ndarray, wrong: np.ndarray) -> list[float]:
    """Precision and recall of what a rule calls wrong, and the number of these images."""
    hits = int((mask & wrong).sum())
    return [
        round(hits / max(int(mask.sum()), 1), 4),
        round(hits / int(wrong.sum()), 4),
        int(mask.sum()),
    ]


# What the lines say. A set is one observation: the mean over its seeds.


def mean(
    lines: Sequence[Line], sets: Iterable[str], score: str, kind: str, share: int, what: int = 0
) -> float:
    """what: 0 the average precision, 1 the precision at k."""
    some = [line for line in lines if (line["kind"], line["share"]) == (kind, share)]
    by_set = {
        data: [line["scores"][score][what] for line in some if line["data"] == data]
        for data in sets
    }
    return fmean(fmean(values) for values in by_set.values() if values)


def overall(lines: Sequence[Line], sets: Iterable[str], score: str) -> float:
    """Mean average precision over kinds and shares."""
    return fmean(mean(lines, sets, score, kind, share) for kind in KINDS for share in SHARES)


def difference(lines: Sequence[Line], one: str, other: str) -> tuple[float, float]:
    """Difference in overall average precision on the sets to report on: mean, and half width of the
    95 % interval."""
    there = {line["data"] for line in lines}
    d = [
        overall(lines, [data], one) - overall(lines, [data], other)
        for data in REPORT
        if data in there
    ]
    return fmean(d), confidence_interval(d)


def ours(lines: Sequence[Line]) -> list[str]:
    """The rules to choose from: without cleanlab's and the controls."""
    return [
        name
        for name in lines[0]["scores"]
        if not name.startswith(("cleanlab", "zero-shot", "random"))
    ]


def best(lines: Sequence[Line]) -> str:
    """The best rule on the sets to choose on; the first of equal ones."""
    return max(ours(lines), key=lambda name: round(overall(lines, CHOOSE, name), 4))


def tables(lines: Sequence[Line]) -> str:
    """The tables of docs/suspects.md."""
    heads = [f"{kind} {share} %" for kind in KINDS for share in SHARES]
    rows = [
        "| mean average precision | choosing | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    leaders: dict[str, str] = {}  # of each rule, with the probe that suits it best
    for name in sorted(lines[0]["scores"], key=lambda name: -overall(lines, CHOOSE, name)):
        leaders.setdefault(re.sub(r"probe \d+", "probe", name), name)
    for name in leaders.values():
        cells = [
            overall(lines, CHOOSE, name),
            *(mean(lines, REPORT, name, k, s) for k in KINDS for s in SHARES),
        ]
        rows.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    chosen, sets = best(lines), list(dict.fromkeys(line["data"] for line in lines))
    rows += ["", f"| {chosen} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for data in sorted(sets, key=[*CHOOSE, *REPORT].index):
        both = [
            [mean(lines, [data], chosen, k, s, what) for what in (0, 1)]
            for k in KINDS
            for s in SHARES
        ]
        rows.append(
            f"| {data} | " + " | ".join(f"{ap:.2f}, {at_k:.2f}" for ap, at_k in both) + " |"
        )
    rows += [
        "",
        "| called wrong: precision, recall | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name in lines[0]["flags"]:
        pairs = []
        for kind in KINDS:
            for share in SHARES:
                some = [
                    x
                    for x in lines
                    if x["data"] in REPORT and (x["kind"], x["share"]) == (kind, share)
                ]
                pairs.append(
                    ", ".join(f"{fmean(x['flags'][name][i] for x in some):.2f}" for i in (0, 1))
                )
        rows.append(f"| {name} | " + " | ".join(pairs) + " |")
    return "\n".join(rows)


def main() -> None:
    args = parser(__doc__, (*CHOOSE, *REPORT)).parse_args()
    lines = kept(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {tuple(line[key] for key in KEY) for line in lines}
    lab = Lab(root=args.root, progress=False)
    for data in args.data:
        todo = [
            (data, *rest)
            for rest in product(KINDS, SHARES, args.seeds)
            if (data, *rest) not in done
        ]
        if not todo:
            continue
        study = Study(lab, data)
        for key in todo:
            line = {**dict(zip(KEY, key, strict=True)), **study.line(*key[1:])}
            keep(args.out, [line])
            print(*key, flush=True)


if __name__ == "__main__":
    main()
