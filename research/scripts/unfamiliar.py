"""Find the score that separates images that a model was not made for from the others. The tables
are in docs/studies/unfamiliar.md.

    python research/scripts/unfamiliar.py --root DATA --out results.jsonl --seeds 1 2 3
    python research/scripts/unfamiliar.py --out results.jsonl --tables

RMAdapter is fitted to the base classes of a set. Test images of these classes are known, those of
the set's novel classes near, those of another set far. Every score is higher for less familiar
images. The score is chosen on CHOOSE and reported on REPORT, which share no image; this was fixed
before the first run. Finished lines are kept: repeat the command to resume.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from studies import CHOOSE, REPORT, Lines, append_lines, make_parser, markdown, read_lines
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

# sets that share photographs or classes
RELATED = {"caltech101", "office_caltech/web", "pacs/photo"}
MOST = 300  # test images of one kind, always the same ones
TEMPERATURES = (1.0, 0.1, 0.01)  # of cosines, besides the backbone's own
NEIGHBOURS = (1, 4, 16)
BASELINE = "max-softmax, adapted"
CONTROLS = ("max-softmax, frozen", "reconstruction", "reconstruction, untrained")
Which: TypeAlias = Literal["all", "base", "novel"]  # of the classes


class Encoded(NamedTuple):
    """N images as a model encodes them: features [N, e] of the adapted and of the untouched
    encoder, both of unit length, and the reconstruction error [N]: the mean over tokens, summed
    over adapters."""

    adapted: Tensor
    frozen: Tensor
    error: Tensor


@torch.no_grad()
def encode(model: AdaptedCLIP, cache: Cache, images: ImageSet) -> Encoded:
    """Encode images, and reconstruct the tokens."""
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    for states in cache.stream(images, model.first("image")):
        features, errors = model.features("image", states, reconstruct=True)
        error = torch.stack([error.mean(1) for error in errors]).sum(0)
        frozen = F.normalize(states.features, dim=-1)
        batches.append((F.normalize(features, dim=-1), frozen, error))
    return Encoded(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def scores(
    images: Encoded, shots: Encoded, weights: Mapping[str, Tensor], scale: float, untrained: Tensor
) -> dict[str, Tensor]:
    """Return every score [N] of N images. weights: class features [C, e] by encoder. scale: factor
    of the cosines. untrained: reconstruction error of untrained branches."""
    scores: dict[str, Tensor] = {}
    for encoder in ("adapted", "frozen"):
        features = getattr(images, encoder).double()  # in float32 many probabilities are 1
        cosines = features @ weights[encoder].double().T
        scores[f"max-softmax, {encoder}"] = 1 - (scale * cosines).softmax(-1).amax(-1)
        scores[f"max-cosine, {encoder}"] = 1 - cosines.amax(-1)
        scores[f"energy, {encoder}"] = -(scale * cosines).logsumexp(-1) / scale
        for t in TEMPERATURES:
            scores[f"MCM {t:g}, {encoder}"] = 1 - (cosines / t).softmax(-1).amax(-1)
            scores[f"energy {t:g}, {encoder}"] = -t * (cosines / t).logsumexp(-1)
        nearest = (features @ getattr(shots, encoder).double().T).sort(-1, descending=True).values
        for k in NEIGHBOURS:
            scores[f"neighbour {k}, {encoder}"] = 1 - nearest[:, k - 1]
    for single in ("max-softmax", "max-cosine"):
        for encoder in ("adapted", "frozen"):
            for k in NEIGHBOURS:
                other = f"neighbour {k}, {encoder}"
                total = scores[f"{single}, adapted"] + scores[other]
                scores[f"{single}, adapted + {other}"] = total
    return {**scores, "reconstruction": images.error, "reconstruction, untrained": untrained}


def apart(known: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the AUROC, and the share of unfamiliar images that pass as known where 95 % of the
    known do (FPR at 95 %)."""
    from sklearn.metrics import roc_auc_score

    labels = np.r_[np.zeros(len(known)), np.ones(len(other))]
    area = roc_auc_score(labels, torch.cat([known, other]).double().numpy())
    passed = other.double() <= known.double().quantile(0.95)
    return round(float(area), 4), round(float(passed.double().mean()), 4)


