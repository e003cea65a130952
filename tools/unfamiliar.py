"""Which score tells images that a model was not made for from the others? Its tables are in
docs/unfamiliar.md.

    python tools/unfamiliar.py --root DATA --out results.jsonl --seeds 1 2 3
    python tools/unfamiliar.py --out results.jsonl --tables

RMAdapter is fitted to the base classes of a set. Test images of these classes are known, those of
the set's novel classes near, those of another set far. Every score is higher for less familiar
images. The score is chosen on CHOOSE and reported on REPORT, which share no image; this was fixed
before the first run. Finished lines are kept: start it again to go on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lines import keep, kept, parser
from torch import Tensor

from rmadapter.data.fewshot import half, split_digest
from rmadapter.data.read import ImageSet
from rmadapter.metrics import confidence_interval
from rmadapter.model import AdaptedCLIP
from rmadapter.prompts import zero_shot_weights
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.machine import versions
from rmadapter.task import TEMPLATES
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted

CHOOSE = ("caltech101", "rsscn7", "trashnet", "office_caltech/web")
REPORT = ("grocery", "pacs/photo", "dtd10", "sign_digits", "neu_steel")
RELATED = {
    "caltech101",
    "office_caltech/web",
    "pacs/photo",
}  # sets that share photographs or classes
MOST = 300  # test images of one kind, always the same ones
TEMPERATURES = (1.0, 0.1, 0.01)  # of cosines, besides the backbone's own
NEIGHBOURS = (1, 4, 16)
BASELINE = "max-softmax, adapted"
CONTROLS = ("max-softmax, frozen", "reconstruction", "reconstruction, untrained")
Line = Mapping[str, Any]


class Seen(NamedTuple):
    """A model's view of N images: features [N, e] of the adapted and of the untouched encoder, both
    of unit length, and the reconstruction error [N]: the mean over tokens, summed over adapters."""

    adapted: Tensor
    frozen: Tensor
    error: Tensor


@torch.no_grad()
def look(model: AdaptedCLIP, cache: Cache, images: ImageSet) -> Seen:
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for states in cache.stream(images, model.first("image")):
        features, errors = model.features("image", states, reconstruct=True)
        error = torch.stack([error.mean(1) for error in errors]).sum(0)
        found.append((F.normalize(features, dim=-1), F.normalize(states.features, dim=-1), error))
    return Seen(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def scores(
    seen: Seen, shots: Seen, weights: Mapping[str, Tensor], scale: float, untrained: Tensor
) -> dict[str, Tensor]:
    """Every score [N] of N images. weights: class features [C, e] by encoder. scale: factor of the
    cosines. untrained: reconstruction error of untrained branches."""
    found: dict[str, Tensor] = {}
    for encoder in ("adapted", "frozen"):
        features = getattr(seen, encoder).double()  # in float32 many probabilities are 1
        cosines = features @ weights[encoder].double().T
        found[f"max-softmax, {encoder}"] = 1 - (scale * cosines).softmax(-1).amax(-1)
        found[f"max-cosine, {encoder}"] = 1 - cosines.amax(-1)
        found[f"energy, {encoder}"] = -(scale * cosines).logsumexp(-1) / scale
        for t in TEMPERATURES:
            found[f"MCM {t:g}, {encoder}"] = 1 - (cosines / t).softmax(-1).amax(-1)
            found[f"energy {t:g}, {encoder}"] = -t * (cosines / t).logsumexp(-1)
        nearest = (features @ getattr(shots, encoder).double().T).sort(-1, descending=True).values
        for k in NEIGHBOURS:
            found[f"neighbour {k}, {encoder}"] = 1 - nearest[:, k - 1]
    for single in ("max-softmax", "max-cosine"):
        for encoder in ("adapted", "frozen"):
            for k in NEIGHBOURS:
                other = f"neighbour {k}, {encoder}"
                found[f"{single}, adapted + {other}"] = found[f"{single}, adapted"] + found[other]
    return {**found, "reconstruction": seen.error, "reconstruction, untrained": untrained}


def apart(known: Tensor, other: Tensor) -> tuple[float, float]:
    """AUROC, and the share of unfamiliar images that pass as known where 95 % of the known do (FPR
    at 95 %)."""
    from sklearn.metrics import roc_auc_score

    labels = np.r_[np.zeros(len(known)), np.ones(len(other))]
    area = roc_auc_score(labels, torch.cat([known, other]).double().numpy())
    passed = other.double() <= known.double().quantile(0.95)
    return round(float(area), 4), round(float(passed.double().mean()), 4)


@dataclass(eq=False)
class Study:
    """The study in one process, with the images it has read and the errors of untrained branches."""

    lab: Lab
    backbone: str = "pocket"
    shots: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images: dict[tuple[str, str], ImageSet] = {}
        self._untrained: dict[tuple[int, str], Tensor] = {}

    def images(self, data: str, which: Any = "all") -> ImageSet:
        """Test images, at most MOST of them."""
        if (data, which) not in self._images:
            found = half(self.lab.splits(data)["test"], which)
            rows = sorted(random.Random(0).sample(range(len(found)), min(MOST, len(found))))
            self._images[data, which] = found.subset(rows)
        return self._images[data, which]

    def lines(self, data: str, seed: int, far: Sequence[str]) -> list[dict[str, Any]]:
        """Fit to the base classes of a set, and tell their test images from near and from far ones."""
        given = {
            "backbone": self.backbone,
            "shots": self.shots,
            "seed": seed,
            "classes": "base",
            **self.settings,
        }
        wanted = Request.make(given, data=data)
        few = self.lab.draw(wanted.task)
        train = half(few.train, "base")
        fitted = learn(wanted.method, train, wanted.task, few, self.lab)
        model, cache = self._model(seed, fitted), self.lab.test_cache(wanted.task)
        with torch.no_grad():
            names, scale = fitted.classes, float(fitted.backbone.logit_scale)
            weights = {
                "adapted": model.class_weights(names),
                "frozen": zero_shot_weights(fitted.backbone, names, TEMPLATES),
            }
        shots = look(model, self.lab.train_cache(wanted.task), train)

        def score(images: ImageSet) -> tuple[Seen, dict[str, Tensor]]:
            seen = look(model, cache, images)
            return seen, scores(
                seen, shots, weights, scale, self._untrained_error(seed, cache, images)
            )

        known = self.images(data, "base")
        seen, own = score(known)
        right = (seen.adapted @ weights["adapted"].T).argmax(-1) == torch.tensor(known.labels)
        about = {"data": data, "seed": seed, "shots": self.shots, "backbone": fitted.backbone.name}
        facts = {"accuracy": round(float(right.double().mean()), 4), "known": len(known)}
        made = {
            "digest": fitted.backbone.digest,
            "split": split_digest(few),
            "versions": versions(),
        }
        found = []
        for other, images in [
            ("", self.images(data, "novel")),
            *((name, self.images(name)) for name in far),
        ]:
            rated = {name: apart(own[name], values) for name, values in score(images)[1].items()}
            found.append(
                {**about, "far": other, **facts, "unfamiliar": len(images), "scores": rated, **made}
            )
        return found

    def _model(self, seed: int, fitted: Fitted | None = None) -> AdaptedCLIP:
        method: Any = Request.make(dict(self.settings)).method
        model: AdaptedCLIP = method.model(self.lab.backbone(self.backbone), seed)
        if fitted is not None:
            model.adapters.load_state_dict(dict(fitted.tensors))
        return model

    def _untrained_error(self, seed: int, cache: Cache, images: ImageSet) -> Tensor:
        """Reconstruction error of untrained branches, the same for every set that is trained on."""
        if (seed, images.digest) not in self._untrained:
            self._untrained[seed, images.digest] = look(self._model(seed), cache, images).error
        return self._untrained[seed, images.digest]


def far_of(data: str) -> list[str]:
    """The other sets of the same half, except those that share photographs or classes with it."""
    group = CHOOSE if data in CHOOSE else REPORT
    return [other for other in group if other != data and not {data, other} <= RELATED]


# What the lines say. A set is one observation: the mean over its seeds and, for far, over the other
# sets.


def mean(lines: Sequence[Line], data: str, score: str, kind: str = "both", what: int = 0) -> float:
    """The mean over lines. kind: near, far, or both with equal weight. what: 0 the AUROC, 1 the FPR
    at 95 %."""
    if kind == "both":
        return (mean(lines, data, score, "near", what) + mean(lines, data, score, "far", what)) / 2
    return fmean(
        line["scores"][score][what]
        for line in lines
        if line["data"] == data and bool(line["far"]) == (kind == "far")
    )


def trained(lines: Sequence[Line], sets: Sequence[str]) -> list[str]:
    """The sets for which there are lines."""
    there = {line["data"] for line in lines}
    return [data for data in sets if data in there]


def over(
    lines: Sequence[Line], sets: Sequence[str], score: str, kind: str = "both", what: int = 0
) -> float:
    return fmean(mean(lines, data, score, kind, what) for data in trained(lines, sets))


def best(lines: Sequence[Line], names: Iterable[str]) -> str:
    """The best score on the sets to choose on; the first of equal ones."""
    return max(names, key=lambda score: round(over(lines, CHOOSE, score), 9))


def usable(score: str) -> bool:
    """Whether every method can give the score, from its probabilities and the untouched encoders,
    as the product needs.

    Few methods have features of an adapted encoder or cosines of adapted classes; a sum may use
    probabilities."""
    first, *second = score.split(" + ")
    if second:
        return first.startswith("max-softmax") and second[0].endswith("frozen")
    return first.endswith("frozen") or first.startswith(("max-softmax", "MCM"))


def family(score: str) -> str:
    """The name without its numbers."""
    return re.sub(r" [\d.]+(?=,)", "", score)


def difference(lines: Sequence[Line], score: str, kind: str) -> tuple[float, float, float, float]:
    """Difference from max-softmax on the sets to report on: mean, ends of Student's 95 % interval
    over the sets, and p of Wilcoxon's test, which is at least 0.0625 for five sets, 0.125 for four.
    """
    from scipy.stats import wilcoxon

    d = [
        mean(lines, data, score, kind) - mean(lines, data, BASELINE, kind)
        for data in trained(lines, REPORT)
    ]
    half_width = confidence_interval(d)
    return (
        fmean(d),
        fmean(d) - half_width,
        fmean(d) + half_width,
        float(wilcoxon(d).pvalue) if any(d) else 1.0,
    )


def tables(lines: Sequence[Line]) -> str:
    """The three tables of docs/unfamiliar.md."""
    names = list(lines[0]["scores"])
    leaders = [
        best(lines, [n for n in names if family(n) == f]) for f in dict.fromkeys(map(family, names))
    ]
    rows = ["| score | choosing | near | far | FPR near | FPR far |", "|---|---|---|---|---|---|"]
    for score in sorted(leaders, key=lambda score: -over(lines, CHOOSE, score)):
        areas = [
            over(lines, CHOOSE, score),
            *(over(lines, REPORT, score, kind) for kind in ("near", "far")),
        ]
        passed = [100 * over(lines, REPORT, score, kind, 1) for kind in ("near", "far")]
        rows.append(
            " | ".join([f"| {score}", *map("{:.3f}".format, areas), *map("{:.0f}".format, passed)])
            + " |"
        )
    chosen = best(lines, filter(usable, names))
    rows += ["", f"| {chosen}, beside {BASELINE} | near | far |", "|---|---|---|"]
    for data in trained(lines, REPORT):
        cells = [
            " beside ".join(f"{mean(lines, data, s, k):.3f}" for s in (chosen, BASELINE))
            for k in ("near", "far")
        ]
        rows.append(" | ".join([f"| {data}", *cells]) + " |")
    rows += ["", "| difference in AUROC to max-softmax | near | far | both |", "|---|---|---|---|"]
    for score in dict.fromkeys([chosen, best(lines, names), *CONTROLS]):
        cells = []
        for kind in ("near", "far", "both"):
            middle, low, high, p = difference(lines, score, kind)
            cells.append(f"{middle:+.3f} ({low:+.3f} to {high:+.3f}), p = {p:.3f}")
        rows.append(" | ".join([f"| {score}", *cells]) + " |")
    return "\n".join(rows)


def main() -> None:
    args = parser(__doc__, (*CHOOSE, *REPORT)).parse_args()
    lines = kept(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {(line["data"], line["seed"]) for line in lines}
    study = Study(Lab(root=args.root, keep=True, progress=False))
    for seed in args.seeds:
        for data in args.data:
            if (data, seed) not in done:
                found = study.lines(data, seed, far_of(data))
                keep(args.out, found)
                print(f"{data}, seed {seed}: {len(found)} lines", flush=True)


if __name__ == "__main__":
    main()