@dataclass(eq=False)
class Study:
    """The study in one process, with the images it has read and the errors of untrained
    branches."""

    lab: Lab
    backbone: str = "pocket"
    shots: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images: dict[tuple[str, str], ImageSet] = {}
        self._untrained: dict[tuple[int, str], Tensor] = {}

    def images(self, data: str, which: Which = "all") -> ImageSet:
        """Return test images, at most MOST of them."""
        if (data, which) not in self._images:
            images = half(self.lab.splits(data)["test"], which)
            rows = sorted(random.Random(0).sample(range(len(images)), min(MOST, len(images))))
            self._images[data, which] = images.subset(rows)
        return self._images[data, which]

    def lines(self, data: str, seed: int, far: Sequence[str]) -> list[dict[str, Any]]:
        """Fit to the base classes of a set, and separate their test images from near and far
        ones."""
        common = {"backbone": self.backbone, "shots": self.shots, "seed": seed, "classes": "base"}
        request = Request.make({**common, **self.settings}, data=data)
        few = self.lab.draw(request.task)
        train = half(few.train, "base")
        fitted = learn(request.method, train, request.task, few, self.lab)
        model = self._model(seed, fitted)
        cache = self.lab.test_cache(request.task)
        with torch.no_grad():
            names = fitted.classes
            scale = float(fitted.backbone.logit_scale)
            weights = {
                "adapted": model.class_weights(names),
                "frozen": zero_shot_weights(fitted.backbone, names, TEMPLATES),
            }
        shots = encode(model, self.lab.train_cache(request.task), train)

        def score(images: ImageSet) -> tuple[Encoded, dict[str, Tensor]]:
            encoded = encode(model, cache, images)
            untrained = self._untrained_error(seed, cache, images)
            return encoded, scores(encoded, shots, weights, scale, untrained)

        known = self.images(data, "base")
        encoded, known_scores = score(known)
        right = (encoded.adapted @ weights["adapted"].T).argmax(-1) == torch.tensor(known.labels)
        others = {"": self.images(data, "novel")} | {name: self.images(name) for name in far}
        lines = []
        for other, images in others.items():
            rated = {name: apart(known_scores[name], x) for name, x in score(images)[1].items()}
            lines.append(
                {
                    "data": data, "seed": seed, "shots": self.shots,
                    "backbone": fitted.backbone.name, "far": other,
                    "accuracy": round(float(right.double().mean()), 4), "known": len(known),
                    "unfamiliar": len(images), "scores": rated, "digest": fitted.backbone.digest,
                    "split": split_digest(few), "versions": versions(),
                }
            )  # fmt: skip
        return lines

    def _model(self, seed: int, fitted: Fitted | None = None) -> AdaptedCLIP:
        method: Any = Request.make(dict(self.settings)).method
        model: AdaptedCLIP = method.model(self.lab.backbone(self.backbone), seed)
        if fitted is not None:
            model.adapters.load_state_dict(dict(fitted.tensors))
        return model

    def _untrained_error(self, seed: int, cache: Cache, images: ImageSet) -> Tensor:
        """Return the reconstruction error of untrained branches, the same for every set that is
        trained on."""
        if (seed, images.digest) not in self._untrained:
            self._untrained[seed, images.digest] = encode(self._model(seed), cache, images).error
        return self._untrained[seed, images.digest]


def far_of(data: str) -> list[str]:
    """Return the other sets of the same half, except those that share photographs or classes with
    it."""
    group = CHOOSE if data in CHOOSE else REPORT
    return [other for other in group if other != data and not {data, other} <= RELATED]


# Tables of the lines. A set is one observation: the mean over its seeds and, for far, over the
# other sets.


def mean(lines: Lines, data: str, score: str, kind: str = "both", which: int = 0) -> float:
    """Average over lines. kind: near, far, or both with equal weight. which: 0 the AUROC, 1 the FPR
    at 95 %."""
    if kind == "both":
        near, far = (mean(lines, data, score, half, which) for half in ("near", "far"))
        return (near + far) / 2
    return fmean(
        line["scores"][score][which]
        for line in lines
        if line["data"] == data and bool(line["far"]) == (kind == "far")
    )


def trained(lines: Lines, sets: Sequence[str]) -> list[str]:
    """Return the sets for which there are lines."""
    present = {line["data"] for line in lines}
    return [data for data in sets if data in present]


def over(
    lines: Lines, sets: Sequence[str], score: str, kind: str = "both", which: int = 0
) -> float:
    """Average over sets."""
    return fmean(mean(lines, data, score, kind, which) for data in trained(lines, sets))


def best(lines: Lines, names: Iterable[str]) -> str:
    """Return the best score on the sets to choose on; the first of equal ones."""
    return max(names, key=lambda score: round(over(lines, CHOOSE, score), 9))


def usable(score: str) -> bool:
    """Return whether every method can give the score, from its probabilities and the untouched
    encoders, as the product needs.

    Few methods have features of an adapted encoder or cosines of adapted classes; a sum may use
    probabilities."""
    first, *second = score.split(" + ")
    if second:
        return first.startswith("max-softmax") and second[0].endswith("frozen")
    return first.endswith("frozen") or first.startswith(("max-softmax", "MCM"))


def family(score: str) -> str:
    """Return the name without its numbers."""
    return re.sub(r" [\d.]+(?=,)", "", score)


def difference(lines: Lines, score: str, kind: str) -> tuple[float, float, float, float]:
    """Return the difference from max-softmax on the sets to report on: mean, ends of Student's 95 %
    interval over the sets, and p of Wilcoxon's test, which is at least 0.0625 for five sets, 0.125
    for four."""
    from scipy.stats import wilcoxon

    d = [
        mean(lines, data, score, kind) - mean(lines, data, BASELINE, kind)
        for data in trained(lines, REPORT)
    ]
    middle = fmean(d)
    half_width = confidence_interval(d)
    p = float(wilcoxon(d).pvalue) if any(d) else 1.0
    return middle, middle - half_width, middle + half_width, p


def tables(lines: Lines) -> str:
    """Make the three tables of docs/studies/unfamiliar.md."""
    names = list(lines[0]["scores"])
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family(name), []).append(name)
    leaders = [best(lines, members) for members in families.values()]
    rows = []
    for score in sorted(leaders, key=lambda score: -over(lines, CHOOSE, score)):
        areas = [over(lines, CHOOSE, score)]
        areas += [over(lines, REPORT, score, kind) for kind in ("near", "far")]
        passed = [100 * over(lines, REPORT, score, kind, 1) for kind in ("near", "far")]
        rows.append([score, *(f"{x:.3f}" for x in areas), *(f"{x:.0f}" for x in passed)])
    heads = ["score", "choosing", "near", "far", "FPR near", "FPR far"]
    parts = [markdown(heads, rows)]
    chosen = best(lines, filter(usable, names))
    rows = []
    for data in trained(lines, REPORT):
        cells = []
        for kind in ("near", "far"):
            pair = (mean(lines, data, score, kind) for score in (chosen, BASELINE))
            cells.append(" beside ".join(f"{area:.3f}" for area in pair))
        rows.append([data, *cells])
    parts.append(markdown([f"{chosen}, beside {BASELINE}", "near", "far"], rows))
    rows = []
    for score in dict.fromkeys([chosen, best(lines, names), *CONTROLS]):
        cells = []
        for kind in ("near", "far", "both"):
            middle, low, high, p = difference(lines, score, kind)
            cells.append(f"{middle:+.3f} ({low:+.3f} to {high:+.3f}), p = {p:.3f}")
        rows.append([score, *cells])
    heads = ["difference in AUROC to max-softmax", "near", "far", "both"]
    return "\n\n".join([*parts, markdown(heads, rows)])


def main() -> None:
    args = make_parser(__doc__, (*CHOOSE, *REPORT)).parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(tables(lines))
        return
    done = {(line["data"], line["seed"]) for line in lines}
    study = Study(Lab(root=args.root, keep=True, progress=False))
    for seed in args.seeds:
        for data in args.data:
            if (data, seed) not in done:
                new = study.lines(data, seed, far_of(data))
                append_lines(args.out, new)
                print(f"{data}, seed {seed}: {len(new)} lines", flush=True)


if __name__ == "__main__":
    main()
